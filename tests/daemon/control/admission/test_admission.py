"""Admission: every handoff gets exactly one OPEN that says the right thing, and every stream is accounted for once."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backends.interface import Backend as Base
from backends.interface import BackendError, Cancelled, Fields, Paced, Request
from backends.mock import MESSAGE_COUNT, MESSAGES, Mock
from backends.registry import Registry
from config.settings import (
    BackendSettings,
    Limits,
    MockBackend,
    Performance,
    Server,
    Settings,
    Streaming,
    ThreadPool,
    Timeouts,
)
from daemon.control.admission.admission import Admission
from daemon.control.admission.refusal import Refusal
from daemon.control.channel.command_pipe import CommandWriter
from daemon.control.channel.events import EventReader
from daemon.control.channel.responses import STANDARD_HEAD
from daemon.control.channel.scripts import ScriptBook
from daemon.control.stream.adoption import Adoption
from daemon.control.workers.pool import WorkerPool
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.table import WAITING_MAX, allocate
from tests.daemon.control.channels import Channels, Recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Counts:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[tuple[str | None, int]] = []
        self.rejected: list[str] = []

    def stream_started(self, backend: str) -> None:
        self.started.append(backend)

    def stream_ended(self, backend: str | None, reason: int) -> None:
        self.ended.append((backend, reason))

    def handoff_rejected(self, reason: str) -> None:
        self.rejected.append(reason)


class Desk:
    """Admission between recorded channels, with a pool whose only thread has an event channel of its own."""

    def __init__(self, settings: Settings, kernel: str) -> None:
        self.channels = Channels()
        self.worker_event_fd, self.worker_event_write_fd = os.pipe2(os.O_NONBLOCK)
        self.loop = asyncio.new_event_loop()
        registry = Registry(settings)
        book = ScriptBook(allocate(settings), [script for _, backend in registry for script in backend.scripts()])
        writer = CommandWriter(self.channels.command_fd, self.loop)
        self.pool = WorkerPool(
            [self.worker_event_fd],
            self.channels.command_fd,
            queue_count_max=settings.thread_pool.queue_count_max,
            output_block_bytes=settings.performance.output_block_bytes,
            credit_bytes=settings.limits.credit_bytes,
        )
        self.counts = Counts()
        self.admission = Admission(settings, registry, book, writer, self.pool, self.counts, kernel=kernel)
        admission = self.admission
        self.reader = EventReader(self.channels.event_fd, self.loop, admission.handlers, admission.flush, lambda: None)
        self.client, self.far = socket.socketpair()
        self.generation = 1
        self._kept: list[Any] = []

    def close(self) -> None:
        assert self.pool.stop(10)
        self.loop.close()
        self.client.close()
        self.far.close()
        self.channels.close()
        os.close(self.worker_event_fd)
        os.close(self.worker_event_write_fd)

    def send(self, kind: int, **fields: int) -> list[Recorded]:
        """What the control plane answers to one event."""
        self.channels.event(kind, generation=self.generation, **fields)
        self.reader.read()
        return self.channels.commands()

    def hand_over(self, data: bytes | dict[str, Any], slot: int = 0, **fields: int) -> Recorded:
        """The one OPEN that answers a handoff."""
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        memory = ctypes.create_string_buffer(raw, len(raw) + 1)
        self._kept.append(memory)
        fields.setdefault("client_fd", self.client.fileno())
        answer = self.send(m.HANDOFF, slot=slot, data_address=ctypes.addressof(memory), data_bytes=len(raw), **fields)
        opens = [command for command in answer if command.kind == m.OPEN]
        assert len(opens) == 1
        self.channels.keep([command for command in answer if command.kind != m.OPEN])  # a worker may be quick
        assert (opens[0].slot, opens[0].generation) == (slot, self.generation)
        return opens[0]

    def end(self, slot: int = 0, reason: int = st.COMPLETE) -> None:
        self.send(m.ENDED, slot=slot, reason=reason)


@pytest.fixture
def desk() -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(kernel: str = "io_uring", **sections: msgspec.Struct) -> Desk:
        sections.setdefault("server", Server(max_connections=10))
        made.append(Desk(msgspec.structs.replace(Settings(), **sections), kernel))
        return made[-1]

    yield make
    for one in made:
        one.close()


def problem_of(command: Recorded) -> dict[str, Any]:
    """The refusal in an OPEN."""
    assert command.source == m.SOURCE_NONE
    assert command.flags & m.REFUSAL
    assert command.linger_timeout_ms > 0
    head, _, body = command.payload.partition(b"\r\n\r\n")
    problem: dict[str, Any] = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % problem["status"])
    problem["head"] = head.decode()
    return problem


# ------------------------------------------------------------------------------------------------------- let in


def test_a_paced_stream_is_one_command(desk: Callable[..., Desk]) -> None:
    one = desk(timeouts=Timeouts(stream_timeout_ms=77), streaming=Streaming(message_delay_ms=20, keep_alive_ms=5000))
    command = one.hand_over({"prompt": "Tell me", "user_id": 42})
    assert command.source == m.SOURCE_PACED
    assert command.flags == m.STANDARD_HEAD
    assert command.text == b"42"
    assert command.head == b""
    assert command.rest == b'data: {"content":"Hello from Python daemon! Prompt: Tell me"}\n\n'
    assert command.message_count == MESSAGE_COUNT - 1
    assert command.interval_ps == 20 * 10**9
    assert (command.stream_timeout_ms, command.keep_alive_ms, command.write_timeout_ms) == (77, 5000, 30_000)
    assert one.admission.active_count == 1
    assert one.admission.backend_of(0) == "mock"
    one.end()
    assert one.admission.active_count == 0
    assert one.admission.backend_of(0) == "-"
    assert (one.counts.started, one.counts.ended) == (["mock"], [("mock", st.COMPLETE)])


@pytest.mark.parametrize("data", [b"\0", b""])
def test_no_data_is_a_request_without_fields(desk: Callable[..., Desk], data: bytes) -> None:
    assert b"Prompt: Hello" in desk().hand_over(data).rest


def test_a_simulated_latency_holds_everything_back(desk: Callable[..., Desk]) -> None:
    one = desk(backend=BackendSettings(mock=MockBackend(latency_ms=300)))
    assert one.hand_over(b"{}").latency_ms == 300


def test_tokens(desk: Callable[..., Desk]) -> None:
    one = desk(backend=BackendSettings(mock=MockBackend(tokens=100, tokens_per_second=1000, format="openai")))
    command = one.hand_over(b"{}")
    assert (command.message_count, command.interval_ps) == (100, 10**9)
    assert command.rest == b""
    again = one.hand_over({"max_tokens": 5}, slot=1)
    assert again.message_count == 5
    assert again.script == command.script
    assert again.text[:24] != command.text[:24]


def test_a_handoffs_own_headers(desk: Callable[..., Desk]) -> None:
    command = desk().hand_over({"response_headers": {"X-A": "1", "Connection": "keep-alive", "X-B": "2\r\nX-C: 3"}})
    assert command.head == STANDARD_HEAD[:-2] + b"X-A: 1\r\n\r\n"
    assert not command.flags & m.STANDARD_HEAD


def test_headers_of_which_none_is_left_cost_nothing(desk: Callable[..., Desk]) -> None:
    command = desk().hand_over({"response_headers": {"Connection": "keep-alive"}})
    assert command.flags & m.STANDARD_HEAD
    assert command.head == b""


def test_the_client_is_prepared_for_its_kernel(desk: Callable[..., Desk]) -> None:
    for kernel, blocking in (("epoll", False), ("io_uring", True)):
        one = desk(kernel)
        one.client.setblocking(False)
        one.hand_over(b"{}")
        assert os.get_blocking(one.client.fileno()) == blocking


def test_many_handoffs_are_answered_in_one_write(desk: Callable[..., Desk]) -> None:
    one = desk()
    for slot in range(5):
        one.channels.event(m.HANDOFF, slot=slot, generation=1, client_fd=one.client.fileno())
    one.reader.read()
    assert len(one.channels.writes()) == 1


def test_a_half_closed_client_can_be_kept(desk: Callable[..., Desk]) -> None:
    assert desk(streaming=Streaming(half_close="keep")).hand_over(b"{}").flags & m.KEEP_HALF_OPEN


# ------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("data", "flags", "status", "code"),
    [
        (b"{nonsense", 0, 400, "malformed_json"),
        (b"[]", 0, 400, "not_an_object"),
        (b'{"prompt": 1}', 0, 400, "wrong_type"),
        (b'{"backend": "nowhere"}', 0, 400, "unknown_backend"),
        (b"{}", m.DATA_TRUNCATED, 413, "handoff_too_large"),
        (json.dumps({"response_headers": {"X-A": "x" * 4000}}).encode(), 0, 400, "response_head_too_large"),
    ],
)
def test_what_cannot_be_served_is_told_why(
    desk: Callable[..., Desk], data: bytes, flags: int, status: int, code: str
) -> None:
    one = desk()
    problem = problem_of(one.hand_over(data, flags=flags))
    assert (problem["status"], problem["code"]) == (status, code)
    assert one.counts.rejected == [code]
    assert one.admission.active_count == 0
    one.end(reason=st.REFUSED)
    assert one.counts.ended == [(None, st.REFUSED)]
    assert one.counts.started == []


def test_an_unknown_backend_is_told_the_known_ones(desk: Callable[..., Desk]) -> None:
    assert "echo, mock" in problem_of(desk().hand_over({"backend": "x"}))["detail"]


def test_errors_follow_the_streams_format(desk: Callable[..., Desk]) -> None:
    one = desk(backend=BackendSettings(mock=MockBackend(tokens=1, format="openai")), limits=Limits(streams_per_user=1))
    one.hand_over({"user_id": 1})
    command = one.hand_over({"user_id": 1}, slot=1)
    error = json.loads(command.payload.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "rate_limit_exceeded"
    assert error["code"] == "streams_per_user"


def test_the_connection_limit(desk: Callable[..., Desk]) -> None:
    one = desk(server=Server(max_connections=2))
    for slot in range(2):
        one.hand_over(b"{}", slot=slot)
    problem = problem_of(one.hand_over(b"{}", slot=2))
    assert problem["status"] == 503
    assert "Retry-After: 1" in problem["head"]
    one.end(slot=2, reason=st.REFUSED)
    one.end(slot=0)
    assert one.hand_over(b"{}", slot=3).source == m.SOURCE_PACED


def test_streams_per_user_come_back_when_they_end(desk: Callable[..., Desk]) -> None:
    one = desk(limits=Limits(streams_per_user=1))
    one.hand_over({"user_id": "u"})
    assert problem_of(one.hand_over({"user_id": "u"}, slot=1))["status"] == 429
    assert one.hand_over({"user_id": "v"}, slot=2).source == m.SOURCE_PACED
    assert one.hand_over({}, slot=3).source == m.SOURCE_PACED
    one.end()
    assert one.hand_over({"user_id": "u"}, slot=4).source == m.SOURCE_PACED


def test_a_long_user_id_is_counted_like_any_other(desk: Callable[..., Desk]) -> None:
    one = desk(limits=Limits(streams_per_user=1))
    user = "u" * 100_000
    assert one.hand_over({"user_id": user}).source == m.SOURCE_PACED
    assert problem_of(one.hand_over({"user_id": user}, slot=1))["status"] == 429
    assert one.hand_over({"user_id": user + "v"}, slot=2).source == m.SOURCE_PACED
    one.end()
    assert one.hand_over({"user_id": user}, slot=3).source == m.SOURCE_PACED
    one.end(slot=2)
    one.end(slot=3)


def test_requests_per_minute(desk: Callable[..., Desk]) -> None:
    one = desk(limits=Limits(requests_per_minute_per_user=2))
    for slot in range(2):
        one.hand_over({"user_id": 1}, slot=slot)
    problem = problem_of(one.hand_over({"user_id": 1}, slot=2))
    assert problem["status"] == 429
    assert "Retry-After: 30" in problem["head"]


@pytest.mark.parametrize("which", ["allowed_uids", "allowed_gids"])
def test_peers_that_may_hand_over(desk: Callable[..., Desk], which: str) -> None:
    own = os.geteuid() if which == "allowed_uids" else os.getegid()
    peer, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with peer, far:
        good = desk(server=msgspec.structs.replace(Server(), **{which: (own,)}))
        assert good.hand_over(b"{}", peer_fd=peer.fileno()).source == m.SOURCE_PACED
        assert problem_of(good.hand_over(b"{}", slot=1))["status"] == 403
        bad = desk(server=msgspec.structs.replace(Server(), **{which: (own + 1,)}))
        assert problem_of(bad.hand_over(b"{}", peer_fd=peer.fileno()))["status"] == 403
        assert bad.counts.rejected == ["peer_refused"]


def test_what_is_no_stream_socket_is_closed(desk: Callable[..., Desk]) -> None:
    one = desk()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        command = one.hand_over(b"{}", client_fd=udp.fileno())
    assert command.source == m.SOURCE_NONE
    assert command.payload == b""
    assert command.reason == st.DESCRIPTOR_REFUSED
    one.end(reason=st.DESCRIPTOR_REFUSED)
    assert one.counts.ended == [(None, st.DESCRIPTOR_REFUSED)]
    assert one.counts.rejected == []


def test_a_drain_lets_nothing_in(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.hand_over(b"{}")
    one.admission.drain()
    assert [command.kind for command in one.channels.commands()] == [m.DRAIN]
    problem = problem_of(one.hand_over(b"{}", slot=1))
    assert (problem["status"], problem["code"]) == (503, "draining")
    assert one.admission.active_count == 1


# ------------------------------------------------------------------------------------------------------- later


@pytest.mark.parametrize(
    ("reason", "status"),
    [(st.QUEUE_TIMEOUT, 503), (st.FIRST_BYTE_TIMEOUT, 504), (st.SILENCE_TIMEOUT, 504), (st.STREAM_TIMEOUT, 504)],
)
def test_a_deadline_is_said_in_both_ways(desk: Callable[..., Desk], reason: int, status: int) -> None:
    one = desk()
    one.hand_over(b"{}")
    (stop,) = one.send(m.EXPIRED, reason=reason)
    assert stop.kind == m.STOP
    assert stop.reason == reason
    assert stop.head.startswith(b"HTTP/1.1 %d " % status)
    assert stop.rest.startswith(b"event: error\ndata: ")
    assert json.loads(stop.rest.split(b"data: ")[1])["error"]["code"] == st.REASONS[reason]


def test_deadlines_and_keep_alives_of_streams_that_are_gone(desk: Callable[..., Desk]) -> None:
    one = desk()
    assert one.send(m.EXPIRED, reason=st.STREAM_TIMEOUT) == []
    assert one.send(m.KEEP_ALIVE_DUE) == []


def test_a_keep_alive_before_the_first_byte_brings_the_head(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.hand_over(b"{}")
    (push,) = one.send(m.KEEP_ALIVE_DUE)
    assert (push.kind, push.flags, push.payload) == (m.PUSH, m.KEEP_ALIVE | m.STANDARD_HEAD, b": keep-alive\n\n")
    own = one.hand_over({"response_headers": {"X-A": "1"}}, slot=1)
    (push,) = one.send(m.KEEP_ALIVE_DUE, slot=1)
    assert (push.flags, push.head, push.rest) == (m.KEEP_ALIVE, own.head, b": keep-alive\n\n")


def test_everything_can_be_stopped(desk: Callable[..., Desk]) -> None:
    one = desk()
    for slot in range(5):
        one.hand_over(b"{}", slot=slot)
    one.admission.stop_all()
    stops = one.channels.commands()
    assert {stop.slot for stop in stops} == set(range(5))
    assert all(stop.kind == m.STOP and stop.reason == st.SHUTDOWN for stop in stops)
    assert all(stop.head.startswith(b"HTTP/1.1 503 ") for stop in stops)


def test_a_reload_changes_what_comes_next(desk: Callable[..., Desk]) -> None:
    one = desk()
    assert one.hand_over({"user_id": 1}).interval_ps == 50 * 10**9
    one.admission.reload(
        Settings(
            server=Server(max_connections=10),
            streaming=Streaming(message_delay_ms=7),
            limits=Limits(streams_per_user=1),
            timeouts=Timeouts(handoff_timeout_ms=123, stream_timeout_ms=9),
        )
    )
    (configure,) = one.channels.commands()
    assert (configure.kind, configure.handoff_timeout_ms) == (m.CONFIGURE, 123)
    command = one.hand_over({"user_id": 1}, slot=1)
    assert (command.interval_ps, command.stream_timeout_ms) == (7 * 10**9, 9)
    assert problem_of(one.hand_over({"user_id": 1}, slot=2))["status"] == 429
    one.end()
    one.end(slot=1)


# ------------------------------------------------------------------------------------------------------- backends' code


class OwnError(BackendError):
    """As users write them: without a call of the base's constructor."""

    def __init__(self) -> None:
        pass


