"""Uploads without an HTTP front: the real planes in this process, and sockets that are adopted as a front does it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time

import msgspec

from backends.interface import Fields, Request
from backends.registry import Registry
from config.mel import MelBackend
from config.settings import BackendSettings, Performance, Server, Settings, ThreadPool, Timeouts
from daemon.control.admission.admission import Admission
from daemon.control.channel.command_pipe import CommandWriter
from daemon.control.channel.events import EventReader
from daemon.control.channel.scripts import ScriptBook
from daemon.control.stream.adoption import Adoption
from daemon.control.stream.stream import SilentObserver
from daemon.control.workers.pool import WorkerPool
from daemon.data_plane import DataPlane
from daemon.plane import messages as m
from daemon.plane.command_records import ShutdownPlaneCommand
from daemon.plane.table import allocate

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SETTINGS = Settings(
    server=Server(max_connections=16),
    thread_pool=ThreadPool(pool_size=2),
    timeouts=Timeouts(linger_timeout_ms=500),
    performance=Performance(body_buffer_bytes=4096, body_buffer_count=8),
    backend=BackendSettings(mel=MelBackend(enabled=True)),
)


class Planes:
    """A data plane without a listener, and a control plane in a thread of its own."""

    def __init__(self, kernel: str, settings: Settings = SETTINGS) -> None:
        server = msgspec.structs.replace(settings.server, kernel=kernel)
        self.settings = settings = msgspec.structs.replace(settings, server=server)
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
        said: bytes = b"",
    ) -> socket.socket:
        """The client's end of a connection whose request says so; `said` is its JSON."""
        server, client = socket.socketpair()

        def adopt() -> None:
            entry = self.admission.admit(backend, Request(Fields(), said), has_body=True)
            adoption = Adoption(entry, HEAD, chunked=chunked, ended=self.reasons.append)
            adoption.expect_body(body_bytes, prefix, expects_100=expects_100)
            self.admission.adopt(server.detach(), adoption)

        self.loop.call_soon_threadsafe(adopt)
        client.settimeout(60)
        return client

    def ended(self, count: int) -> list[int]:
        """The reasons of the first streams, once so many have ended."""
        deadline_s = time.monotonic() + 60
        while len(self.reasons) < count:
            assert time.monotonic() < deadline_s, f"only {self.reasons} have ended"
            time.sleep(0.005)
        return self.reasons

    def reload(self, settings: Settings) -> None:
        """For uploads that begin from now."""

        async def reload() -> None:
            self.admission.reload(settings)

        asyncio.run_coroutine_threadsafe(reload(), self.loop).result(10)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(lambda: self.writer.send(ShutdownPlaneCommand(m.FORCE)))
        assert self.data_plane.join(10)
        assert self.data_plane.error is None
        assert self.pool.stop(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        for fd in (*self.data_plane.event_fds, self.data_plane.command_fd, self.data_plane.ended_fd):
            os.close(fd)


def everything(client: socket.socket) -> bytes:
    pieces: list[bytes] = []
    while piece := client.recv(65_536):
        pieces.append(piece)
    return b"".join(pieces)


def send_all(client: socket.socket, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=client.sendall, args=(data,))
    thread.start()
    return thread
