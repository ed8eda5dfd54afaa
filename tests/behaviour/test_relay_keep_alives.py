"""While a model is silent its client hears comments: late enough for an error's status, and never in an event."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, LATE_S_MAX
from tests.behaviour.relay_helpers import (
    TRANSPORTS,
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

KEEP_ALIVE_S = 0.8  # so that a machine that is busy for a moment makes none of its own
PAUSE_S = 2.5  # long enough for two, or for one that comes late
COMMENT = b": keep-alive\n\n"
TOKENS = ["The", " quick", " brown"]
BEGUN = openai_stream(TOKENS, finish=None, done=False)
SILENCE_S = 2.5


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    streaming = f"[streaming]\nkeep_alive_ms = {KEEP_ALIVE_S * 1000:.0f}\n"
    directory = tmp_path_factory.mktemp("relay")

    def tables(upstream: Upstream) -> list[dict[str, object]]:
        return [*by_all(upstream), *by_all(upstream, "-quick", silence_timeout_ms=int(SILENCE_S * 1000))]

    with relaying(kernel, directory, tables, streaming, attempts_max=1, breaker_failures=0) as relay:
        yield relay


@pytest.mark.parametrize("where", ["before the head", "before the first token"])
def test_a_model_that_thinks_long_keeps_its_client(relay: Relay, where: str) -> None:
    plan = Plan(openai_stream(TOKENS))
    plan = replace(plan, head_delay_s=PAUSE_S) if where == "before the head" else replace(plan, body_delay_s=PAUSE_S)
    began_s = time.monotonic()
    for answer in relay.ask_all(plan, TRANSPORTS).values():
        assert answer.raw.startswith(HEAD + COMMENT)
        count = answer.body.count(COMMENT)
        assert 1 <= count <= (time.monotonic() - began_s) / KEEP_ALIVE_S
        assert answer.body == COMMENT * count + content_of(TOKENS) + DONE


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_first_comment_is_not_early(relay: Relay, transport: str) -> None:
    began_s = time.monotonic()
    client, _ = relay.open(Plan(head_delay_s=30), by=transport)
    with client:
        client.settimeout(LATE_S_MAX)
        assert client.recv(4096).startswith(HEAD)
        assert time.monotonic() - began_s >= KEEP_ALIVE_S - 0.02


@pytest.mark.parametrize("style", ["content", "openai"])
def test_a_pause_in_mid_stream_is_filled(relay: Relay, style: str) -> None:
    events = openai_stream(TOKENS)
    began_s = time.monotonic()
    for answer in relay.ask_all(Plan([*events[:2], Wait(PAUSE_S), *events[2:]]), TRANSPORTS, format=style).values():
        expected = b"".join(events) if style == "openai" else content_of(TOKENS) + DONE
        assert without_comments(answer.body) == expected
        assert 1 <= answer.body.count(COMMENT) <= (time.monotonic() - began_s) / KEEP_ALIVE_S
        assert not re.search(rb"[^\n]: keep-alive|[^\n]\n: keep-alive", answer.body)


def test_half_an_event_is_not_shown_and_not_broken_by_a_comment(relay: Relay) -> None:
    token = delta(content="split in the middle")
    begun: list[Step] = [*openai_stream(["a"], finish=None, done=False), token[:40]]
    events = [*begun, Wait(PAUSE_S), token[40:], delta("stop"), DONE]
    for answer in relay.ask_all(Plan(events), TRANSPORTS, format="openai").values():
        assert COMMENT in answer.body
        assert without_comments(answer.body) == b"".join(item for item in events if isinstance(item, bytes))


def test_comments_of_the_upstream_are_no_sign_of_the_model(relay: Relay) -> None:
    thinking: list[Step] = [comment("PROCESSING"), Wait(0.1)] * 25
    for answer in relay.ask_all(Plan([*thinking, *openai_stream(TOKENS)]), TRANSPORTS).values():
        assert answer.raw.startswith(HEAD + COMMENT)
        assert without_comments(answer.body) == content_of(TOKENS) + DONE


def test_a_quick_error_keeps_its_status(relay: Relay) -> None:
    assert {answer.status for answer in relay.ask_all(refusal(500), TRANSPORTS).values()} == {502}


LATE_ERRORS = {
    "500": refusal(500),
    "400": refusal(400, "too long"),
    "reset": Plan(fault=Fault.RESET, fault_in_head=True, fault_at=0),
}


@pytest.mark.parametrize("name", LATE_ERRORS)
def test_an_error_after_a_comment_is_an_event(relay: Relay, name: str) -> None:
    for answer in relay.ask_all(replace(LATE_ERRORS[name], head_delay_s=PAUSE_S), TRANSPORTS).values():
        assert answer.raw.startswith(HEAD + COMMENT)
        error = error_at_end(answer)
        assert name != "400" or "too long" in error["message"]


def test_comments_do_not_put_the_limits_off(relay: Relay) -> None:
    began_s = time.monotonic()
    names = [f"{transport}-quick" for transport in TRANSPORTS]
    answers = relay.ask_all(Plan(BEGUN, fault=Fault.STALL), names)
    seconds = time.monotonic() - began_s
    assert SILENCE_S - 0.05 < seconds < SILENCE_S + LATE_S_MAX
    for answer in answers.values():
        error_at_end(answer)
        assert without_comments(answer.raw).startswith(HEAD + content_of(TOKENS))
        assert 1 <= answer.body.count(COMMENT) <= seconds / KEEP_ALIVE_S


def test_a_stream_without_silences_has_no_comments(relay: Relay) -> None:
    plan = Plan(openai_stream(TOKENS * 5), interval_s=0.05)
    for answer in relay.ask_all(plan, TRANSPORTS).values():
        assert_complete(answer, TOKENS * 5)
