"""Clients and handoff peers: what the world outside does, from the seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.kernel import MILLISECOND
from tests.simulation.objects import ClientSocket, PeerSocket

if TYPE_CHECKING:
    import random

    from tests.simulation.kernel import SimulatedKernel

UPLOAD_NONE, UPLOAD_LENGTH, UPLOAD_CHUNKED = 0, 1, 2


@dataclass
class Upload:
    """A body the client sends: its bytes, what of them is on the wire, and how it ends."""

    kind: int
    body: bytes
    wire: bytes
    prefix_bytes: int = 0  # read by the HTTP front already
    truncated: bool = False
    malformed: bool = False
    received: bytearray = field(default_factory=bytearray)


class Client:
    """One client: how it reads, what it sends, and when it leaves."""

    def __init__(self, kernel: SimulatedKernel, rng: random.Random, *, calm: bool) -> None:
        self.kernel = kernel
        self.rng = rng
        window = rng.choice((40, 400, 3000, 20_000, 200_000))
        fd = kernel.new_fd()
        self.socket = ClientSocket(fd, window, blocking=rng.random() < 0.5, is_unix=rng.random() < 0.3)
        kernel.add(self.socket)
        self.reading = rng.choices(("eager", "slow", "never", "stops"), (12, 3, 1, 1))[0]
        self.stops_after = rng.randrange(0, 2000)
        self._read_planned = False
        self.half_closes = False
        self.cooperative = True  # reads all, and neither leaves nor resets
        self.upload: Upload | None = None
        if calm:
            self.reading = "eager"
            return
        if self.reading != "eager":
            self.cooperative = False
        if rng.random() < 0.35:
            self.cooperative = False
            kernel.at(int(rng.expovariate(1 / 400) * MILLISECOND), self.leave)
        if rng.random() < 0.2:
            for _ in range(rng.randrange(1, 4)):
                data = rng.randbytes(rng.choice((1, 30, 20_000)))
                kernel.at(rng.randrange(0, 800) * MILLISECOND, lambda data=data: self._interject(data))  # type: ignore[misc]

    def leave(self) -> None:
        socket, how = self.socket, self.rng.choice(("close", "close", "reset", "half"))
        if socket.was_reset or socket.finished:
            return
        if how == "reset" or (how == "close" and socket.read_bytes < len(socket.taken) and not socket.is_unix):
            self.kernel.log(f"client {socket.fd} resets")
            self.kernel.reset_client(socket)
            return
        self.kernel.log(f"client {socket.fd} leaves ({how})")
        socket.finished = True
        socket.closed_by_client = how == "close"
        self.half_closes = how == "half"
        socket.left_at_ns = self.kernel.active_ns
        self.kernel.wake(socket)

    def _interject(self, data: bytes) -> None:
        """Input that nobody asked for."""
        if self.upload is None:
            self.send(data)

    def send(self, data: bytes) -> None:
        """Input of the client, unless it has left."""
        if not self.socket.finished and not self.socket.was_reset:
            self.socket.incoming += data
            self.kernel.wake(self.socket)

    def finish_sending(self) -> None:
        """A FIN after the upload."""
        if not self.socket.finished and not self.socket.was_reset:
            self.socket.finished = True
            self.socket.left_at_ns = self.kernel.active_ns
            self.kernel.wake(self.socket)

    def plan_read(self) -> None:
        """Called when there may be something to read."""
        if self._read_planned or self.reading == "never":
            return
        if self.reading == "stops" and self.socket.read_bytes > self.stops_after:
            return
        self._read_planned = True
        slow = self.reading == "slow"
        self.kernel.at(self.rng.randrange(0, (200 if slow else 5)) * MILLISECOND, self._read)

    def _read(self) -> None:
        self._read_planned = False
        socket = self.socket
        if socket.was_reset or socket.closed_by_client or not socket.is_open:
            return
        available = len(socket.taken) - socket.read_bytes
        size = self.rng.randrange(1, 2000) if self.reading == "slow" else available
        if available > 0:
            socket.read_bytes += min(size, available)
            self.kernel.wake(socket)
        if socket.read_bytes < len(socket.taken):
            self.plan_read()

    def start_upload(self, upload: Upload) -> None:
        """Send the body in pieces, then, when it is cut short, a FIN."""
        self.upload = upload
        rng, rest, delay_ns = self.rng, upload.wire[upload.prefix_bytes :], 0
        while rest:
            size = rng.choice((1, 10, 500, 5000))
            piece, rest = rest[:size], rest[size:]
            delay_ns += rng.choice((0, 0, 1, 20)) * MILLISECOND
            self.kernel.at(delay_ns, lambda piece=piece: self.send(piece))  # type: ignore[misc]
        if upload.truncated:
            self.kernel.at(delay_ns + MILLISECOND, self.finish_sending)


def make_upload(rng: random.Random) -> Upload:
    """A body of any length and framing, sometimes cut or broken."""
    body = bytes(rng.randrange(97, 122) for _ in range(rng.choice((1, 7, 300, 3000, 9000))))
    if rng.random() < 0.5:
        upload = Upload(UPLOAD_LENGTH, body, body)
    else:
        upload = Upload(UPLOAD_CHUNKED, body, b"")
        rest = body
        wire = bytearray()
        while rest:
            size = rng.choice((1, 5, 100, 4096, len(rest)))
            piece, rest = rest[:size], rest[size:]
            extension = rng.choice((b"", b"", b";name=value"))
            wire += b"%x%s\r\n%s\r\n" % (len(piece), extension, piece)
        upload.malformed = rng.random() < 0.1
        wire += b"zz\r\n" if upload.malformed else b"0\r\n" + rng.choice((b"", b"A: b\r\n")) + b"\r\n"
        upload.wire = bytes(wire)
    if rng.random() < 0.15 and not upload.malformed:
        upload.truncated = True
        upload.wire = upload.wire[: rng.randrange(0, len(upload.wire))]
    upload.prefix_bytes = min(len(upload.wire), rng.choice((0, 0, 5, 200)))
    return upload


class Peer:
    """One connection of Apache's module: how it hands a client over, or fails to."""

    KINDS = ("normal", "late", "silent", "empty", "no_descriptor", "several", "oversize", "nul")
    WEIGHTS = (30, 6, 2, 1, 2, 2, 2, 2)

    def __init__(
        self, kernel: SimulatedKernel, rng: random.Random, client: Client, bytes_max: int, *, stream: bool
    ) -> None:
        self.kernel = kernel
        self.rng = rng
        self.client = client
        self.extras = [Client(kernel, rng, calm=True) for _ in range(rng.choice((1, 2, 14)))]
        self.stream = stream
        self.socket = PeerSocket(kernel.new_fd())
        self.kind = rng.choices(self.KINDS, self.WEIGHTS)[0]
        size = {"oversize": bytes_max + rng.choice((1, 500)), "nul": 1}.get(self.kind, rng.randrange(2, bytes_max + 1))
        self.data = b"\0" if self.kind == "nul" else rng.randbytes(size)
        if self.kind != "silent":
            late_ns = rng.randrange(0, 300) * MILLISECOND
            kernel.at(late_ns if self.kind == "late" else rng.choice((0, 0, MILLISECOND)), self._speak)

    def _speak(self) -> None:
        peer, fds = self.socket, [self.client.socket.fd]
        if self.kind == "empty":
            peer.ended = True
        elif self.kind == "no_descriptor":
            self._send(self.data, [])
        elif self.kind == "several":
            self._send(self.data, fds + [extra.socket.fd for extra in self.extras])
        else:
            self._send(self.data, fds)
        self.kernel.wake(peer)

    def _send(self, data: bytes, descriptors: list[int]) -> None:
        peer, rng = self.socket, self.rng
        if not self.stream:
            peer.messages.append((data, descriptors))
            return
        delay_ns = 0
        first = True
        while data:
            size = rng.choice((1, 100, 5000)) if rng.random() < 0.7 else len(data)
            piece, data = data[:size], data[size:]
            self.kernel.at(delay_ns, lambda entry=(piece, descriptors if first else []): self._say(entry))  # type: ignore[misc]
            delay_ns += rng.choice((0, 0, 1, 50)) * MILLISECOND
            first = False
        if rng.random() < 0.9:
            self.kernel.at(delay_ns, self._end)

    def _say(self, entry: tuple[bytes, list[int]]) -> None:
        if self.socket.is_open:
            self.socket.messages.append(entry)
            self.kernel.wake(self.socket)

    def _end(self) -> None:
        self.socket.ended = True
        self.kernel.wake(self.socket)