def raising(error: BaseException) -> Callable[[Base, Request], Paced]:
    def fail(_backend: Base, _request: Request) -> Paced:
        raise error

    return fail


def returning(value: object) -> Callable[[Base, Request], object]:
    return lambda _backend, _request: value


@pytest.mark.parametrize(
    ("opens", "status"),
    [
        (raising(ValueError("a secret")), 500),
        (raising(SystemExit(3)), 500),
        (raising(asyncio.CancelledError()), 500),
        (raising(Cancelled()), 500),
        (raising(BackendError(502, ValueError("not a text"))), 502),  # type: ignore[arg-type]
        (raising(BackendError(404, "no model \ud800")), 404),
        (raising(OwnError()), 500),
        (returning("no paced stream"), 500),
        (returning((MESSAGES, 1)), 500),
        (returning(Paced(MESSAGES, 1 << 63)), 500),
        (returning(Paced(MESSAGES, -1)), 500),
        (returning(Paced(MESSAGES, 1, -1)), 500),
        (returning(Paced(MESSAGES, 1, 0, 1 << 32)), 500),
        (returning(Paced(MESSAGES, 1, 0, -1)), 500),
        (returning(Paced(MESSAGES, 1, 0.5)), 500),  # type: ignore[arg-type]
        (returning(Paced(MESSAGES, 1, text="no bytes")), 500),  # type: ignore[arg-type]
        (returning(Paced(MESSAGES, [])), 500),  # type: ignore[arg-type]
        (returning(Paced(MESSAGES, 1, text=bytes(65))), 500),
        (returning(Paced(MESSAGES, 1, closing=bytes(65))), 500),
    ],
)
def test_whatever_a_backend_does_is_an_answer(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, opens: Callable[[Base, Request], object], status: int
) -> None:
    monkeypatch.setattr(Mock, "open", opens)
    one = desk()
    problem = problem_of(one.hand_over(b"{}"))
    assert (problem["status"], problem["code"]) == (status, "backend_error")
    assert "secret" not in problem["detail"]
    with pytest.raises(Refusal) as refused:
        one.admission.admit("mock", Request(Fields()))
    assert (refused.value.status, refused.value.code) == (status, "backend_error")
    monkeypatch.undo()
    assert one.hand_over(b"{}", slot=1).source == m.SOURCE_PACED
    one.end(slot=1)


