"""What a client of a relayed stream gets, by every way to an upstream: each token once, in order, in its format."""

from __future__ import annotations

import json
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, read_all
from tests.behaviour.relay_helpers import (
    MODEL,
    PLAIN,
    TRANSPORTS,
    Relay,
    assert_complete,
    by_all,
    content_of,
    error_at_end,
    relaying,
)
from tests.upstream import Fault, Framing, Plan, ask_usage, chunk, comment, delta, event, openai_stream, tool_call
from tests.upstream.patterns import UNICODE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TOKENS = ["The", " quick", " brown", " fox"]
# Escaped are five characters, in short, and other controls, as \u00xx. The rest is raw.
AWKWARD = ['say "hi"', "back\\slash", "line\nfeed", "tab\tcr\r", "\x00\x01\x1f", "\x7f", "a/b", "</script>"]
EVENT_BYTES_MAX = 1 << 20


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relaying(kernel, tmp_path_factory.mktemp("relay"), by_all, attempts_max=1, breaker_failures=0) as relay:
        yield relay


# ---- the content format


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("tcp", [False, True])
def test_a_stream_arrives_byte_for_byte(relay: Relay, transport: str, tcp: bool) -> None:
    assert_complete(relay.ask(Plan(openai_stream(TOKENS)), by=transport, tcp=tcp), TOKENS)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_character_arrives(relay: Relay, transport: str) -> None:
    tokens = [*AWKWARD, *UNICODE]
    assert_complete(relay.ask(Plan(openai_stream(tokens)), by=transport), tokens)


def test_escapes_of_the_upstream_are_understood(relay: Relay) -> None:
    written = [r"\u00e9", r"\ud83d\ude00", r"\/", r"\n\r\t", r"\"\\", r"a\u0000b", r"\uD834\uDD1E!"]
    tokens = [json.loads(f'"{text}"') for text in written]
    events = [event(f'{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}') for text in written]
    assert_complete(relay.ask(Plan([*events, DONE])), tokens)


def test_escapes_that_may_be_written_in_two_ways_mean_the_same(relay: Relay) -> None:
    events = [event(r'{"choices":[{"index":0,"delta":{"content":"\b\f \u0008\u000C"}}]}'), DONE]
    assert relay.ask(Plan(events)).contents == ["\b\f \b\f"]


def test_half_a_surrogate_pair_does_not_end_a_stream(relay: Relay) -> None:
    events = [event(r'{"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}'), *openai_stream(["after"])]
    answer = relay.ask(Plan(events))
    assert answer.contents[1:] == ["after"]
    assert answer.body.endswith(DONE)


def test_what_says_nothing_is_not_shown(relay: Relay) -> None:
    events = [
        *(delta(role="assistant", content=""), delta(content="a"), delta(content=""), delta(content=None), delta()),
        *(tool_call("look", '{"content":"not this"}'), delta(reasoning_content="nor this"), delta(content="b")),
        *(delta("stop"), event(json.dumps(chunk([], usage=ask_usage(1, 2)))), DONE),
    ]
    assert_complete(relay.ask(Plan(events)), ["a", "b"])


def test_only_the_delta_of_the_first_choice_is_content(relay: Relay) -> None:
    decoys = [
        '{"content":"no","choices":[{"content":"no","index":0,"delta":{"content":"1"}}]}',
        '{"choices":[{"delta":{"tool_calls":[{"content":"no"}],"content":"2"},"index":0}],"x":{"delta":{"content":"no"}}}',
        '{"error":null,"choices":[{"index":0,"delta":{"x":"\\"content\\":\\"no\\"","content":"3"}}]}',
        ' { "choices" : [ { "delta" : { "content" : "4" } , "index" : 0 } ] } ',
        '{"choices":[{"finish_reason":null,"delta":{"content":"5","role":"assistant"},"index":0}],"object":"x"}',
    ]
    assert_complete(relay.ask(Plan([*map(event, decoys), delta("stop"), DONE])), ["1", "2", "3", "4", "5"])


@pytest.mark.pairwise
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("wire_bytes", [0, 1])
def test_every_form_of_sse_is_understood(relay: Relay, transport: str, line_end: str, wire_bytes: int) -> None:
    text = b"".join(openai_stream(TOKENS)).decode().replace("\n", line_end)
    beginning = f"\ufeff: comment{line_end}id: 7{line_end}retry: 5{line_end}event: message{line_end}"
    odd = f"unknown: x{line_end}data{line_end}:{line_end}{line_end}"
    plan = Plan([(beginning + text + odd).encode()], wire_bytes=wire_bytes)
    assert_complete(relay.ask(plan, by=transport), TOKENS)


