"""Uploads through the real planes, on both kernels: an adopted socket's body comes back from the echo backend."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from backends.interface import Fields, Request
from backends.registry import Registry
from config.mel import MelBackend
from config.settings import Backend, Performance, Server, Settings, ThreadPool, Timeouts
from daemon.control.admission import Admission
from daemon.control.adoption import Adoption
from daemon.control.commands import CommandWriter
from daemon.control.events import EventReader
from daemon.control.scripts import ScriptBook
from daemon.control.streams import SilentObserver
from daemon.control.workers import WorkerPool
from daemon.loop import DataPlane
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.table import allocate

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Planes:
    """A data plane without a listener, and a control plane in a thread of its own."""

    def __init__(self, kernel: str) -> None:
        settings = Settings(
            server=Server(max_connections=16, kernel="io_uring" if kernel == "io_uring" else "epoll"),
            thread_pool=ThreadPool(pool_size=2),
            timeouts=Timeouts(linger_timeout_ms=500),
            performance=Performance(body_buffer_bytes=4096, body_buffer_count=8),
            backend=Backend(mel=MelBackend(enabled=True)),
        )
        registry = Registry(settings)
        plane = allocate(settings)
        book = ScriptBook(plane, [script for _, backend in registry for script in backend.scripts()])
        self.data_plane = DataPlane(settings, plane, -1, 3)
        self.pool = WorkerPool(
            self.data_plane.event_fds[1:],
            self.data_plane.command_fd,
            queue_count_max=10,
            output_block_bytes=settings.performance.output_block_bytes,
            credit_bytes=settings.limits.credit_bytes,
        )
        self.loop = asyncio.new_event_loop()
        self.writer = CommandWriter(self.data_plane.command_fd, self.loop)
        self.data_plane.start()
        self.admission = Admission(
            settings, registry, book, self.writer, self.pool, SilentObserver(), kernel=self.data_plane.kernel
        )
        fd = self.data_plane.event_fds[0]
        self.reader = EventReader(fd, self.loop, self.admission.handlers, self.admission.flush, self.loop.stop)
        self.reader.start()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.reasons: list[int] = []

    def upload(
        self,
        body_bytes: int | None,
        prefix: bytes = b"",
        *,
        expects_100: bool = False,
        chunked: bool = True,
        backend: str = "echo",
    ) -> socket.socket:
        """The client's end of a connection whose request says so."""
        server, client = socket.socketpair()

        def adopt() -> None:
            entry = self.admission.admit(backend, Request(Fields()), has_body=True)
            adoption = Adoption(entry, HEAD, chunked=chunked, ended=self.reasons.append)
            adoption.expect_body(body_bytes, prefix, expects_100=expects_100)
            self.admission.adopt(server.detach(), adoption)

        self.loop.call_soon_threadsafe(adopt)
        client.settimeout(10)
        return client

    def ended(self, count: int) -> list[int]:
        """The reasons of the first streams, once so many have ended."""
        deadline_s = time.monotonic() + 10
        while len(self.reasons) < count:
            assert time.monotonic() < deadline_s, f"only {self.reasons} have ended"
            time.sleep(0.005)
        return self.reasons

    def close(self) -> None:
        self.loop.call_soon_threadsafe(lambda: self.writer.send(kind=m.SHUTDOWN_PLANE, flags=m.FORCE))
        assert self.data_plane.join(10)
        assert self.data_plane.error is None
        assert self.pool.stop(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        for fd in (*self.data_plane.event_fds, self.data_plane.command_fd, self.data_plane.ended_fd):
            os.close(fd)


@pytest.fixture(scope="module", params=["io_uring", "epoll"])
def shared(request: pytest.FixtureRequest) -> Iterator[Planes]:
    made = Planes(request.param)
    yield made
    made.close()


@pytest.fixture
def planes(shared: Planes) -> Planes:
    deadline_s = time.monotonic() + 10
    while shared.admission.active_count > 0:
        assert time.monotonic() < deadline_s, "a stream of the test before has not ended"
        time.sleep(0.005)
    shared.reasons.clear()
    return shared


def everything(client: socket.socket) -> bytes:
    pieces: list[bytes] = []
    while piece := client.recv(65_536):
        pieces.append(piece)
    return b"".join(pieces)


def unchunked(data: bytes) -> bytes:
    """A chunked body without its framing; it must have a true end."""
    body = b""
    while True:
        size_line, _, data = data.partition(b"\r\n")
        size = int(size_line, 16)
        if size == 0:
            assert data == b"\r\n"
            return body
        body += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]