# ------------------------------------------------------------------------------------------------------- on the pool


def test_with_the_pool_every_backend_is_queued_and_started_behind_its_open(desk: Callable[..., Desk]) -> None:
    one = desk(thread_pool=ThreadPool(thread_pool=True), streaming=Streaming(message_delay_ms=0))
    raw = json.dumps({"user_id": 3}).encode()
    memory = ctypes.create_string_buffer(raw)
    one.channels.event(
        m.HANDOFF,
        generation=1,
        client_fd=one.client.fileno(),
        data_address=ctypes.addressof(memory),
        data_bytes=len(raw),
    )
    one.reader.read()
    opened, started, first = (one.channels.next_command() for _ in range(3))
    assert (opened.kind, opened.source, opened.flags) == (m.OPEN, m.SOURCE_PUSHED, m.QUEUED)
    assert opened.queue_timeout_ms == 30_000
    assert (started.kind, started.channel) == (m.START, 1)
    assert (first.kind, first.flags) == (m.PUSH, m.STANDARD_HEAD)
    assert first.payload.endswith(b'Prompt: Hello"}\n\n')
    rest = [one.channels.next_command() for _ in range(MESSAGE_COUNT)]
    assert [command.kind for command in rest] == [m.PUSH] * (MESSAGE_COUNT - 1) + [m.FINISH]
    assert rest[0].payload == b'data: {"content":"User ID: 3"}\n\n'
    assert rest[-1].payload == b"data: [DONE]\n\n"
    one.end()


