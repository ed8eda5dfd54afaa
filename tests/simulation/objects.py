"""What descriptors of the simulated kernel stand for: sockets of clients and upstreams, peers, pipes, the listener.

Each answers the questions the kernel asks (`ready` for a poll, and the operations that can be done on it), keeps the
operations that wait on it, and knows nothing of the plane. No randomness is drawn here but where a caller passes it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from daemon.plane import entries as e

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.kernel import Operation
    from tests.simulation.relay_checks import Exchange
    from tests.simulation.upstreams import Upstream

ENOTCONN = 107


class Thing:
    """Something a descriptor refers to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_open = True
        self.waiting: list[Operation] = []

    def ready(self) -> int:
        """The poll events that are true now."""
        return 0

    def close(self) -> None:
        """The plane has closed it."""
        assert self.is_open, f"descriptor {self.fd} is closed twice"
        self.is_open = False


class ClientSocket(Thing):
    """The plane's end of a client's connection, with the client's half of the truth beside it."""

    def __init__(self, fd: int, window: int, *, blocking: bool, is_unix: bool) -> None:
        super().__init__(fd)
        self.window = window
        self.blocking = blocking
        self.is_unix = is_unix
        self.is_stream = True  # False: a pipe, a file or a datagram socket was handed over
        self.taken = bytearray()  # what the kernel has taken from us
        self.read_bytes = 0  # how much of it the client has read
        self.destroyed_bytes = 0  # what the client had not yet read when a reset of ours destroyed it
        self.incoming = bytearray()
        self.finished = False  # the client has shut down its side, or closed
        self.closed_by_client = False
        self.was_reset = False
        self.shut = False
        self.left_at_ns = -1  # of the active clock: since when it is visible that the client has left
        self.reset_at_ns = -1  # of the active clock: a client that may close its half is seen to have left only then
        self.fault_injected = False  # an error was made up for it
        self.on_taken: Callable[[bytes], None] | None = None
        self.belongs_to_control = False
        self.attempt_ns = -1  # when the present attempt to send began; it ends when the plane hears of progress
        self.last_attempt_ns = -1

    def space(self) -> int:
        return self.window - (len(self.taken) - self.read_bytes)

    def ready(self) -> int:
        mask = 0
        if self.incoming or self.finished or self.was_reset:
            mask |= e.POLLIN
        if self.finished or self.was_reset:
            mask |= e.POLLRDHUP
        if self.was_reset or (self.finished and self.shut) or (self.closed_by_client and self.is_unix):
            mask |= e.POLLHUP
        if self.was_reset:
            mask |= e.POLLERR
        if self.space() > 0 or self.was_reset or self.closed_by_client:
            mask |= e.POLLOUT
        return mask

    def send(self, data: bytes) -> int:
        """Take bytes; the result of send(2), or 0 where it would block."""
        if self.shut or (self.closed_by_client and self.is_unix):
            return -e.EPIPE
        if self.was_reset:
            return -e.ECONNRESET if not self.taken or self.taken[-1] & 1 else -e.EPIPE
        if self.closed_by_client:  # TCP: the first send draws the reset
            self.was_reset = True
            self._take(data)
            self.read_bytes = len(self.taken)
            return len(data)
        if self.space() <= 0:
            return 0
        self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        self.taken += data
        if self.on_taken is not None:
            self.on_taken(data)

    def receive(self, count: int) -> bytes | int:
        """Bytes, b"" at the end, or a negative errno."""
        if not self.is_stream:
            return -88  # ENOTSOCK
        if self.was_reset:
            return -e.ECONNRESET
        if self.incoming:
            data = bytes(self.incoming[:count])
            del self.incoming[:count]
            return data
        return b"" if self.finished else -e.EAGAIN

    def close(self) -> None:
        super().close()
        if self.incoming:  # unread input: the kernel sends a reset, and what was not yet read is lost
            self.destroyed_bytes = len(self.taken) - self.read_bytes


