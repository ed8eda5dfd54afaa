"""Transfers with real TLS and HTTP/2 servers, and a plane that checks every command."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest

from backends.relay import Attempt, FailureKind
from daemon.plane import messages as m
from daemon.plane import state as st
from tests.daemon.control.transfer_plane import TIMEOUT_S, Plane, origin, plain_origin
from tests.ports import unused_port
from tests.upstream import (
    Accept,
    After,
    Fault,
    Framing,
    Gate,
    Plan,
    Upstream,
    Wait,
    full_backlog,
    openai_stream,
)
from tests.upstream.certificate import make_certificate, server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from backends.relay import Failure, Origin

    Make = Callable[..., Origin]

EVENTS = openai_stream([f"token {number} " for number in range(20)])
BODY = b"".join(EVENTS)


def http1_by_tls(upstream: Upstream, **changes: object) -> Origin:
    return origin(upstream, **changes)


def http2_by_tls(upstream: Upstream, **changes: object) -> Origin:
    return origin(upstream, http2=True, **changes)


every_protocol = pytest.mark.parametrize("make", [http1_by_tls, http2_by_tls, plain_origin])
by_tls = pytest.mark.parametrize("make", [http1_by_tls, http2_by_tls])
by_http2 = pytest.mark.parametrize("make", [http2_by_tls, plain_origin])


def failure_of(plane: Plane, asked: Origin, model: str = "m") -> Failure:
    seen = plane.begin(1, asked, model)
    plane.until_over(seen)
    assert seen.failure is not None
    assert not seen.is_started
    assert not plane.transfers.active_count
    for secret in ("127.0.0.1", "localhost", str(asked.port)):
        assert secret not in seen.failure.detail
    return seen.failure


# ---- streams


@every_protocol
def test_a_stream_is_started_pushed_and_finished(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", Plan(EVENTS, interval_s=0.002))
    seen = plane.begin(1, make(upstream))
    plane.until_over(seen)
    assert seen.is_complete
    assert seen.body == BODY
    assert seen.push_count > 1
    plane.until(lambda: not plane.transfers.active_count, "the transfer forgotten")
    assert upstream.requests()[0].protocol == ("HTTP/1.1" if make is http1_by_tls else "HTTP/2")


@every_protocol
def test_the_request_is_what_the_attempt_says_and_nothing_more(plane: Plane, upstream: Upstream, make: Make) -> None:
    headers = (("Authorization", "Bearer KEY"), ("X-Empty", ""), ("Content-Type", "application/json"))
    body = b'{"model":"m","padding":"' + b"\x00x" * 100_000 + b'"}'
    asked = make(upstream)
    seen = plane.begin_attempt(1, Attempt(asked, "/v1/a/../chat/completions?x=%20", headers, body))
    plane.until_over(seen)
    assert seen.is_complete
    request = upstream.requests()[0]
    assert (request.method, request.path, request.body) == ("POST", "/v1/a/../chat/completions?x=%20", body)
    assert request.header("authorization") == "Bearer KEY"
    assert not request.header("x-empty")
    sent = {name.lower() for name, _ in request.headers}
    assert sent - {"host"} == {"authorization", "x-empty", "content-type", "content-length"}
    if not asked.http2:
        assert request.header("host") == asked.authority


def test_http_2_falls_back_to_http_1_1_by_tls(plane: Plane) -> None:
    upstream = Upstream()
    upstream.alpn = ("http/1.1",)
    with upstream:
        seen = plane.begin(1, http2_by_tls(upstream))
        plane.until_over(seen)
        assert seen.is_complete
        assert upstream.requests()[0].protocol == "HTTP/1.1"


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_unix_socket(plane: Plane, upstream: Upstream, scheme: str) -> None:
    changes = {"scheme": scheme, "http2": True, "socket_path": upstream.unix_path, "connect_timeout_ms": 2000}
    seen = plane.begin(1, origin(upstream, **changes))
    plane.until_over(seen)
    if scheme == "https":  # the upstream's Unix socket speaks no TLS
        assert seen.failure is not None
        assert seen.failure.kind in {FailureKind.CONNECT, FailureKind.CONNECT_TIMEOUT}
    else:
        assert seen.is_complete
        assert upstream.requests()[0].header("host") in {None, "127.0.0.1", "localhost"}


@by_http2
def test_many_streams_share_few_connections(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", Plan(EVENTS, interval_s=0.02))
    asked = make(upstream)
    streams = [plane.begin(slot, asked) for slot in range(200)]
    plane.until_over(*streams)
    assert all(seen.is_complete and seen.body == BODY for seen in streams)
    assert len(upstream.connections()) <= 4
    assert max(plane.write_sizes) <= m.MESSAGE_BYTES_MAX
    assert len(plane.write_sizes) < sum(seen.push_count for seen in streams), "many streams share a write"


def test_what_comes_at_once_is_pushed_at_once(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan([BODY[:3000]], piece_bytes=10, wire_bytes=1 << 20))
    seen = plane.begin(1, http1_by_tls(upstream))
    plane.until_over(seen)
    assert seen.body == BODY[:3000]
    assert seen.push_count < 100, "300 HTTP chunks"


@every_protocol
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT])
def test_a_body_that_is_cut_is_not_complete(plane: Plane, upstream: Upstream, make: Make, fault: Fault) -> None:
    upstream.answer("m", Plan([*EVENTS, Wait(0.05)], fault=fault))
    seen = plane.begin(1, make(upstream))
    plane.until_over(seen)
    assert seen.is_finished
    assert not seen.is_complete
    assert seen.body == BODY


def test_a_body_that_ends_with_its_connection_is_complete_only_after_a_goodbye(
    plane: Plane, upstream: Upstream
) -> None:
    upstream.answer("closed", Plan(EVENTS, framing=Framing.CLOSE))
    upstream.answer("cut", Plan(EVENTS, framing=Framing.CLOSE, fault=Fault.CUT))
    closed, cut = (plane.begin(slot, http1_by_tls(upstream), model) for slot, model in enumerate(("closed", "cut")))
    plane.until_over(closed, cut)
    assert closed.body == cut.body == BODY
    assert closed.is_complete
    assert not cut.is_complete


def test_an_interim_head_and_trailers_are_no_head(plane: Plane, upstream: Upstream) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    tail = b"5\r\nhello\r\n0\r\nX-Trailer: HTTP/1.1\r\n\r\n"
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    upstream.answer("m", Plan([tail], head=head, framing=Framing.LENGTH, interim=interim))
    seen = plane.begin(1, http1_by_tls(upstream))
    plane.until_over(seen)
    assert seen.is_complete
    assert seen.body == b"hello"


# ---- credit


@every_protocol
def test_a_plane_that_releases_nothing_gets_no_more_than_its_credit(
    plane: Plane, upstream: Upstream, make: Make
) -> None:
    upstream.answer("m", Plan([b"x" * 10_000] * 300))
    plane.releases = False
    asked = make(upstream)
    streams = [plane.begin(slot, asked) for slot in range(4)]
    plane.until(lambda: all(len(seen.body) == m.RAW_CREDIT_BYTES for seen in streams), "all credit used")
    cpu_before_s = time.process_time()
    plane.go_on(0.5)
    assert all(len(seen.body) == m.RAW_CREDIT_BYTES for seen in streams)
    assert time.process_time() - cpu_before_s < 0.4, "nothing spins"
    plane.releases = True
    for slot in range(4):
        plane.release(slot, m.RAW_CREDIT_BYTES)
    plane.until_over(*streams)
    assert all(seen.is_complete and len(seen.body) == 3_000_000 for seen in streams)


@by_http2
def test_no_more_than_a_window_is_under_way_by_http2(plane: Plane, upstream: Upstream, make: Make) -> None:
    """By HTTP/1.1 it is the kernel's buffers that fill. Here libcurl reads, and keeps up to 10 MiB of each stream."""
    upstream.answer("m", Plan([b"x" * 50_000] * 400))
    plane.releases = False
    seen = plane.begin(1, make(upstream))
    plane.until(lambda: len(seen.body) == m.RAW_CREDIT_BYTES, "all credit used")
    (request,) = upstream.requests()
    for _ in range(10):
        plane.go_on(0.1)
        assert m.RAW_CREDIT_BYTES <= request.sent_bytes < 11_000_000
    plane.cancel(1)
    plane.until(lambda: not plane.transfers.active_count, "the stream forgotten")


