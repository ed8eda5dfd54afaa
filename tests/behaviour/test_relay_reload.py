"""A reload changes whom new streams ask, and how; streams that run, and the ledger, notice nothing."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import read_all
from tests.behaviour.relay_helpers import KEY, LEDGER, Relay, assert_complete, by, held, refusal, relay_config, relaying
from tests.upstream import Gate, Plan, Upstream, openai_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = ["The", " quick", " brown"]
FINE = Plan(openai_stream(TOKENS))


@pytest.fixture(name="relay")
def _relay(kernel: str, tmp_path: Path) -> Iterator[Relay]:
    with relaying(kernel, tmp_path, lambda upstream: [by("tcp", upstream), by("h2", upstream)], api_key=KEY) as relay:
        yield relay


@pytest.fixture(name="other")
def _other() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def reload(relay: Relay, *tables: dict[str, object], result: str = "ok", **options: str) -> None:
    """Another configuration, and wait until it counts."""
    name = f'streaming_daemon_config_reloads_total{{result="{result}"}}'
    before = relay.daemon.metric(name)
    options.setdefault("ledger_file", str(relay.daemon.directory / LEDGER))
    (relay.daemon.directory / "daemon.toml").write_text(relay_config(*tables, other="", **options))
    assert relay.daemon.process is not None
    relay.daemon.process.send_signal(signal.SIGHUP)
    relay.daemon.wait_for_metric(name, before + 1)


@pytest.mark.parametrize("transport", ["tcp", "h2"])
def test_new_streams_ask_the_new_upstream_and_old_ones_go_on(relay: Relay, other: Upstream, transport: str) -> None:
    gate = Gate()
    client, name = relay.open(held(TOKENS, gate, 1), by=transport)
    relay.upstream.wait_for_requests(1, name)
    reload(relay, by(transport, other), api_key="another-key-0123456789")
    other.answer("new", Plan(openai_stream(["new"])))
    assert_complete(relay.ask(by=transport, model="new", request_id="new"), ["new"])
    assert other.requests("new")[0].header("Authorization") == "Bearer another-key-0123456789"
    assert not relay.upstream.requests("new")
    gate.open()
    with client:
        assert_complete(read_all(client), TOKENS)
    assert [relay.row(one)["end_reason"] for one in (name, "new")] == ["complete", "complete"]


def test_idle_connections_to_who_is_not_asked_any_more_are_closed(relay: Relay, other: Upstream) -> None:
    assert_complete(relay.ask(FINE), TOKENS)
    reload(relay, by("tcp", other))
    relay.upstream.journal.wait(
        lambda: all(one.closed_s is not None for one in relay.upstream.connections()), "its connections' end", 5
    )


def test_an_upstream_that_stays_keeps_its_connections_and_its_breaker(relay: Relay) -> None:
    for _ in range(2):
        assert relay.ask(refusal(501)).status == 502
    assert_complete(relay.ask(FINE, by="h2"), TOKENS)
    count = len(relay.upstream.connections())
    reload(relay, by("tcp", relay.upstream), by("h2", relay.upstream), model="another-model")
    assert_complete(relay.ask(FINE, by="h2"), TOKENS)
    assert len(relay.upstream.connections()) == count
    assert relay.ask(refusal(501)).status == 502
    assert relay.ask(FINE).status == 503, "the third failure in a row opens its breaker"


def test_a_file_with_an_error_changes_nothing(relay: Relay) -> None:
    reload(relay, {"name": "Not A Name"}, result="failed")
    assert_complete(relay.ask(FINE), TOKENS)
    reload(relay, {**by("tcp", relay.upstream), "api_base": "ftp://127.0.0.1/v1"}, result="failed")
    assert_complete(relay.ask(FINE), TOKENS)


def test_addresses_are_never_too_many_for_the_plane_for_long(kernel: str, other: Upstream, tmp_path: Path) -> None:
    # It has numbers for 256; who keeps connections for another time has one of his own.
    def old(upstream: Upstream) -> list[dict[str, object]]:
        return [by("tcp", upstream, f"old-{count}", idle_timeout_s=60 + count) for count in range(256)]

    new = [by("tcp", other, f"new-{count}", idle_timeout_s=60 + count) for count in range(8)]
    with relaying(kernel, tmp_path, old, attempts_max=1, breaker_failures=0) as relay:
        for count in range(256):
            assert_complete(relay.ask(FINE, by=f"old-{count}"), TOKENS)
        reload(relay, *old(relay.upstream)[:100], *new)  # the old address is still asked: its connections are kept
        assert relay.ask(FINE, by="new-0").status == 503
        time.sleep(5.1)  # until nothing can be left of an earlier stream but a kept connection
        other.answer("moved", Plan(openai_stream(["from", " the", " other"])))
        for count in range(8):
            answer = relay.ask(by=f"new-{count}", model="moved", request_id=f"moved-{count}")
            assert_complete(answer, ["from", " the", " other"])
        assert len(other.requests("moved")) == 8
        assert not relay.upstream.requests("moved")
        assert_complete(relay.ask(FINE, by="old-0"), TOKENS)