def send_all(client: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=client.sendall, args=(data,))
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1_000_000])
def test_a_body_of_a_known_length(planes: Planes, size: int) -> None:
    body = os.urandom(size)
    with planes.upload(size) as client:
        sender = send_all(client, body)
        answer = everything(client)
        sender.join()
    assert answer.startswith(HEAD)
    assert unchunked(answer.removeprefix(HEAD)) == body
    assert planes.ended(1) == [st.COMPLETE]


def test_an_empty_body_is_complete(planes: Planes) -> None:
    with planes.upload(0) as client:
        answer = everything(client)
    assert unchunked(answer.removeprefix(HEAD)) == b""
    assert planes.ended(1) == [st.COMPLETE]


def test_a_chunked_body_in_any_pieces(planes: Planes) -> None:
    body = os.urandom(50_000)
    sizes = [1, 15, 16, 17, 4096, 10_000, 1, 30_000]
    framed, start = b"", 0
    for size in [*sizes, len(body) - sum(sizes)]:
        framed += b"%x;note=x\r\n" % size + body[start : start + size] + b"\r\n"
        start += size
    framed += b"0\r\nTrailer: x\r\n\r\n"
    with planes.upload(None) as client:
        for start in range(0, 2000, 7):
            client.sendall(framed[start : min(start + 7, 2000)])
        sender = send_all(client, framed[2000:])
        answer = everything(client)
        sender.join()
    assert unchunked(answer.removeprefix(HEAD)) == body


def test_what_was_already_read_comes_first(planes: Planes) -> None:
    with planes.upload(10, b"abc") as client:
        client.sendall(b"defghij")
        assert unchunked(everything(client).removeprefix(HEAD)) == b"abcdefghij"


def test_a_client_that_asks_first_is_told_to_go_on(planes: Planes) -> None:
    with planes.upload(3, expects_100=True) as client:
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert unchunked(everything(client).removeprefix(HEAD)) == b"abc"


def test_an_upload_that_breaks_off_is_no_complete_answer(planes: Planes) -> None:
    with planes.upload(10) as client:
        client.sendall(b"abc")
        client.shutdown(socket.SHUT_WR)
        answer = everything(client)
    assert not answer.endswith(b"0\r\n\r\n")
    assert planes.ended(1) == [st.BODY_TRUNCATED]


def test_wrong_framing_is_a_400(planes: Planes) -> None:
    with planes.upload(None) as client:
        client.sendall(b"no number\r\n")
        assert everything(client).startswith(b"HTTP/1.1 400 ")
    assert planes.ended(1) == [st.BODY_TRUNCATED]


def test_a_client_that_vanishes_frees_its_worker(planes: Planes) -> None:
    for _ in range(4):
        planes.upload(1000).close()
    planes.ended(4)
    test_what_was_already_read_comes_first(planes)


def test_a_slow_reader_stops_its_own_upload(planes: Planes) -> None:
    body = os.urandom(3_000_000)
    with planes.upload(len(body)) as client:
        sender = send_all(client, body)
        time.sleep(0.3)
        assert sender.is_alive()  # 3 MB are in no buffer of ours
        assert unchunked(everything(client).removeprefix(HEAD)) == body
        sender.join()


def test_features_flow_while_their_audio_is_still_arriving(planes: Planes) -> None:
    with planes.upload(32_000, chunked=False, backend="mel") as client:
        client.sendall(bytes(16_000))
        got = b""
        while b'"first":0' not in got or not got.endswith(b"\n\n"):
            got += client.recv(65_536)
        client.sendall(bytes(16_000))
        got += everything(client)
    assert got.startswith(HEAD)
    assert got.endswith(b"\n\ndata: [DONE]\n\n")


def test_audio_that_breaks_off_has_no_true_end(planes: Planes) -> None:
    with planes.upload(32_000, chunked=False, backend="mel") as client:
        client.sendall(bytes(16_000))
        assert client.recv(10)
        client.shutdown(socket.SHUT_WR)
        assert b"[DONE]" not in everything(client)