def test_a_full_queue_is_a_503(desk: Callable[..., Desk]) -> None:
    settings = {
        "thread_pool": ThreadPool(thread_pool=True, queue_count_max=2),
        "backend": BackendSettings(mock=MockBackend(latency_ms=60_000)),
    }
    one = desk(**settings)
    one.hand_over(b"{}")
    assert one.channels.next_command().kind == m.START
    for slot in (1, 2):
        assert one.hand_over(b"{}", slot=slot).flags & m.QUEUED
    assert one.pool.queued_count == 2
    problem = problem_of(one.hand_over(b"{}", slot=3))
    assert (problem["status"], problem["code"]) == (503, "queue_full")
    # One that gives up makes room at once, before its slot is free.
    one.send(m.EXPIRED, slot=1, reason=st.QUEUE_TIMEOUT)
    assert one.pool.queued_count == 1
    assert one.hand_over(b"{}", slot=4).flags & m.QUEUED
    one.end(slot=2, reason=st.CLIENT_GONE)
    assert one.pool.queued_count == 1
    assert threading.active_count() >= 2


# ------------------------------------------------------------------------------------------------------- adopted


def test_an_adopted_socket_streams_like_any_other(desk: Callable[..., Desk]) -> None:
    one = desk()
    reasons: list[int] = []
    entry = one.admission.admit("echo", Request(Fields()), has_body=True)
    assert one.admission.active_count == 1
    adoption = Adoption(entry, b"HTTP/1.1 200 OK\r\n\r\n", chunked=True, ended=reasons.append)
    adoption.expect_body(10, b"abc", expects_100=True)
    one.admission.adopt(one.client.fileno(), adoption)
    one.admission.flush()
    (adopt,) = one.channels.commands()
    assert (adopt.kind, adopt.client_fd) == (m.ADOPT, one.client.fileno())
    opened = one.hand_over(b"", flags=m.ADOPTED, cookie=adopt.cookie)
    assert opened.flags == m.QUEUED | m.CHUNKED | m.BODY_LENGTH | m.BODY_PREFIX
    assert (opened.content_length, opened.prefix_bytes, opened.payload) == (10, 3, b"abc")
    assert opened.keep_alive_ms == 0
    assert one.admission.active_count == 1
    one.end(reason=st.CLIENT_GONE)
    assert reasons == [st.CLIENT_GONE]
    assert one.admission.active_count == 0