def test_data_of_several_lines_and_without_a_space_is_one_event(relay: Relay) -> None:
    text = b'data:{"choices":[{"index":0,\ndata: "delta":{"content":"one"}}\ndata:]}\n\n'
    assert_complete(relay.ask(Plan([comment("x"), text, delta("stop"), b"data:[DONE]\n\n"])), ["one"])


@pytest.mark.pairwise
@pytest.mark.parametrize("framing", list(Framing))
@pytest.mark.parametrize("cut", [{"wire_bytes": 1}, {"piece_bytes": 1}, {"piece_bytes": 7}, {"wire_bytes": 4096}])
def test_however_the_answer_is_cut(relay: Relay, framing: Framing, cut: dict[str, int]) -> None:
    answer = relay.ask(Plan(openai_stream(TOKENS), framing=framing, **cut))  # type: ignore[arg-type]
    assert_complete(answer, TOKENS)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_interim_responses_are_passed_over(relay: Relay, transport: str) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    assert_complete(relay.ask(Plan(openai_stream(TOKENS), interim=interim), by=transport), TOKENS)


def test_heads_may_be_large_but_not_endless(relay: Relay) -> None:
    filler = tuple((f"X-Filler-{n}", "y" * 1000) for n in range(15))
    assert_complete(relay.ask(Plan(openai_stream(TOKENS), headers=filler)), TOKENS)


@pytest.mark.parametrize(
    "content_type", ["text/event-stream; charset=utf-8", "Text/Event-Stream", "text/event-stream;charset=UTF-8"]
)
def test_the_content_type_may_be_written_in_any_way(relay: Relay, content_type: str) -> None:
    assert_complete(relay.ask(Plan(openai_stream(TOKENS), content_type=content_type)), TOKENS)


def test_an_answer_without_a_token_is_complete(relay: Relay) -> None:
    assert_complete(relay.ask(Plan(openai_stream([]))), [])


# ---- the OpenAI format


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_openai_format_passes_events_on_as_they_are(relay: Relay, transport: str) -> None:
    events = [*openai_stream(TOKENS, done=False), tool_call("look", "{}"), delta("stop", spaces=True), DONE]
    answer = relay.ask(Plan(events, piece_bytes=50), by=transport, format="openai")
    assert answer.raw == HEAD + b"".join(events)


def test_the_openai_format_adds_the_end_that_the_upstream_left_out(relay: Relay) -> None:
    events = openai_stream(TOKENS, done=False)
    assert relay.ask(Plan(events), format="openai").body == b"".join(events) + DONE


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", ["tcp", "h2"])
@pytest.mark.parametrize("where", ["", "options", "top"])
@pytest.mark.parametrize("style", ["openai", "content"])
def test_usage_goes_to_the_ledger_and_to_who_asked(relay: Relay, transport: str, where: str, style: str) -> None:
    events = openai_stream(TOKENS, usage=ask_usage(11, 4))
    asked: dict[str, Any] = {"stream_options": {"include_usage": True}}
    fields: dict[str, Any] = {"options": asked} if where == "options" else asked if where else {}
    client, name = relay.open(Plan(events), by=transport, format=style, **fields)
    with client:
        answer = read_all(client)
    assert relay.upstream.requests(name)[0].json["stream_options"] == {"include_usage": True}
    row = relay.row(name)
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (11, 4, False)
    if style == "openai":
        assert answer.body == b"".join(events if where else [*events[:-2], DONE])
    else:
        assert_complete(answer, TOKENS)


def test_a_stream_without_usage_is_estimated_in_the_ledger(relay: Relay) -> None:
    client, name = relay.open(Plan(openai_stream(TOKENS)), user_id=7)
    with client:
        body = read_all(client).raw
    row = relay.row(name)
    assert row["estimated"] is True
    assert row["completion_tokens"] == len(TOKENS)
    assert (row["user"], row["upstream"], row["model_asked"], row["model_answered"]) == (7, "tcp", MODEL, "test-model")
    assert (row["end_reason"], row["status"], row["error"], row["retries"]) == ("complete", 200, "", 0)
    assert row["bytes"] == len(body)
    assert 0 < row["first_token_ms"] <= row["duration_ms"]