class UpstreamSocket(Thing):
    """The plane's end of a connection to an upstream, with the upstream's half of the truth beside it."""

    def __init__(self, fd: int, number: int, generation: int) -> None:
        super().__init__(fd)
        self.number = number  # of the plane's connection
        self.generation = generation
        self.upstream: Upstream | None = None  # whom it was connected to
        self.connecting = False
        self.connect_operation: Operation | None = None
        self.connected = False
        self.connect_result: int | None = None  # what the network has decided, once it has
        self.window = 1 << 30  # how much of a request fits in before the upstream reads
        self.taken = bytearray()  # what the kernel has taken from us
        self.read_bytes = 0  # how much of it the upstream has read
        self.incoming = bytearray()  # the answer, as far as it has arrived
        self.finished = False  # the upstream has sent its FIN
        self.was_reset = False
        self.reset_seen = False  # an operation has told the plane so: what comes next is EPIPE, or the end
        self.closed_by_upstream = False  # what is sent now draws a reset
        self.on_taken: Callable[[], None] | None = None
        self.delivered_bytes = 0  # of the present answer: what the plane has been given
        self.exchange: Exchange | None = None  # the present answer, as the checks follow it
        self.served = 0  # how many answers before it have let the connection be kept
        self.idle_active_ns = -1  # of the active clock: since when the plane keeps it
        self.ended_active_ns = -1  # since when the plane knows that it has ended

    def space(self) -> int:
        return self.window - (len(self.taken) - self.read_bytes)

    def ready(self) -> int:
        mask = 0
        if self.incoming or self.finished or self.was_reset:
            mask |= e.POLLIN
        if self.finished or self.was_reset:
            mask |= e.POLLRDHUP
        if self.was_reset:
            mask |= e.POLLERR | e.POLLHUP
        if self.was_reset or (self.connected and self.space() > 0):
            mask |= e.POLLOUT
        return mask

    def send(self, data: bytes) -> int:
        """Take bytes; the result of send(2), or 0 where it would block."""
        assert self.upstream is not None
        if self.was_reset:
            was_seen, self.reset_seen = self.reset_seen or self.finished, True
            return -e.EPIPE if was_seen else -e.ECONNRESET
        if self.closed_by_upstream and self.upstream.is_unix:
            return -e.EPIPE
        if self.closed_by_upstream:  # TCP: the first send draws the reset
            self.was_reset = True
            return len(data)
        if self.space() <= 0:
            return 0
        self.taken += data
        if self.on_taken is not None:
            self.on_taken()
        return len(data)

    def receive(self, count: int) -> bytes | int:
        """Bytes, b"" at the end, or a negative errno."""
        if self.incoming:
            data = bytes(self.incoming[:count])
            del self.incoming[:count]
            return data
        if self.finished:
            return b""
        if self.was_reset:
            was_seen, self.reset_seen = self.reset_seen, True
            return b"" if was_seen else -e.ECONNRESET
        return -e.EAGAIN

    def reset(self, *, loses_input: bool) -> None:
        """The connection breaks; what has arrived and was not received may be lost with it."""
        self.was_reset = True
        if loses_input:
            self.incoming.clear()


class PeerSocket(Thing):
    """The plane's end of Apache's connection: messages with descriptors, then perhaps an end."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.messages: deque[tuple[bytes, list[int]]] = deque()
        self.ended = False
        self.was_reset = False

    def ready(self) -> int:
        mask = e.POLLIN if self.messages or self.ended else 0
        return mask | (e.POLLRDHUP if self.ended else 0)


class Listener(Thing):
    """A listening socket."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.arrivals: deque[PeerSocket] = deque()


class Pipe(Thing):
    """A pipe; `apply` functions lie in it beside the bytes, and are called when the reader has read past them."""

    def __init__(self, fd: int, capacity: int, *, blocking: bool) -> None:
        super().__init__(fd)
        self.capacity = capacity
        self.blocking = blocking
        self.data = bytearray()
        self.broken = False
        self.written = 0
        self.consumed = 0
        self.marks: deque[tuple[int, Callable[[], None]]] = deque()
        self.on_written: Callable[[], None] | None = None
        self.on_read: Callable[[], None] | None = None

    def ready(self) -> int:
        mask = e.POLLIN if self.data else 0
        return mask | (e.POLLOUT if self.broken or self.capacity - len(self.data) >= 4096 else 0)

    def write(self, data: bytes, apply: Callable[[], None] | None = None) -> bool:
        """All of it, or nothing where it does not fit: what a pipe does up to 4,096 bytes."""
        if len(self.data) + len(data) > self.capacity:
            return False
        self.data += data
        self.written += len(data)
        if apply is not None:
            self.marks.append((self.written, apply))
        return True

    def read(self, count: int) -> bytes:
        data = bytes(self.data[:count])
        del self.data[:count]
        self.consumed += len(data)
        return data

    def due(self) -> list[Callable[[], None]]:
        """Functions of the commands that have been read whole."""
        functions: list[Callable[[], None]] = []
        while self.marks and self.marks[0][0] <= self.consumed:
            functions.append(self.marks.popleft()[1])
        return functions