def test_a_full_command_pipe_loses_nothing(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan([b"x" * 1000] * 100))
    plane.reads = False
    asked = http1_by_tls(upstream)
    streams = [plane.begin(slot, asked) for slot in range(40)]
    time.sleep(0.5)
    plane.reads = True
    plane.until_over(*streams)
    assert all(seen.is_complete and len(seen.body) == 100_000 for seen in streams)


def test_what_was_released_to_an_earlier_attempt_gives_no_credit(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan([b"x" * 30_000]))
    plane.releases = False
    seen = plane.begin(1, http1_by_tls(upstream), number=2)
    plane.channels.event(m.RELEASED, slot=1, generation=8, released_bytes=9000)
    plane.channels.event(m.RELEASED, slot=1, generation=7, released_bytes=9000)
    plane.until(lambda: len(seen.body) == m.RAW_CREDIT_BYTES, "all credit used")
    plane.go_on(0.2)
    assert len(seen.body) == m.RAW_CREDIT_BYTES


# ---- connections


@every_protocol
def test_connections_are_kept(plane: Plane, upstream: Upstream, make: Make) -> None:
    asked = make(upstream)
    for slot in range(5):
        plane.until_over(plane.begin(slot, asked))
    assert len(upstream.connections()) == 1


@every_protocol
@pytest.mark.parametrize("after", [After.CLOSE_ON_REQUEST, After.RESET_ON_REQUEST])
def test_a_kept_connection_that_is_dead_is_replaced(plane: Plane, upstream: Upstream, make: Make, after: After) -> None:
    upstream.answer("m", Plan(EVENTS, after=after), Plan(EVENTS))
    asked = make(upstream)
    plane.until_over(plane.begin(1, asked))
    if asked.http2:
        upstream.close_idle()
    seen = plane.begin(2, asked)
    plane.until_over(seen)
    assert seen.is_complete
    assert len(upstream.connections()) == 2