# ---- sizes


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("style", ["content", "openai"])
@pytest.mark.parametrize("size", [5000, 20_000, 70_000, EVENT_BYTES_MAX - 400])
def test_giant_events_pass(relay: Relay, transport: str, style: str, size: int) -> None:
    tokens = ["before", "x" * size, "after", "é" * (size // 2), "end"]
    events = openai_stream(tokens)
    answer = relay.ask(Plan(events), by=transport, format=style)
    assert answer.body == (b"".join(events) if style == "openai" else content_of(tokens) + DONE)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_end_behind_many_comments_is_the_end(relay: Relay, transport: str) -> None:
    # In one event with [DONE], which is larger than what is kept for a client at a time.
    events = [*openai_stream(TOKENS, done=False), b": ping\n" * 4000 + DONE]
    answer = relay.ask(Plan(events), by=transport, format="openai")
    assert answer.body == b"".join(events[:-1]) + DONE


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_event_beyond_the_limit_is_an_error(relay: Relay, transport: str) -> None:
    with relay.ends("upstream_error"):
        answer = relay.ask(Plan(openai_stream(["before", "x" * (EVENT_BYTES_MAX + 100_000), "after"])), by=transport)
    assert answer.body.startswith(content_of(["before"]))
    error_at_end(answer)


def test_an_endless_line_is_an_error(relay: Relay) -> None:
    answer = relay.ask(Plan([*openai_stream(["before"], finish=None, done=False), b"data: " + b"x" * (4 << 20)]))
    error_at_end(answer)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ten_thousand_tokens_arrive_as_fast_as_they_can(relay: Relay, transport: str) -> None:
    tokens = [f"token_{number} " for number in range(10_000)]
    body = b"".join(openai_stream(tokens))
    assert_complete(relay.ask(Plan([body], piece_bytes=16_000), by=transport), tokens)


@pytest.mark.pairwise
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transport", ["tcp", "h2"])
def test_any_sizes_in_any_pieces(relay: Relay, transport: str, seed: int) -> None:
    randomness = random.Random(seed)
    tokens = ["é\n" * randomness.choice((1, 3, 900, 9000, 30_000)) for _ in range(40)]
    plan = Plan(openai_stream(tokens), piece_bytes=randomness.randrange(100, 70_000))
    assert_complete(relay.ask(plan, by=transport), tokens)


# ---- many at once


def own_tokens(name: str) -> Sequence[str]:
    return [f"{name} {number} " for number in range(30)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_hundred_streams_at_once_are_all_right(relay: Relay, transport: str) -> None:
    plan = Plan(lambda request: openai_stream(own_tokens(request.header("X-Request-Id") or "")), interval_s=0.005)
    model = f"many {transport}"
    begun = [
        relay.open(plan, by=transport, model=model, request_id=f"{model.replace(' ', '-')}-{number}")[0]
        for number in range(200)
    ]
    for number, client in enumerate(begun):
        assert_complete(read_all(client), own_tokens(f"many-{transport}-{number}"))
    requests = relay.upstream.requests(model)
    assert len(requests) == 200


@pytest.mark.parametrize("transport", PLAIN)
def test_one_that_is_cut_does_not_disturb_the_others(relay: Relay, transport: str) -> None:
    whole = Plan(openai_stream(TOKENS), interval_s=0.02)
    broken = Plan(openai_stream(TOKENS), interval_s=0.02, fault=Fault.RESET, fault_at=500)
    begun = [relay.open(broken if number % 3 == 0 else whole, by=transport)[0] for number in range(30)]
    for number, client in enumerate(begun):
        answer = read_all(client)
        if number % 3 == 0:
            error_at_end(answer)
        else:
            assert_complete(answer, TOKENS)


# ---- the daemon's end


HOGS = '[backend.hogs]\nclass = "example_backends:Hogs"\n'


@pytest.mark.parametrize("reads", [True, False])
def test_every_stream_that_a_shutdown_ends_has_its_row(kernel: str, tmp_path: Path, reads: bool) -> None:
    # Who reads nothing keeps his stream open, until the daemon leaves without him.
    text = TOKENS if reads else ["x" * 1000] * 2000
    plan = Plan(openai_stream(text, finish=None, done=False), fault=Fault.STALL)
    other = f"{HOGS}[timeouts]\nshutdown_timeout_s = 1\n"
    with relaying(kernel, tmp_path, by_all, other, attempts_max=1, breaker_failures=0) as relay:
        begun = [relay.open(plan, by=transport) for transport in TRANSPORTS for _ in range(60)]
        for client, _ in begun:
            assert client.recv(1, socket.MSG_PEEK)
        # The streams end in the plane before the control plane has a turn.
        assert relay.daemon.ask({"backend": "hogs"}).contents == ["done"]
        assert relay.daemon.stop() == 0
        rows = [row for _, name in begun for row in relay.rows(name)]
        assert [row["request_id"] for row in rows] == [name for _, name in begun]
        assert {row["end_reason"] for row in rows} == {"shutdown"}
        assert all(row["completion_tokens"] > 0 and row["bytes"] > 0 for row in rows)
        assert all(0 < row["first_token_ms"] < row["duration_ms"] for row in rows)
        if reads:
            for client, _ in begun:
                error_at_end(read_all(client))
