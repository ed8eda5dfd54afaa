"""Upstreams that fail: a status before the first byte, an error event after it, never a false end, in time."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, LATE_S_MAX
from tests.behaviour.relay_helpers import (
    TRANSPORTS,
    Relay,
    assert_complete,
    by,
    by_all,
    content_of,
    ended,
    envelope,
    error_at_end,
    refusal,
    relaying,
)
from tests.ports import unused_port
from tests.upstream import (
    Accept,
    Fault,
    Framing,
    Plan,
    Upstream,
    Wait,
    chunk,
    delta,
    error_event,
    event,
    full_backlog,
    openai_stream,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.behaviour.daemon_process import Answer
    from tests.upstream.plan import Step

TOKENS = ["The", " quick", " brown"]
BEGUN = openai_stream(TOKENS, finish=None, done=False)
ROLE = delta(role="assistant", content="")
QUICK_MS = 1200  # of what a stream that is fine takes the eighth part of at a time
SHORT_LIMITS = {
    "connect_timeout_ms": QUICK_MS,
    "head_timeout_ms": QUICK_MS,
    "first_token_timeout_ms": QUICK_MS,
    "silence_timeout_ms": QUICK_MS,
}
FRAMES = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64"  # SETTINGS, with which a server of HTTP/2 begins
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
BAD_EVENTS = [event('{"choices":['), event("not JSON"), event('"text"'), event("[1]")]


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("relay")
    backlog = str(directory / "full.sock")
    with (
        contextlib.ExitStack() as servers,
        full_backlog() as port,
        full_backlog(backlog),
    ):
        closing, resetting, silent = (servers.enter_context(Upstream()) for _ in range(3))
        closing.accept, resetting.accept, silent.accept = Accept.CLOSE, Accept.RESET, Accept.SILENT

        def tables(upstream: Upstream) -> list[dict[str, object]]:
            refused = f"http://127.0.0.1:{unused_port()}/v1"
            return [
                *by_all(upstream),
                *by_all(upstream, "-quick", **SHORT_LIMITS),
                *(by(transport, upstream, f"{transport}-patient") for transport in ("tcp", "h2")),
                {"name": "refused", "api_base": refused},
                {"name": "refused-tls", "api_base": refused.replace("http", "https")},
                {"name": "no-socket", "api_socket": str(directory / "nobody.sock")},
                {"name": "no-name", "api_base": "http://nowhere.invalid/v1", **SHORT_LIMITS},
                {"name": "hung", "api_base": f"http://127.0.0.1:{port}/v1", **SHORT_LIMITS},
                {"name": "hung-tls", "api_base": f"https://127.0.0.1:{port}/v1", **SHORT_LIMITS},
                {"name": "hung-unix", "api_socket": backlog, **SHORT_LIMITS},
                *by_all(closing, "-close"),
                *by_all(resetting, "-reset"),
                # Its plain port reads, and knows nothing of TLS.
                *(
                    by(
                        transport,
                        silent,
                        f"{transport}-no-tls",
                        **SHORT_LIMITS,
                        api_base=f"https://127.0.0.1:{silent.tcp_port}",
                    )
                    for transport in ("tls", "h2")
                ),
                by("tls", upstream, "untrusted", ca_file="/etc/ssl/certs/ca-certificates.crt"),
            ]

        with relaying(kernel, directory, tables, attempts_max=1, breaker_failures=0) as relay:
            yield relay


QUICK = [f"{transport}-quick" for transport in TRANSPORTS]


def in_time(began_s: float) -> bool:
    """Whether a short limit, and not much more, has passed."""
    return QUICK_MS / 1000 - 0.05 <= time.monotonic() - began_s < QUICK_MS / 1000 + LATE_S_MAX


def assert_refused(answer: Answer, status: int, style: str = "content") -> str:
    """A whole HTTP response in place of a stream, in the stream's format: what it says."""
    assert not answer.reset
    assert answer.status == status
    assert b"[DONE]" not in answer.raw
    if style == "openai":
        return str(envelope(answer)["message"])
    return str(answer.problem["detail"])


# ---- before the first byte: connecting