def test_an_adopted_socket_gets_what_the_plane_makes(desk: Callable[..., Desk]) -> None:
    one = desk()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    entry = one.admission.admit("mock", Request(Fields(user_id=7, prompt="Hi")))
    one.admission.adopt(one.client.fileno(), Adoption(entry, head, chunked=True))
    one.admission.flush()
    (adopt,) = one.channels.commands()
    assert (adopt.kind, adopt.client_fd) == (m.ADOPT, one.client.fileno())
    opened = one.hand_over(b"", flags=m.ADOPTED, cookie=adopt.cookie)
    # The plane opens it at once, where it has a slot: then it says so, and no OPEN is needed.
    for command in (adopt, opened):
        assert (command.source, command.flags, command.head_bytes) == (m.SOURCE_PACED, m.CHUNKED, len(head))
        assert command.payload.startswith(b"7" + head)
        assert b"Prompt: Hi" in command.payload
        assert command.message_count == opened.message_count
    one.end(reason=st.COMPLETE)


def test_what_the_plane_has_opened_by_itself_is_known_and_answered_by_nothing(desk: Callable[..., Desk]) -> None:
    one = desk()
    entry = one.admission.admit("mock", Request(Fields()), user="key:a")
    one.admission.adopt(one.client.fileno(), Adoption(entry, b"HTTP/1.1 200 OK\r\n\r\n"))
    one.admission.flush()
    (adopt,) = one.channels.commands()
    assert one.send(m.HANDOFF, slot=3, flags=m.ADOPTED | m.OPENED, client_fd=-1, cookie=adopt.cookie) == []
    assert (one.admission.active_count, one.admission.backend_of(3)) == (1, "mock")
    one.end(slot=3)
    assert (one.counts.started, one.counts.ended) == (["mock"], [("mock", st.COMPLETE)])
    assert one.admission.active_count == 0