def test_idle_connections_are_bounded_in_number_and_time(plane: Plane, upstream: Upstream) -> None:
    asked = http1_by_tls(upstream, idle_connections_max=3, idle_timeout_ms=2000)
    gates = [Gate() for _ in range(10)]
    for slot, gate in enumerate(gates):
        upstream.answer(f"m{slot}", Plan([*EVENTS, gate]))
    streams = [plane.begin(slot, asked, f"m{slot}") for slot in range(10)]
    plane.until(lambda: all(seen.body == BODY for seen in streams), "ten connections")
    for seen, gate in zip(streams, gates, strict=True):
        gate.open()
        plane.until_over(seen)

    def open_count() -> int:
        return sum(record.closed_s is None for record in upstream.connections())

    plane.until(lambda: open_count() <= 3, "surplus connections closed")
    plane.until(lambda: open_count() == 0, "idle connections closed")
    again = plane.begin(1, asked)
    plane.until_over(again)
    assert again.is_complete


@every_protocol
@pytest.mark.parametrize("drained", [False, True])
def test_after_its_end_a_stream_leaves_its_connection_behind(
    plane: Plane, upstream: Upstream, make: Make, drained: bool
) -> None:
    gate = Gate()
    upstream.answer("m", Plan([*EVENTS, gate]), Plan(EVENTS))
    asked = make(upstream)
    seen = plane.begin(1, asked)
    plane.until(lambda: seen.body == BODY, "everything but the body's end")
    plane.stopped(1, st.CLIENT_GONE if drained else st.COMPLETE, drained=drained)
    plane.until(lambda: not plane.transfers.active_count, "the stream forgotten")
    plane.cancel(1)
    gate.open()
    upstream.journal.wait(lambda: upstream.requests()[0].ended_s is not None, "the body's end", 30)
    plane.go_on(1)  # until libcurl has read it
    plane.until_over(plane.begin(2, asked))
    assert not seen.is_finished
    assert len(upstream.connections()) == 1


