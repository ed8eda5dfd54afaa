"""Servers that the plane connects to: how they accept, read a request, answer it, and keep or break the connection."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from daemon.plane import entries as e
from tests.simulation.answers import FIN, KEEP, RESET, Answer, make_answer
from tests.simulation.invariant import check

if TYPE_CHECKING:
    import random

    from tests.simulation.kernel import SimulatedKernel
    from tests.simulation.objects import UpstreamSocket

MILLISECOND = 1_000_000
ECONNREFUSED, EHOSTUNREACH, ENOENT = 111, 113, 2
INCOMING_MAX = 300_000  # what fits in a receive window
REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Request:
    """What one ATTEMPT wants to be sent: its bytes stay where they are until the stream's end."""

    def __init__(self, number: int, size: int, upstream: Upstream) -> None:
        line = b"POST /%d HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (number, size)
        self.data = line + bytes((number * 7 + index * 11) & 0x7F for index in range(min(size, 64))) * (size // 64 + 1)
        self.data = self.data[: len(line) + size]
        self.upstream = upstream
        self.memory = ctypes.create_string_buffer(self.data, len(self.data))
        self.sent_on: list[Served] = []

    @property
    def address(self) -> int:
        return ctypes.addressof(self.memory)

    def begin(self, connection: Served) -> None:
        """Its first bytes have arrived."""
        check(connection.upstream is self.upstream, "a request was sent to another endpoint than its attempt named")
        for earlier in self.sent_on:
            died = earlier.socket.was_reset or earlier.socket.finished
            stale = earlier.was_kept and died and earlier.socket.delivered_bytes == 0 and earlier is not connection
            check(stale, "a request was sent twice, and not because a kept connection was dead")
        self.sent_on.append(connection)
        check(len(self.sent_on) <= 2, "a request was sent three times")


class Upstream:
    """One endpoint: its address, and the habits of whoever listens there."""

    def __init__(
        self, kernel: SimulatedKernel, rng: random.Random, number: int, requests: dict[int, Request], *, calm: bool
    ) -> None:
        self.kernel = kernel
        self.rng = rng
        self.number = number
        self.requests = requests
        self.is_unix = rng.random() < 0.3
        if self.is_unix:
            self.address = struct.pack("<H", 1) + b"/run/upstream-%d\0" % number
        else:
            self.address = struct.pack("<H", 2) + struct.pack(">H4s8x", 8000 + number, b"\x7f\0\0\1")
        self.calm = calm
        self.connections: list[Served] = []

    def connect(self, socket: UpstreamSocket) -> None:
        """The plane's CONNECT has arrived."""
        socket.upstream = self
        rng = self.rng
        how = "now" if self.calm else rng.choices(("now", "late", "refuse", "never"), (20, 4, 2, 1))[0]
        if how == "never":
            return
        result, delay_ns = 0, 0
        if how == "late":
            delay_ns = rng.choice((1, 50, 2000)) * MILLISECOND
        elif how == "refuse":
            codes = (ECONNREFUSED, e.EAGAIN, ENOENT) if self.is_unix else (ECONNREFUSED, e.ETIMEDOUT, EHOSTUNREACH)
            result, delay_ns = -rng.choice(codes), rng.choice((0, 1, 300)) * MILLISECOND
        if delay_ns:
            self.kernel.at(delay_ns, lambda: self._decide(socket, result))
        else:
            self._decide(socket, result)

    def _decide(self, socket: UpstreamSocket, result: int) -> None:
        if not socket.is_open:
            return
        socket.connect_result = result
        if result == 0:
            socket.connected = True
            self.connections.append(Served(self, socket))
        self.kernel.wake(socket)


class Served:
    """The upstream's side of one connection."""

    def __init__(self, upstream: Upstream, socket: UpstreamSocket) -> None:
        self.upstream = upstream
        self.socket = socket
        self.kernel = upstream.kernel
        self.rng = upstream.rng
        self.answer: Answer | None = None  # of the present request
        self.was_kept = False  # it has answered another request before the present one
        self._request: Request | None = None
        self._start = 0  # of the present request
        self._sent = 0  # of the present answer
        self._dies_at_request = False
        self._reading = False
        self._waits_for_rest = False
        socket.window = self.rng.choice((50, 4096, 1 << 20, 1 << 20))
        socket.on_taken = self._plan_read

    @property
    def is_gone(self) -> bool:
        socket = self.socket
        return not socket.is_open or socket.was_reset or socket.finished

    def _plan_read(self) -> None:
        if not self._reading:
            self._reading = True
            self.kernel.at(self.rng.choice((0, 0, 0, 1, 20)) * MILLISECOND, self._read)

    def _read(self) -> None:
        self._reading = False
        socket = self.socket
        if self.is_gone:
            return
        socket.read_bytes = len(socket.taken)
        self._look(bytes(socket.taken[self._start :]))
        self.kernel.wake(socket)

    def _look(self, data: bytes) -> None:
        """What has come of a request, from its beginning on."""
        if self._request is None:
            line, found, _ = data.partition(b"\r\n")
            if not found:
                return
            number = int(line.split(b"/")[1].split(b" ")[0])
            self._request = self.upstream.requests[number]
            self._request.begin(self)
            if self._dies_at_request:
                self._break(self.rng.choice((FIN, RESET)))
                return
        wanted = self._request.data
        if self.answer is not None and self._sent == len(self.answer.wire) and self.answer.ending != KEEP:
            return  # it is about to go, whatever it has said
        if self._waits_for_rest and len(data) >= len(wanted):
            self._keep()
            if len(data) > len(wanted):
                self._look(data[len(wanted) :])
            return
        check(wanted.startswith(data), f"a request is not what its ATTEMPT said, within {len(data)} bytes")
        if self.answer is None:
            answer = make_answer(self.rng)
            if len(data) < len(wanted) and not answer.early:
                return
            self.answer = answer
            self.kernel.at(answer.wait_ms * MILLISECOND, self._speak)

    # ---- answering

    def _speak(self) -> None:
        """The next piece of the answer."""
        socket, answer, rng = self.socket, self.answer, self.rng
        if self.is_gone or answer is None:
            return
        if len(socket.incoming) > INCOMING_MAX:
            self.kernel.at(20 * MILLISECOND, self._speak)
            return
        piece = answer.wire[self._sent : self._sent + rng.choice(answer.sizes)]
        self._sent += len(piece)
        if piece:
            socket.incoming += piece
            self.kernel.wake(socket)
        if self._sent < len(answer.wire):
            self.kernel.at(rng.choice(answer.delays_ms) * MILLISECOND, self._speak)
        elif answer.ending == KEEP:
            self._keep()
        elif answer.ending in (FIN, RESET):
            self.kernel.at(rng.choice((0, 0, 1, 300)) * MILLISECOND, lambda: self._break(answer.ending))

    def _keep(self) -> None:
        """The answer is out: wait for the next request, for a while at least."""
        rng, request = self.rng, self._request
        assert request is not None
        # Answered early: the rest of the request comes, or does not.
        self._waits_for_rest = self.socket.read_bytes - self._start < len(request.data)
        if self._waits_for_rest:
            return
        self._start += len(request.data)
        self._request = self.answer = None
        self._sent = 0
        self.was_kept = True
        habit = rng.choices(("stay", "fin", "reset", "dies", "timeout"), (8, 2, 1, 3, 1))[0]
        if habit == "dies":
            self._dies_at_request = True
        elif habit != "stay":
            start = self._start
            delay_ns = rng.choice((0, 1, 30, 300, 2000)) * MILLISECOND
            self.kernel.at(delay_ns, lambda: self._leave_idle(habit, start))

    def _leave_idle(self, habit: str, start: int) -> None:
        if self.is_gone or self._start != start or len(self.socket.taken) != start:
            return  # another request has come
        if habit == "timeout":
            self.socket.incoming += REQUEST_TIMEOUT
        self._break(RESET if habit == "reset" else FIN)

    def _break(self, how: str) -> None:
        """End the connection, whatever it is doing."""
        socket = self.socket
        if self.is_gone:
            return
        self.kernel.log(f"upstream {self.upstream.number} ends descriptor {socket.fd}: {how}")
        if how == RESET:
            socket.reset(loses_input=self.rng.random() < 0.5)
        else:
            socket.finished = True
            socket.closed_by_upstream = self.rng.random() < 0.8
        self.kernel.wake(socket)