@pytest.mark.parametrize("flags", [m.ADOPTED, m.ADOPTED | m.OPENED])
def test_a_socket_that_was_on_the_way_when_all_were_stopped_is_stopped_too(
    desk: Callable[..., Desk], flags: int
) -> None:
    one = desk()
    entry = one.admission.admit("mock", Request(Fields()))
    one.admission.adopt(one.client.fileno(), Adoption(entry, b"HTTP/1.1 200 OK\r\n\r\n"))
    one.admission.stop_all()
    (adopt,) = one.channels.commands()
    *_, stop = one.send(m.HANDOFF, flags=flags, client_fd=one.client.fileno(), cookie=adopt.cookie)
    assert (stop.kind, stop.reason) == (m.STOP, st.SHUTDOWN)
    one.end(reason=st.SHUTDOWN)
    assert one.admission.active_count == 0


def test_no_more_is_let_in_than_the_plane_can_adopt_at_once(desk: Callable[..., Desk]) -> None:
    one = desk(server=Server(max_connections=WAITING_MAX))
    entries = [one.admission.admit("mock", Request(Fields())) for _ in range(WAITING_MAX // 2)]
    with pytest.raises(Refusal) as refused:
        one.admission.admit("mock", Request(Fields()))
    assert (refused.value.status, refused.value.code) == (503, "connection_limit")
    one.admission.abandon(entries.pop())
    entries.append(one.admission.admit("mock", Request(Fields())))
    for entry in entries:
        one.admission.abandon(entry)
    assert one.admission.active_count == 0


class Noticed(Request):
    """A request whose end can be seen."""


def test_nothing_of_a_request_is_kept_while_the_plane_streams(desk: Callable[..., Desk]) -> None:
    one = desk()
    request = Noticed(Fields(prompt="Hi"))
    seen = weakref.ref(request)
    entry = one.admission.admit("mock", request)
    one.admission.adopt(one.client.fileno(), Adoption(entry, b"HTTP/1.1 200 OK\r\n\r\n"))
    del request, entry
    one.admission.flush()
    (adopt,) = one.channels.commands()
    assert seen() is not None, "it may still be abandoned"
    one.hand_over(b"", flags=m.ADOPTED, cookie=adopt.cookie)
    assert seen() is None
    assert one.admission.active_count == 1
    one.end(reason=st.COMPLETE)


def test_uploads_are_counted_and_what_is_abandoned_counts_no_more(desk: Callable[..., Desk]) -> None:
    one = desk(performance=Performance(body_buffer_count=1))
    entry = one.admission.admit("echo", Request(Fields()), has_body=True)
    with pytest.raises(Refusal, match="too_many_bodies"):
        one.admission.admit("echo", Request(Fields()), has_body=True)
    adoption = Adoption(entry, b"HTTP/1.1 200 OK\r\n\r\n")
    adoption.expect_body(None, b"", expects_100=True)
    one.admission.adopt(one.client.fileno(), adoption)
    one.admission.flush()
    cookie = next(command.cookie for command in one.channels.commands() if command.kind == m.ADOPT)
    opened = one.hand_over(b"", flags=m.ADOPTED, cookie=cookie)
    assert opened.flags & m.BODY_CHUNKED
    assert opened.flags & m.CONTINUE_100
    one.end(reason=st.CLIENT_GONE)
    one.admission.abandon(one.admission.admit("echo", Request(Fields()), has_body=True))
    assert (one.admission.active_count, one.pool.queued_count) == (0, 0)
    one.admission.abandon(one.admission.admit("echo", Request(Fields()), has_body=True))


def test_users_of_the_front_are_limited_like_others(desk: Callable[..., Desk]) -> None:
    one = desk(limits=Limits(streams_per_user=1))
    entry = one.admission.admit("mock", Request(Fields()), user="key:a")
    with pytest.raises(Refusal, match="streams_per_user"):
        one.admission.admit("mock", Request(Fields()), user="key:a")
    one.admission.abandon(one.admission.admit("mock", Request(Fields()), user="key:b"))
    one.admission.abandon(entry)
    one.admission.abandon(one.admission.admit("mock", Request(Fields()), user="key:a"))


def test_nothing_is_let_in_while_draining(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.admission.drain()
    with pytest.raises(Refusal, match="draining"):
        one.admission.admit("echo", Request(Fields()))