def test_a_body_that_does_not_end_is_given_up(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("endless", Plan([*EVENTS, *[b"x" * 1000] * 1000], interval_s=0.001))
    upstream.answer("silent", Plan(EVENTS, fault=Fault.STALL))
    asked = http1_by_tls(upstream)
    for slot, model in enumerate(("endless", "silent")):
        seen = plane.begin(slot, asked, model)
        plane.until(lambda seen=seen: len(seen.body) >= len(BODY), "the stream's own end")  # type: ignore[misc]
        plane.stopped(slot)
        upstream.wait_gone(upstream.requests(model)[0], 3.0)


# ---- leaving


@every_protocol
@pytest.mark.parametrize("by_plane", [True, False])
def test_leaving_in_mid_body_is_seen_at_once(plane: Plane, upstream: Upstream, make: Make, by_plane: bool) -> None:
    upstream.answer("m", Plan(EVENTS, fault=Fault.STALL))
    upstream.answer("other", Plan(EVENTS, interval_s=0.03))
    asked = make(upstream)
    other = plane.begin(2, asked, "other")
    seen = plane.begin(1, asked)
    plane.until(lambda: seen.body == BODY, "the body so far")
    left_s = time.monotonic()
    if by_plane:
        plane.stopped(1, st.CLIENT_GONE)
    else:
        plane.cancel(1)
        plane.cancel(1)
        plane.cancel(77)
    assert upstream.wait_gone(upstream.requests("m")[0]) - left_s < TIMEOUT_S
    plane.until_over(other)
    assert other.is_complete, "the other stream goes on"
    assert not seen.is_over
    assert len(upstream.connections()) == (1 if asked.http2 else 2)


@every_protocol
@pytest.mark.parametrize("by_plane", [True, False])
def test_how_long_leaving_took_is_told_once(plane: Plane, upstream: Upstream, make: Make, by_plane: bool) -> None:
    upstream.answer("m", Plan(EVENTS, fault=Fault.STALL))
    seen = plane.begin(1, make(upstream))
    plane.until(lambda: seen.body == BODY, "the body so far")
    told: list[float] = []
    if by_plane:
        plane.stopped(1, st.CLIENT_GONE)
        upstream.wait_gone(upstream.requests("m")[0])
    plane.cancel(1, told.append)
    plane.cancel(1, told.append)
    plane.until(lambda: bool(told), "the time")
    plane.go_on(0.05)
    assert len(told) == 1
    assert 0 < told[0] < TIMEOUT_S


def test_of_what_had_ended_by_itself_no_time_is_told(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan(EVENTS))
    seen = plane.begin(1, origin(upstream))
    plane.until_over(seen)
    told: list[float] = []
    plane.stopped(1, st.CLIENT_GONE)
    plane.cancel(1, told.append)
    plane.go_on(0.1)
    assert not told


@every_protocol
def test_leaving_before_the_head_is_seen_at_once(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", Plan(EVENTS, head_delay_s=60))
    plane.begin(1, make(upstream))
    upstream.wait_for_requests(1)
    left_s = time.monotonic()
    plane.cancel(1)
    if make is http1_by_tls:  # HTTP/1.1's server sees a connection's end when it writes, or by its FIN
        upstream.journal.wait(
            lambda: upstream.connections()[0].closed_s is not None, "the connection closed", TIMEOUT_S
        )
    else:
        assert upstream.wait_gone(upstream.requests("m")[0]) - left_s < TIMEOUT_S
    plane.go_on(0.05)
    assert plane.streams[1].failure is None


def test_leaving_while_paused(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan([b"x" * 10_000] * 1000))
    plane.releases = False
    seen = plane.begin(1, http1_by_tls(upstream))
    plane.until(lambda: len(seen.body) == m.RAW_CREDIT_BYTES, "all credit used")
    plane.stopped(1, st.WRITE_TIMEOUT)
    upstream.wait_gone(upstream.requests("m")[0])


def test_another_attempt_replaces_one_that_was_given_up(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("silent", Plan(fault=Fault.STALL))
    asked = http2_by_tls(upstream)
    first = plane.begin(1, asked, "silent")
    plane.until(lambda: first.is_started, "START")
    plane.cancel(1)
    second = plane.begin(1, asked, number=2)
    plane.until_over(second)
    assert second.is_complete
    upstream.wait_gone(upstream.requests("silent")[0])


# ---- answers that are no stream


@every_protocol
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_a_status_is_told_with_headers_and_body(plane: Plane, upstream: Upstream, make: Make, status: int) -> None:
    headers = (("Retry-After", "7"), ("X-Twice", "a"), ("X-Twice", "b"))
    upstream.answer("m", Plan([b'{"error":', b'{"message":"no"}}'], status, "application/json", headers))
    asked = make(upstream)
    failure = failure_of(plane, asked)
    assert (failure.kind, failure.status) == (FailureKind.STATUS, status)
    assert failure.body == b'{"error":{"message":"no"}}'
    assert failure.headers["retry-after"] == "7"
    assert failure.headers["x-twice"] == "a, b"
    assert failure.headers["content-type"] == "application/json"
    failure_of(plane, asked)
    assert len(upstream.connections()) == 1, "it is kept"


def test_of_a_long_body_64_kib_are_told(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan([b"x" * 30_000] * 10, 500))
    failure = failure_of(plane, http1_by_tls(upstream))
    assert failure.kind is FailureKind.STATUS
    assert failure.body == b"x" * 65536


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.STALL])
def test_of_a_status_whose_body_does_not_end_what_came_is_told(
    plane: Plane, upstream: Upstream, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.control.transfers.transfer.STATUS_BODY_TIMEOUT_S", 0.3)
    upstream.answer("m", Plan([b"half", Wait(0.05)], 503, fault=fault))
    failure = failure_of(plane, http2_by_tls(upstream))
    assert (failure.kind, failure.status, failure.body) == (FailureKind.STATUS, 503, b"half")


@every_protocol
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(plane: Plane, upstream: Upstream, make: Make, status: int) -> None:
    upstream.answer("m", Plan((), status, headers=(("Location", "/v1/elsewhere"),)))
    failure = failure_of(plane, make(upstream))
    assert (failure.kind, failure.status) == (FailureKind.REDIRECT, status)
    assert len(upstream.requests()) == 1


@every_protocol
@pytest.mark.parametrize("content_type", ["application/json", "text/event-streams", ""])
def test_what_is_no_event_stream(plane: Plane, upstream: Upstream, make: Make, content_type: str) -> None:
    upstream.answer("m", Plan(EVENTS, content_type=content_type))
    failure = failure_of(plane, make(upstream))
    assert (failure.kind, failure.status) == (FailureKind.NOT_A_STREAM, 200)


@every_protocol
def test_what_is_compressed(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", Plan([b"\x1f\x8b"], headers=(("Content-Encoding", "gzip"),)))
    upstream.answer("identity", Plan(EVENTS, headers=(("Content-Encoding", "identity"),)))
    assert failure_of(plane, make(upstream)).kind is FailureKind.COMPRESSED
    plane.until_over(fine := plane.begin(2, make(upstream), "identity"))
    assert fine.is_complete


@every_protocol
@pytest.mark.parametrize("line_bytes", [1000, 200_000])
def test_a_head_that_is_too_large(plane: Plane, upstream: Upstream, make: Make, line_bytes: int) -> None:
    if line_bytes > 16_000 and make is not http1_by_tls:
        pytest.skip("h2 splits a block of headers, not a header")
    headers = tuple((f"X-{number}", "x" * line_bytes) for number in range(100_000 // line_bytes + 1))
    upstream.answer("m", Plan(EVENTS, headers=headers))
    assert failure_of(plane, make(upstream)).kind is FailureKind.HEAD_TOO_LARGE


# ---- no answer


@every_protocol
def test_nobody_listens(plane: Plane, upstream: Upstream, make: Make) -> None:
    assert failure_of(plane, make(upstream, port=unused_port())).kind is FailureKind.CONNECT


def test_a_name_that_is_none(plane: Plane, upstream: Upstream) -> None:
    assert failure_of(plane, http1_by_tls(upstream, host="no-such-name.invalid")).kind is FailureKind.CONNECT


@every_protocol
def test_a_connect_that_hangs(plane: Plane, upstream: Upstream, make: Make) -> None:
    with full_backlog() as port:
        began_s = time.monotonic()
        failure = failure_of(plane, make(upstream, host="127.0.0.1", port=port, connect_timeout_ms=300))
        assert failure.kind is FailureKind.CONNECT_TIMEOUT
        assert 0.25 < time.monotonic() - began_s < TIMEOUT_S


@by_tls
def test_a_server_that_accepts_and_says_nothing(plane: Plane, upstream: Upstream, make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = make(upstream, port=silent.getsockname()[1], connect_timeout_ms=300)
        streams = [plane.begin(slot, asked) for slot in range(20)]
        plane.until_over(*streams)
        kinds = {seen.failure.kind for seen in streams if seen.failure is not None}
        assert kinds == {FailureKind.CONNECT_TIMEOUT}, "also of those that waited for the first's connection"


def test_a_server_that_accepts_and_says_nothing_without_tls(plane: Plane, upstream: Upstream) -> None:
    upstream.accept = Accept.SILENT
    failure = failure_of(plane, plain_origin(upstream, head_timeout_ms=300))
    assert failure.kind is FailureKind.HEAD_TIMEOUT


@every_protocol
def test_a_head_that_does_not_come(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", Plan(EVENTS, head_delay_s=60))
    began_s = time.monotonic()
    assert failure_of(plane, make(upstream, head_timeout_ms=300)).kind is FailureKind.HEAD_TIMEOUT
    assert 0.25 < time.monotonic() - began_s < TIMEOUT_S
    upstream.wait_gone(upstream.requests()[0])


@every_protocol
def test_a_body_may_be_silent_for_longer_than_the_head(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", Plan(EVENTS, body_delay_s=4))
    seen = plane.begin(1, make(upstream, head_timeout_ms=2000, connect_timeout_ms=2000))
    plane.until_over(seen)
    assert seen.is_complete


@by_tls
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT])
def test_a_reset_before_the_head(plane: Plane, upstream: Upstream, make: Make, fault: Fault) -> None:
    upstream.answer("m", Plan(fault=fault, fault_in_head=True, fault_at=0))
    assert failure_of(plane, make(upstream)).kind is FailureKind.RESET


def test_a_reset_in_the_head(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan(fault=Fault.CUT, fault_in_head=True, fault_at=30))
    assert failure_of(plane, http1_by_tls(upstream)).kind is FailureKind.RESET


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"HTTP/1.1 abc\r\n\r\n", FailureKind.HTTP_VERSION),
        (b"\x00\x01\r\n\r\n", FailureKind.HTTP_VERSION),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", FailureKind.HEAD_MALFORMED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", FailureKind.HEAD_MALFORMED),
    ],
)
def test_a_head_that_is_none(plane: Plane, upstream: Upstream, head: bytes, kind: FailureKind) -> None:
    upstream.answer("m", Plan([], head=head, framing=Framing.CLOSE))
    assert failure_of(plane, http1_by_tls(upstream)).kind is kind


# ---- certificates and versions

CERTIFICATE = make_certificate()


@by_tls
def test_a_certificate_that_is_not_trusted(plane: Plane, upstream: Upstream, make: Make) -> None:
    assert failure_of(plane, make(upstream, ca_file="")).kind is FailureKind.CERTIFICATE


@by_tls
def test_a_certificate_of_another_name(plane: Plane, upstream: Upstream, make: Make) -> None:
    other = make_certificate("elsewhere.example")
    failure = failure_of(plane, make(upstream, ca_file=str(other.certificate_file)))
    assert failure.kind is FailureKind.CERTIFICATE


@by_tls
def test_trusted_certificates_that_are_not_there(plane: Plane, upstream: Upstream, make: Make) -> None:
    assert failure_of(plane, make(upstream, ca_file="/no/such/file")).kind is FailureKind.CERTIFICATE


@by_tls
def test_a_certificate_that_is_not_looked_at(plane: Plane, upstream: Upstream, make: Make) -> None:
    seen = plane.begin(1, make(upstream, ca_file="", insecure_ssl=True, host="127.0.0.1"))
    plane.until_over(seen)
    assert seen.is_complete
    assert failure_of(plane, make(upstream, ca_file="")).kind is FailureKind.CERTIFICATE, "an origin of its own"


@contextlib.contextmanager
def raw_server(answer: bytes, *, tls: tuple[str, ...] | None) -> Generator[int]:
    """Says the same to everyone who says anything. `tls`: by TLS, with these by ALPN."""
    context = None if tls is None else server_context(CERTIFICATE, tls)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.settimeout(1)
                    connection.recv(65536)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("scheme", "http2", "answer", "alpn", "hint"),
    [
        ("http", True, BAD_REQUEST, None, "http2_enabled = false"),
        ("http", True, b"", None, "http2_enabled = false"),
        ("https", False, SETTINGS_FRAME, (), "http2_enabled = true"),
        ("https", False, SETTINGS_FRAME, ("h2",), "http2_enabled = true"),
    ],
)
def test_another_version_of_http(
    plane: Plane, upstream: Upstream, scheme: str, http2: bool, answer: bytes, alpn: tuple[str, ...] | None, hint: str
) -> None:
    with raw_server(answer, tls=alpn) as port:
        failure = failure_of(plane, origin(upstream, scheme=scheme, http2=http2, port=port))
    assert failure.kind is FailureKind.HTTP_VERSION
    assert hint in failure.detail


def test_tls_where_there_is_none(plane: Plane, upstream: Upstream) -> None:
    with raw_server(BAD_REQUEST, tls=None) as port:
        failure = failure_of(plane, http1_by_tls(upstream, port=port))
    assert failure.kind is FailureKind.CONNECT
    assert "TLS" in failure.detail


def test_an_old_tls_is_refused(plane: Plane, upstream: Upstream) -> None:
    context = server_context(CERTIFICATE, ())
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection, context.wrap_socket(connection, server_side=True):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        failure = failure_of(plane, http1_by_tls(upstream, port=listener.getsockname()[1]))
        thread.join(5)
    assert failure.kind is FailureKind.CONNECT


# ---- requests that are none, and the environment


def test_a_header_with_a_line_end_is_refused(
    plane: Plane, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    seen = plane.begin(1, http1_by_tls(upstream), headers=(("X-Bad", "SECRET\r\nX-More: 1"),))
    plane.until_over(seen)
    assert seen.failure is not None
    assert seen.failure.kind is FailureKind.NO_RESOURCES
    assert "could not be begun" in caplog.text
    assert "SECRET" not in caplog.text


def test_proxies_of_the_environment_are_not_used(
    plane: Plane, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    for slot, asked in enumerate((http1_by_tls(upstream), plain_origin(upstream))):
        plane.until_over(seen := plane.begin(slot, asked))
        assert seen.is_complete


@pytest.mark.serial
def test_without_descriptors_it_is_our_want(plane: Plane, upstream: Upstream) -> None:
    plane.until_over(plane.begin(1, http1_by_tls(upstream)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
    try:
        for asked in (http1_by_tls(upstream, host="127.0.0.1"), http1_by_tls(upstream)):
            plane.until_over(seen := plane.begin(1, asked))
            assert seen.failure is not None
            assert seen.failure.kind is FailureKind.NO_RESOURCES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    plane.until_over(seen := plane.begin(1, http1_by_tls(upstream)))
    assert seen.is_complete


# ---- the thread


def test_nothing_is_loaded_before_the_first_transfer(plane: Plane) -> None:
    plane.cancel(1)
    assert not plane.transfers.active_count
    assert not [thread for thread in threading.enumerate() if thread.name == "transfers"]


@every_protocol
def test_it_stops_with_transfers_under_way(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", Plan(EVENTS, fault=Fault.STALL))
    streams = [plane.begin(slot, make(upstream)) for slot in range(5)]
    plane.until(lambda: all(seen.body for seen in streams), "all under way")
    assert plane.transfers.active_count == 5
    assert plane.transfers.stop(TIMEOUT_S)
    for request in upstream.requests():
        upstream.wait_gone(request)
    late = plane.begin(9, make(upstream))
    plane.until_over(late)
    assert late.failure is not None
    assert late.failure.kind is FailureKind.NO_RESOURCES


def test_whatever_goes_wrong_on_the_thread_nobody_is_left_waiting(
    plane: Plane, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.answer("stalls", Plan(EVENTS, fault=Fault.STALL))
    upstream.answer("silent", Plan(EVENTS, head_delay_s=9))
    asked = http1_by_tls(upstream)
    streaming, waiting = plane.begin(1, asked, "stalls"), plane.begin(2, asked, "silent")
    plane.until(lambda: streaming.body == BODY, "the stream under way")

    def fail(*_: object) -> None:
        monkeypatch.undo()
        message = "planned"
        raise RuntimeError(message)

    monkeypatch.setattr("daemon.control.transfers.loop.TransferLoop._tend_pools", fail)
    plane.cancel(99)
    plane.until_over(streaming, waiting)
    assert streaming.is_finished
    assert not streaming.is_complete
    assert waiting.failure is not None
    assert waiting.failure.kind is FailureKind.NO_RESOURCES
    assert "planned" in caplog.text
    again = plane.begin(3, asked)
    plane.until_over(again)
    assert again.is_complete


def test_a_plane_that_is_gone_is_no_reason_to_spin(plane: Plane, upstream: Upstream) -> None:
    upstream.answer("m", Plan(EVENTS * 100, interval_s=0.01))
    seen = plane.begin(1, http1_by_tls(upstream))
    plane.until(lambda: bool(seen.body), "the stream under way")
    plane.reads = False
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (plane.channels.command_read_fd, plane.channels.event_write_fd):
        os.dup2(null_fd, fd)
    os.close(null_fd)
    cpu_before_s = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - cpu_before_s < 0.4
