"""The ledger's row of an answer in one piece: its status is the one that the client got, whatever the stream said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.behaviour.http_helpers import CHAT, Front, Reply, post, serving
from tests.behaviour.relay_helpers import LEDGER, Relay, by, refusal, relay_config
from tests.upstream import Fault, Plan, Upstream, ask_usage, openai_stream
from tests.upstream.events import error_event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORDS = ["The", " quick", " brown", " fox"]
WHOLE = openai_stream(WORDS, usage=ask_usage(3, 4))
BEGUN = openai_stream(WORDS, finish=None, done=False)
ANSWER_BYTES_MAX = 8192
LONG: list[bytes | Fault] = [*openai_stream(["x" * 64] * 200, finish=None, done=False), Fault.STALL]
SILENT = "silent"  # the upstream, and its model, of which little patience is had


class Counted(NamedTuple):
    """A daemon whose ledger is read."""

    front: Front
    relay: Relay
    upstream: Upstream

    def asking(self, name: str, *, model: str, stream: bool = False) -> bytes:
        """A request with this id."""
        said = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
        return post(CHAT, said, {"X-Request-Id": name})

    def ask(self, name: str, *plans: Plan, model: str = "tcp", stream: bool = False) -> tuple[Reply, dict[str, Any]]:
        """A request that gets these plans: its answer, and its row."""
        self.upstream.answer(name, *plans)
        return self.front.ask(self.asking(name, model=model, stream=stream)), self.relay.row(name)


def configuration(upstream: Upstream, directory: Path, other: str = "") -> str:
    """One model by each of three ways."""
    tables = [by(way, upstream, models=[way]) for way in ("tcp", "tls")]
    tables.append(by("tcp", upstream, SILENT, models=[SILENT], silence_timeout_ms=300))
    http = f'[http]\nlisten = "127.0.0.1:0"\nanswer_bytes_max = {ANSWER_BYTES_MAX}\n{other}'
    return relay_config(*tables, other=http, ledger_file=str(directory / LEDGER), breaker_failures=0)


@pytest.fixture(name="counted", scope="module")
def _counted(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    directory = tmp_path_factory.mktemp("ledger")
    with Upstream() as upstream, serving(kernel, directory, configuration(upstream, directory)) as front:
        yield Counted(front, Relay(front.daemon, upstream), upstream)


@pytest.mark.parametrize("model", ["tcp", "tls"])
def test_an_answer_that_came(counted: Counted, model: str) -> None:
    reply, row = counted.ask(f"whole-{model}", Plan(WHOLE), model=model)
    assert (reply.status, reply.json["choices"][0]["message"]["content"]) == (200, "".join(WORDS))
    assert (row["status"], row["end_reason"], row["error"]) == (200, "complete", "")
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (3, 4, False)


@pytest.mark.parametrize(
    ("case", "plan", "model", "status", "reason"),
    [
        ("cut", Plan([*BEGUN, Fault.CUT]), "tcp", 502, "upstream_cut"),
        ("cut-tls", Plan([*BEGUN, Fault.CUT]), "tls", 502, "upstream_cut"),
        ("reset", Plan([*BEGUN, Fault.RESET]), "tcp", 502, "upstream_cut"),
        ("event", Plan([*BEGUN, error_event("the model fell over")]), "tcp", 502, "upstream_error"),
        ("silent", Plan([*BEGUN, Fault.STALL]), SILENT, 504, "silence_timeout"),
    ],
)
def test_an_upstream_that_fails_in_the_middle(
    counted: Counted, case: str, plan: Plan, model: str, status: int, reason: str
) -> None:
    reply, row = counted.ask(case, plan, model=model)
    assert reply.status == status
    assert (row["status"], row["end_reason"]) == (status, reason)
    assert reply.error["message"] in row["error"]
    # The same as a stream: its client had a 200, and was told in the stream.
    streamed, row = counted.ask(f"{case}-streamed", plan, model=model, stream=True)
    assert (streamed.status, row["status"], row["end_reason"]) == (200, 200, reason)
    assert b"event: error" in streamed.body


def test_an_upstream_that_refuses(counted: Counted) -> None:
    reply, row = counted.ask("refused", refusal(422, "not this"))
    assert (reply.status, row["status"], row["end_reason"]) == (422, 422, "upstream_error")
    assert "not this" in row["error"]


def test_an_answer_that_the_front_does_not_take(counted: Counted) -> None:
    reply, row = counted.ask("large", Plan(LONG))
    assert (reply.status, reply.error["code"]) == (502, "answer_too_large")
    assert (row["status"], row["end_reason"]) == (502, "client_gone")
    assert row["error"] == f"answer_too_large: {reply.error['message']}"


def test_a_client_that_leaves_has_no_status(counted: Counted) -> None:
    tokens = "streaming_daemon_tokens_total"
    before = counted.front.daemon.metric(tokens)
    counted.upstream.answer("left", Plan([*BEGUN, Fault.STALL]))
    with counted.front.connect() as wire:
        wire.send(counted.asking("left", model="tcp"))
        counted.front.daemon.wait_for_metric(tokens, before + len(WORDS))
    row = counted.relay.row("left")
    assert (row["status"], row["end_reason"], row["error"]) == (0, "client_gone", "")


def test_an_answer_that_takes_too_long(kernel: str, tmp_path: Path) -> None:
    with Upstream() as upstream:
        limits = "[timeouts]\nstream_timeout_ms = 1000\n"
        with serving(kernel, tmp_path, configuration(upstream, tmp_path, limits)) as front:
            counted = Counted(front, Relay(front.daemon, upstream), upstream)
            reply, row = counted.ask("slow", Plan([*BEGUN, Fault.STALL]))
            assert (reply.status, row["status"]) == (504, 504)
            assert reply.error["message"] in row["error"]


def test_an_answer_that_a_drain_cuts(kernel: str, tmp_path: Path) -> None:
    with Upstream() as upstream:
        limits = "[timeouts]\nshutdown_timeout_s = 1\n"
        with serving(kernel, tmp_path, configuration(upstream, tmp_path, limits)) as front, front.connect() as wire:
            counted = Counted(front, Relay(front.daemon, upstream), upstream)
            upstream.answer("drained", Plan([*BEGUN, Fault.STALL]))
            wire.send(counted.asking("drained", model="tcp"))
            upstream.wait_for_requests(1, "drained")
            assert front.daemon.stop() == 0
            reply = wire.reply()
        (row,) = counted.relay.rows("drained")
        assert (reply.status, row["status"], row["end_reason"]) == (503, 503, "shutdown")
        assert reply.error["message"] in row["error"]