@pytest.mark.pairwise
@pytest.mark.parametrize("style", ["content", "openai"])
@pytest.mark.parametrize("name", ["refused", "refused-tls", "no-socket", "no-name"])
def test_nobody_there_is_a_502(relay: Relay, name: str, style: str) -> None:
    with relay.ends("upstream_unreachable"):
        assert_refused(relay.ask(by=name, format=style), 502, style)


@pytest.mark.parametrize("name", ["hung", "hung-tls", "tls-no-tls", "h2-no-tls"])
def test_a_connect_that_hangs_is_a_504_in_time(relay: Relay, name: str) -> None:
    began_s = time.monotonic()
    with relay.ends("connect_timeout"):
        assert_refused(relay.ask(by=name), 504)
    assert in_time(began_s)


def test_a_socket_whose_backlog_is_full_is_an_error_in_time(relay: Relay) -> None:
    # Linux says EAGAIN at once, and not when there is room: to wait for it or to give up are both fair.
    began_s = time.monotonic()
    answer = relay.ask(by="hung-unix")
    assert time.monotonic() - began_s < QUICK_MS / 1000 + LATE_S_MAX
    assert_refused(answer, answer.status)
    assert answer.status in {502, 504}


def test_a_certificate_that_is_not_trusted_is_a_502_that_says_so(relay: Relay) -> None:
    before = len(relay.upstream.requests())
    assert "certificate" in assert_refused(relay.ask(Plan(openai_stream(TOKENS)), by="untrusted"), 502)
    assert len(relay.upstream.requests()) == before


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("accept", [Accept.CLOSE, Accept.RESET])
def test_a_connection_that_is_closed_at_once_is_a_502(relay: Relay, transport: str, accept: Accept) -> None:
    assert_refused(relay.ask(by=f"{transport}-{accept.value}"), 502)


# ---- before the first byte: answers


STATUSES = [
    *((500, 502), (501, 502), (502, 502), (503, 503), (504, 504), (429, 429), (529, 502)),
]


@pytest.mark.pairwise
@pytest.mark.parametrize("style", ["content", "openai"])
@pytest.mark.parametrize("transport", ["tcp", "unix", "tls", "h2"])
@pytest.mark.parametrize(("sent", "status"), STATUSES)
def test_an_error_status_is_told(relay: Relay, transport: str, sent: int, status: int, style: str) -> None:
    with relay.ends("upstream_error"):
        answer = relay.ask(refusal(sent, "too much of it"), by=transport, format=style)
    assert "too much of it" in assert_refused(answer, status, style)


