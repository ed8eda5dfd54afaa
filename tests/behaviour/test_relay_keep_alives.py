"""While a model is silent its client hears comments: late enough for an error's status, and never in an event."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, Answer
from tests.behaviour.relay_helpers import (
    Relay,
    assert_complete,
    by_all,
    content_of,
    error_at_end,
    refusal,
    relaying,
    without_comments,
)
from tests.upstream import Fault, Plan, Upstream, Wait, comment, delta, openai_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.upstream.plan import Step

KEEP_ALIVE_MS = 300
COMMENT = b": keep-alive\n\n"
TOKENS = ["The", " quick", " brown"]
BEGUN = openai_stream(TOKENS, finish=None, done=False)
TRANSPORTS = ("tcp", "unix", "tls", "h2")


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    streaming = f"[streaming]\nkeep_alive_ms = {KEEP_ALIVE_MS}\n"
    directory = tmp_path_factory.mktemp("relay")

    def tables(upstream: Upstream) -> list[dict[str, object]]:
        return [*by_all(upstream), *by_all(upstream, "-quick", silence_timeout_ms=800)]

    with relaying(kernel, directory, tables, streaming, attempts_max=1, breaker_failures=0) as relay:
        yield relay


def first_byte_s(relay: Relay, plan: Plan, transport: str) -> tuple[float, Answer]:
    """When the client got something, and everything that it got."""
    began_s = time.monotonic()
    client, _ = relay.open(plan, by=transport)
    pieces: list[bytes] = []
    with client:
        client.settimeout(10)
        pieces.append(client.recv(65_536))
        first_s = time.monotonic() - began_s
        while piece := client.recv(65_536):
            pieces.append(piece)
    return first_s, Answer(b"".join(pieces))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("where", ["before the head", "before the first token"])
def test_a_model_that_thinks_long_keeps_its_client(relay: Relay, transport: str, where: str) -> None:
    plan = Plan(openai_stream(TOKENS))
    plan = replace(plan, head_delay_s=1.3) if where == "before the head" else replace(plan, body_delay_s=1.3)
    first_s, answer = first_byte_s(relay, plan, transport)
    assert KEEP_ALIVE_MS / 1000 - 0.02 <= first_s < 1.2
    assert answer.raw.startswith(HEAD + COMMENT)
    count = answer.body.count(COMMENT)
    assert 2 <= count <= 4
    assert answer.body == COMMENT * count + content_of(TOKENS) + DONE


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("style", ["content", "openai"])
def test_a_pause_in_mid_stream_is_filled(relay: Relay, transport: str, style: str) -> None:
    events = openai_stream(TOKENS)
    answer = relay.ask(Plan([*events[:2], Wait(1), *events[2:]]), by=transport, format=style)
    expected = b"".join(events) if style == "openai" else content_of(TOKENS) + DONE
    assert without_comments(answer.body) == expected
    assert 2 <= answer.body.count(COMMENT) <= 3
    assert not re.search(rb"[^\n]: keep-alive|[^\n]\n: keep-alive", answer.body)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_half_an_event_is_not_shown_and_not_broken_by_a_comment(relay: Relay, transport: str) -> None:
    token = delta(content="split in the middle")
    events: list[Step] = [
        *openai_stream(["a"], finish=None, done=False),
        token[:40],
        Wait(0.8),
        token[40:],
        delta("stop"),
        DONE,
    ]
    answer = relay.ask(Plan(events), by=transport, format="openai")
    assert COMMENT in answer.body
    assert without_comments(answer.body) == b"".join(item for item in events if isinstance(item, bytes))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_comments_of_the_upstream_are_no_sign_of_the_model(relay: Relay, transport: str) -> None:
    thinking: list[Step] = [comment("PROCESSING"), Wait(0.1)] * 12
    answer = relay.ask(Plan([*thinking, *openai_stream(TOKENS)]), by=transport)
    assert answer.raw.startswith(HEAD + COMMENT)
    assert without_comments(answer.body) == content_of(TOKENS) + DONE


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_quick_error_keeps_its_status(relay: Relay, transport: str) -> None:
    assert relay.ask(refusal(500), by=transport).status == 502


LATE_ERRORS = {
    "500": refusal(500),
    "400": refusal(400, "too long"),
    "reset": Plan(fault=Fault.RESET, fault_in_head=True, fault_at=0),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", LATE_ERRORS)
def test_an_error_after_a_comment_is_an_event(relay: Relay, transport: str, name: str) -> None:
    plan = LATE_ERRORS[name]
    late = replace(plan, head_delay_s=0.8)
    answer = relay.ask(late, by=transport)
    assert answer.raw.startswith(HEAD + COMMENT)
    error = error_at_end(answer)
    assert name != "400" or "too long" in error["message"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_comments_do_not_put_the_limits_off(relay: Relay, transport: str) -> None:
    began_s = time.monotonic()
    answer = relay.ask(Plan(BEGUN, fault=Fault.STALL), by=f"{transport}-quick")
    assert 0.75 < time.monotonic() - began_s < 2.3
    error_at_end(answer)
    assert without_comments(answer.raw).startswith(HEAD + content_of(TOKENS))
    assert 1 <= answer.body.count(COMMENT) <= 2


def test_a_stream_without_silences_has_no_comments(relay: Relay) -> None:
    plan = Plan(openai_stream(TOKENS * 5), interval_s=0.05)
    for transport in TRANSPORTS:
        assert_complete(relay.ask(plan, by=transport), TOKENS * 5)