@pytest.mark.pairwise
@pytest.mark.parametrize("style", ["content", "openai"])
@pytest.mark.parametrize("transport", ["tcp", "h2"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_the_upstream_refuses_reaches_the_client_as_it_is(
    relay: Relay, transport: str, status: int, style: str
) -> None:
    body = json.dumps(
        {"error": {"message": "no", "type": "t", "param": "messages", "code": "c", "extra": [1]}}
    ).encode()
    with relay.ends("upstream_error"):
        answer = relay.ask(refusal(status, body=body), by=transport, format=style)
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(body)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_a_key_in_an_upstreams_error_does_not_reach_the_client(relay: Relay, transport: str) -> None:
    answer = relay.ask(refusal(401, "Incorrect API key provided: sk-abcdefgh12345678"), by=transport)
    assert answer.status == 401
    assert b"abcdefgh" not in answer.raw
    assert b"Incorrect API key" in answer.raw


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", ["tcp", "h2"])
@pytest.mark.parametrize(("seconds", "told"), [("7", "7"), ("0", None), ("Wed, 21 Oct 2015 07:28:00 GMT", None)])
def test_a_429_hands_on_when_to_come_back(relay: Relay, transport: str, seconds: str, told: str | None) -> None:
    # Each at an upstream of its own: one that asked for patience is left alone.
    answer = relay.ask(refusal(429, Retry_After=seconds), by=f"{transport}-patient" if told else transport)
    assert answer.status == 429
    assert answer.headers.get("retry-after") in {told, *([] if told else ["1"])}


def test_a_body_that_never_comes_does_not_hold_an_error_back(relay: Relay) -> None:
    plan = Plan([b'{"error":{"mess'], status=500, framing=Framing.LENGTH, length_extra=50, fault=Fault.STALL)
    began_s = time.monotonic()
    assert_refused(relay.ask(plan, by="tcp-quick"), 502)
    assert time.monotonic() - began_s < 2 * QUICK_MS / 1000 + LATE_S_MAX


def test_a_giant_error_body_is_bounded(relay: Relay) -> None:
    answer = relay.ask(Plan([b"x" * 1_000_000] * 20, status=500, content_type="text/plain"))
    assert_refused(answer, 502)
    assert len(answer.raw) < 4096


NO_STREAMS = {
    "redirect": Plan(status=307, headers=(("Location", "/elsewhere"),), content_type="", framing=Framing.LENGTH),
    "html": Plan([b"<html>hello</html>"], content_type="text/html"),
    "json": Plan([b'{"choices":[]}'], content_type="application/json"),
    "no type": Plan(openai_stream(TOKENS), content_type=""),
    "gzip": Plan([b"\x1f\x8b\x08"], headers=(("Content-Encoding", "gzip"),)),
    "204": Plan(status=204, content_type="", framing=Framing.LENGTH),
    "empty": Plan(),
    "only the role": Plan([ROLE]),
    "malformed only": Plan(BAD_EVENTS),
    "malformed only, and [DONE]": Plan([*BAD_EVENTS, DONE]),
    "error object": Plan([ROLE, error_event("the model fell over")]),
    "reset": Plan([ROLE], fault=Fault.RESET),
    "cut": Plan([ROLE], fault=Fault.CUT),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", ["tcp", "unix", "tls", "h2"])
@pytest.mark.parametrize("name", NO_STREAMS)
def test_an_answer_without_a_token_is_a_502(relay: Relay, transport: str, name: str) -> None:
    answer = relay.ask(NO_STREAMS[name], by=transport)
    if name == "error object":  # the upstream's own words, as they are
        assert (answer.status, envelope(answer)["message"]) == (502, "the model fell over")
    else:
        assert_refused(answer, 502)


HEADS = {
    "nothing": Plan(head=b"", framing=Framing.CLOSE),
    "no HTTP": Plan(head=b"SSH-2.0-OpenSSH_9.2\r\n\r\n", framing=Framing.CLOSE),
    "HTTP/2": Plan(head=FRAMES, framing=Framing.CLOSE),
    "status of two digits": Plan(head=b"HTTP/1.1 20 OK\r\n\r\n", framing=Framing.CLOSE),
    "half a head": Plan(fault=Fault.CUT, fault_in_head=True, fault_at=30),
    "reset in the head": Plan(fault=Fault.RESET, fault_in_head=True, fault_at=30),
    "reset before the head": Plan(fault=Fault.RESET, fault_in_head=True, fault_at=0),
    "giant": Plan(openai_stream(TOKENS), headers=tuple((f"X-{n}", "y" * 1000) for n in range(80))),
    "endless line": Plan(head=b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, framing=Framing.CLOSE),
    "two lengths": Plan(
        head=STREAM_HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        framing=Framing.CLOSE,
    ),
    "no length": Plan(head=STREAM_HEAD + b"Content-Length: x\r\n\r\n", framing=Framing.CLOSE),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_none_is_a_502(relay: Relay, transport: str, name: str) -> None:
    assert_refused(relay.ask(HEADS[name], by=transport), 502)


# ---- after the first byte


def rest_of(style: str) -> bytes:
    return HEAD + (b"".join(BEGUN) if style == "openai" else content_of(TOKENS))


CUTS = {
    "reset": (Plan(BEGUN, fault=Fault.RESET), "upstream_cut"),
    "cut": (Plan(BEGUN, fault=Fault.CUT), "upstream_cut"),
    "clean end without a finish_reason": (Plan(BEGUN), "upstream_cut"),
    "cut after the finish_reason": (Plan([*BEGUN, delta("stop")], fault=Fault.CUT), "upstream_cut"),
    "length is too long": (Plan(BEGUN, framing=Framing.LENGTH, length_extra=9, fault=Fault.CUT), "upstream_cut"),
    "length is too short": (
        Plan([*BEGUN, b" " * 40 + DONE], framing=Framing.LENGTH, length_extra=-40),
        "upstream_cut",
    ),
    "closed without an end": (Plan(BEGUN, framing=Framing.CLOSE), "upstream_cut"),
    "half an event": (Plan([*BEGUN, b'data: {"choices":[{"ind'], framing=Framing.CLOSE), "upstream_cut"),
    "error object": (Plan([*BEGUN, error_event("the model fell over"), DONE]), "upstream_error"),
    "error event": (Plan([*BEGUN, b'event: error\ndata: {"error":"the model fell over"}\n\n']), "upstream_error"),
}
WITHOUT_LENGTHS = ("reset", "cut", "clean end without a finish_reason", "cut after the finish_reason", "error object")


@pytest.mark.pairwise
@pytest.mark.parametrize("style", ["content", "openai"])
@pytest.mark.parametrize(
    ("transport", "name"),
    [
        *(("tcp", name) for name in CUTS),
        *(("tls", name) for name in CUTS),
        *(("unix", name) for name in WITHOUT_LENGTHS),
        *(("h2", name) for name in WITHOUT_LENGTHS),
        *(("h2c", name) for name in WITHOUT_LENGTHS),
    ],
)
def test_a_stream_that_breaks_ends_with_an_error(relay: Relay, transport: str, name: str, style: str) -> None:
    plan, reason = CUTS[name]
    with relay.ends(reason):
        answer = relay.ask(plan, by=transport, format=style)
    error = error_at_end(answer)
    beginning = rest_of(style)
    if name == "cut after the finish_reason" and style == "openai":
        beginning += delta("stop")
    assert answer.raw.startswith(beginning + b"event: error\n")
    assert "fell over" in error["message"] or not name.startswith("error")


@pytest.mark.parametrize(
    "line", [b"xyz\r\n", b"\r\n", b"-5\r\n", b"5\n", b"ffffffffffffffffffff\r\n", b"1;" + b"x" * 99_000]
)
def test_malformed_chunks_are_an_error(relay: Relay, line: bytes) -> None:
    answer = relay.ask(Plan(openai_stream(TOKENS), size_lines={2: line}))
    assert answer.raw.startswith(HEAD + content_of(TOKENS[:1]))
    error_at_end(answer)


def test_a_chunk_that_is_longer_than_it_says_is_an_error(relay: Relay) -> None:
    answer = relay.ask(Plan(openai_stream(TOKENS), size_lines={2: b"10\r\n"}))
    error_at_end(answer)


@pytest.mark.parametrize("transport", ["h2", "h2c"])
def test_a_goaway_that_leaves_a_stream_out_is_an_error(relay: Relay, transport: str) -> None:
    error_at_end(relay.ask(Plan(BEGUN, fault=Fault.GOAWAY), by=transport))


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("seed", range(6))
def test_a_cut_at_any_byte_is_never_an_end(relay: Relay, transport: str, seed: int) -> None:
    length = sum(map(len, BEGUN))
    at = 1 + (seed * 7919) % length
    answer = relay.ask(Plan(BEGUN, framing=Framing.CLOSE, fault=Fault.RESET, fault_at=at), by=transport)
    assert b"[DONE]" not in answer.raw
    if answer.status == 200:
        error_at_end(answer)
    else:
        assert_refused(answer, 502)


# ---- true ends


TRUE_ENDS = {
    "[DONE]": Plan(openai_stream(TOKENS)),
    "[DONE] without a finish_reason": Plan(openai_stream(TOKENS, finish=None)),
    "finish_reason and a clean end": Plan(openai_stream(TOKENS, done=False)),
    "finish_reason and a length": Plan(openai_stream(TOKENS, done=False), framing=Framing.LENGTH),
    "finish_reason and a close": Plan(openai_stream(TOKENS, done=False), framing=Framing.CLOSE),
    "finish_reason in the last token": Plan([*BEGUN[:-1], delta("length", content=TOKENS[-1])]),
    "[DONE] and then a reset": Plan(openai_stream(TOKENS), fault=Fault.RESET),
    "[DONE] and then silence": Plan(openai_stream(TOKENS), fault=Fault.STALL),
    "[DONE] and then more": Plan([*openai_stream(TOKENS), *openai_stream(["not shown"])]),
    "malformed events between": Plan([BEGUN[0], *BAD_EVENTS, *BEGUN[1:], delta("stop"), DONE]),
    "unknown events between": Plan([*BEGUN, event(json.dumps({"object": "ping"})), event(json.dumps(chunk([]))), DONE]),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", ["tcp", "tls", "h2"])
@pytest.mark.parametrize("name", TRUE_ENDS)
def test_a_true_end_is_complete_at_once(relay: Relay, transport: str, name: str) -> None:
    began_s = time.monotonic()
    with relay.ends("complete"):
        assert_complete(relay.ask(TRUE_ENDS[name], by=transport), TOKENS)
    assert time.monotonic() - began_s < LATE_S_MAX


def test_malformed_events_are_counted(relay: Relay) -> None:
    name = 'streaming_daemon_upstream_malformed_events_total{upstream="tcp"}'
    before = relay.daemon.metric(name)
    assert_complete(relay.ask(TRUE_ENDS["malformed events between"]), TOKENS)
    relay.daemon.wait_for_metric(name, before + len(BAD_EVENTS))


# ---- limits


LIMITS = {
    "head_timeout": Plan(fault=Fault.STALL, fault_in_head=True, fault_at=0),
    "head_timeout in the head": Plan(fault=Fault.STALL, fault_in_head=True, fault_at=20),
    "first_token_timeout": Plan(fault=Fault.STALL),
    "first_token_timeout after the role": Plan([ROLE], fault=Fault.STALL),
    "first_token_timeout with comments": Plan([b": working\n\n"] * 100, interval_s=0.1),
}


# The role is shown in OpenAI's format: the head has left by then.
SILENT = [
    (name, style) for name in LIMITS for style in ("content", "openai") if style == "content" or "role" not in name
]


@pytest.mark.parametrize(("name", "style"), SILENT)
def test_silence_before_the_first_token_is_a_504_in_time(relay: Relay, name: str, style: str) -> None:
    # Half a head is none in HTTP/2.
    names = [one for one in QUICK if "h2" not in one] if "in the head" in name else QUICK
    began_s = time.monotonic()
    with relay.ends(name.partition(" ")[0], len(names)):
        answers = relay.ask_all(LIMITS[name], names, format=style)
        assert in_time(began_s)
    for answer in answers.values():
        assert_refused(answer, 504, style)


@pytest.mark.parametrize("style", ["content", "openai"])
def test_silence_in_mid_stream_is_an_error_in_time(relay: Relay, style: str) -> None:
    began_s = time.monotonic()
    with relay.ends("silence_timeout", len(QUICK)):
        answers = relay.ask_all(Plan(BEGUN, fault=Fault.STALL), QUICK, format=style)
        assert in_time(began_s)
    for answer in answers.values():
        assert answer.raw.startswith(rest_of(style))
        error_at_end(answer)


def test_a_slow_stream_within_the_limits_is_not_cut(relay: Relay) -> None:
    plan = Plan(openai_stream(TOKENS), head_delay_s=0.15, body_delay_s=0.1, interval_s=0.15)
    for answer in relay.ask_all(plan, QUICK).values():
        assert_complete(answer, TOKENS)


def test_a_whole_stream_has_a_limit(kernel: str, tmp_path: Path) -> None:
    limit = "[timeouts]\nstream_timeout_ms = 700\n"
    endless: list[Step] = [delta(content="x"), Wait(0.05)] * 100
    with relaying(kernel, tmp_path, by_all, limit, attempts_max=1) as relay:
        for plan in (Plan(endless), Plan(endless, head_delay_s=30)):
            began_s = time.monotonic()
            answers = relay.ask_all(plan, TRANSPORTS)
            assert 0.6 < time.monotonic() - began_s < 0.7 + LATE_S_MAX
            for answer in answers.values():
                if plan.head_delay_s:
                    assert_refused(answer, 504)
                else:
                    error_at_end(answer)
        relay.daemon.wait_for_metric(ended("stream_timeout"), 2 * len(TRANSPORTS))


# ---- nothing is left behind


def test_nothing_is_left_of_failures(relay: Relay) -> None:
    relay.daemon.wait_idle()
    descriptors = relay.daemon.descriptor_count()
    for plan in (*NO_STREAMS.values(), *HEADS.values(), *(plan for plan, _ in CUTS.values())):
        relay.ask(plan, by="tcp")
    relay.daemon.wait_idle()
    relay.daemon.wait_for_descriptors(descriptors + 2)  # one connection may be kept
    assert_complete(relay.ask(Plan(openai_stream(TOKENS))), TOKENS)
