"""The control plane and the workers, simulated: they answer events with commands, at their own pace, from the seed."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import TYPE_CHECKING

from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.event_records import BodyEvent, Event, ReleasedEvent, StoppedEvent, WorkerEvent
from tests.simulation import wire
from tests.simulation.clients import UPLOAD_CHUNKED, UPLOAD_LENGTH, Upload
from tests.simulation.kernel import MILLISECOND, SECOND, check

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.simulation.checks import StreamCheck
    from tests.simulation.kernel import SimulatedKernel
    from tests.simulation.objects import Pipe
    from tests.simulation.raw_feed import RawFeed

POISON = 0xEE
RESERVE_BYTES = 1024


class Sender:
    """One writer of the command pipe: whole commands, or nothing; what does not fit waits here."""

    def __init__(self, pipe: Pipe, kernel: SimulatedKernel) -> None:
        self.pipe = pipe
        self.kernel = kernel
        self._waiting: deque[tuple[bytes, Callable[[], None] | None]] = deque()
        self._written_count = 0
        self._following: deque[tuple[int, Callable[[], None]]] = deque()

    def send(self, data: bytes, apply: Callable[[], None] | None = None) -> None:
        self._waiting.append((data, apply))
        self.flush()

    def when_written(self, action: Callable[[], None]) -> None:
        """Do it when all that was sent is in the pipe: what others write is behind it from then on."""
        self._following.append((self._written_count + len(self._waiting), action))
        self._follow()

    def flush(self) -> None:
        waiting, wrote = self._waiting, False
        while waiting and self.pipe.write(*waiting[0]):
            waiting.popleft()
            self._written_count += 1
            wrote = True
        if wrote:
            self.kernel.wake(self.pipe)
            self._follow()

    def _follow(self) -> None:
        while self._following and self._following[0][0] <= self._written_count:
            self._following.popleft()[1]()


class EventReader:
    """The reading end of an event pipe: reads after a while, in cuts of any size, sometimes not for seconds."""

    def __init__(
        self, pipe: Pipe, kernel: SimulatedKernel, rng: random.Random, handle: Callable[[Event], None]
    ) -> None:
        self.pipe = pipe
        self._kernel = kernel
        self._rng = rng
        self._handle = handle
        self._buffer = b""
        self._planned = False
        pipe.on_written = self._plan

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            stall_ns = 2 * SECOND if self._rng.random() < 0.01 else 0
            self._kernel.at(stall_ns + self._rng.choice((0, 0, 1, 5)) * MILLISECOND, self._read)

    def _read(self) -> None:
        self._planned = False
        count = self._rng.choice((64, 100, 1000, 1 << 20))
        self._buffer += self.pipe.read(count)
        self._kernel.wake(self.pipe)
        whole = len(self._buffer) // m.EVENT_BYTES * m.EVENT_BYTES
        records, self._buffer = self._buffer[:whole], self._buffer[whole:]
        for event in wire.events(records):
            self._handle(event)
        if self.pipe.data:
            self._plan()


class Feed:
    """A worker's side of one pushed stream: its script, its credit, its ranges and its upload."""

    def __init__(
        self, worker: Worker, stream: StreamCheck, rng: random.Random, upload: Upload | None, *, chunked: bool
    ) -> None:
        self.worker = worker
        self.stream = stream
        self.rng = rng
        self.upload = upload
        self.chunked = chunked
        self.kernel = worker.kernel
        self.pieces = rng.choice((0, 1, 3, 10, 40))
        self.pause_ms = rng.choice((0, 1, 10, 300, 4000))
        self.ending = rng.choices(("complete", "error", "stop", "hang"), (14, 2, 2, 1))[0]
        self.sent_bytes = 0
        self.released_bytes = 0
        self.ranges: list[tuple[ctypes.Array[ctypes.c_char], int]] = []
        self.released_ranges = 0
        self.head_sent = False
        self.done = False
        self.stopped = False
        self.body_over = upload is None
        self.bodies_lent = 0

    def begin(self) -> None:
        """Take it from the queue."""
        if self.done:
            return
        key, stream = self.stream.key, self.stream
        self.worker.send(wire.command(m.START, key, channel=self.worker.channel), lambda: self._started(stream))
        self._plan()

    def _started(self, stream: StreamCheck) -> None:
        def look() -> None:
            record = self.kernel.plane.streams[stream.key[0]]
            stream.started |= record.generation == stream.key[1] and record.channel == self.worker.channel

        slot, generation = stream.key
        record = self.kernel.plane.streams[slot]
        # The plane carries it out in the turn that begins now: a stream that is open is taken.
        if record.generation == generation and st.LLM_QUEUED <= record.state < st.CLOSING:
            self.kernel.after_turn.append(look)

    def _plan(self) -> None:
        if not self.done and not self.stopped:
            self.kernel.at(self.rng.choice((0, 0, 1, self.pause_ms)) * MILLISECOND, self._speak)

    def _speak(self) -> None:
        """The next thing to say, if there is credit for it."""
        if self.done or self.stopped:
            return
        if not self.head_sent:
            self._send_head()
        elif self.pieces > 0:
            self.pieces -= 1
            said = self._push_range() if self.rng.random() < 0.3 else self._push()
            if not said:
                self.pieces += 1
                return  # RELEASED will go on
        elif not self.body_over and self.rng.random() < 0.95:
            return  # the upload's end will go on
        else:
            self._end()
        self._plan()

    def _credit(self) -> int:
        return self.worker.block_bytes - RESERVE_BYTES - (self.sent_bytes - self.released_bytes)

    def _text(self, size: int) -> bytes:
        return bytes(self.rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=size))

    def _send_head(self) -> None:
        """The head, standard or not, in one piece or several."""
        stream, rng = self.stream, self.rng
        self.head_sent = True
        pieces = [b"HTTP/1.1 200 OK\r\nA: " + self._text(rng.randrange(1, 60))]
        if rng.random() < 0.2:
            pieces.append(self._text(100))
        pieces[-1] += b"\r\n\r\n"
        flags = m.STANDARD_HEAD if rng.random() < 0.4 else 0
        if flags:
            pieces, size = [b""], len(stream.standard_head)
        else:
            size = sum(map(len, pieces))
        self.sent_bytes += size
        for number, piece in enumerate(pieces):
            partial = m.PARTIAL if number + 1 < len(pieces) else 0
            self._command(m.PUSH, flags | partial, piece, b"")

    def _push(self) -> bool:
        size = self.rng.choice((1, 2, 17, 100, 400, 900))
        cost = size + (len(b"%x" % size) + 4 if self.chunked else 0)
        if cost > self._credit():
            return False
        self.sent_bytes += cost
        partial = m.PARTIAL if self.rng.random() < 0.1 else 0
        self._command(m.PUSH, partial, b"", self._text(size))
        return True

    def _push_range(self) -> bool:
        size = min(self.rng.choice((1, 100, 3000, 20_000, 70_000)), 100 * self.stream.socket.window)
        cost = len(b"%x" % size) + 4 if self.chunked else 0
        if cost > self._credit() or len(self.ranges) - self.released_ranges >= 3:
            return False
        self.sent_bytes += cost
        text = (self._text(min(size, 97)) * (size // 97 + 1))[:size]
        memory = ctypes.create_string_buffer(text, size)
        self.ranges.append((memory, size))
        stream, address = self.stream, ctypes.addressof(memory)
        data = wire.command(m.PUSH_RANGE, stream.key, range_address=address, range_bytes=size)
        self.worker.send(data, lambda: stream.push_range(0, text))
        return True

    def _command(self, kind: int, flags: int, head: bytes, body: bytes) -> None:
        stream = self.stream
        data = wire.command(kind, stream.key, head + body, flags=flags, head_bytes=len(head))
        self.worker.send(data, lambda: stream.push(flags, head, body))

    def _end(self) -> None:
        stream, self.done = self.stream, True
        if self.ending == "complete":
            end = b"data: [DONE]\n\n"
            data = wire.command(m.FINISH, stream.key, end, flags=m.COMPLETE, reason=st.COMPLETE)
            self.worker.send(data, lambda: stream.finish(m.COMPLETE, st.COMPLETE, b"", end))
        elif self.ending == "error":
            error = b"event: error\n\n"
            data = wire.command(m.FINISH, stream.key, error, reason=st.BACKEND_ERROR)
            self.worker.send(data, lambda: stream.finish(0, st.BACKEND_ERROR, b"", error))
        elif self.ending == "stop":
            self.worker.send(*stop_command(stream, st.BACKEND_ERROR))

    # ---- events

    def handle(self, event: WorkerEvent) -> None:
        check(not self.stopped, f"{self.stream.key}: an event after STOPPED")
        if isinstance(event, BodyEvent):
            self._take_body(event)
        else:
            self._take_back(event, everything=isinstance(event, StoppedEvent))
            if isinstance(event, StoppedEvent):
                self.stopped = True
                true_end = bool(event.flags & m.COMPLETE)
                check(self.ending == "complete" if true_end else event.reason != st.COMPLETE, f"a true end: {event}")
            elif not self.done:
                self._plan()

    def _take_back(self, event: ReleasedEvent | StoppedEvent, *, everything: bool) -> None:
        """Ranges that are ours again: poisoned at once, so that whoever still reads them is seen."""
        released = event.released_ranges
        check(self.released_ranges <= released <= len(self.ranges), f"{released} ranges given back")
        # What crossed with the stream's end was dropped, and never the plane's: it counts as given back, too.
        count = len(self.ranges) if everything else released
        for memory, size in self.ranges[self.released_ranges : count]:
            begin, end = ctypes.addressof(memory), ctypes.addressof(memory) + size
            for operation in self.kernel.operations.values():
                touches = (
                    operation.snapshot and operation.address < end and begin < operation.address + operation.length
                )
                check(not touches, "a range was given back while a send of it is in flight")
            ctypes.memset(memory, POISON, size)
        self.released_ranges = count
        over = self.done or self.stream.finished  # then endings count, too, and credit no longer matters
        check(over or event.released_bytes <= self.sent_bytes, "RELEASED gives back more than was pushed")
        self.released_bytes = max(self.released_bytes, event.released_bytes)

    def _take_body(self, event: BodyEvent) -> None:
        upload = self.upload
        assert upload is not None, "a body without an upload"
        check(not self.body_over, "a piece of body after its end")
        self.bodies_lent += 1
        check(self.bodies_lent == 1, "the body buffer is lent twice")
        upload.received += ctypes.string_at(event.piece_address, event.piece_bytes)
        check(upload.body.startswith(upload.received), "the upload arrived altered")
        if event.flags:
            self.body_over = True
            if event.flags & m.BODY_LAST:
                self.stream.has_body = False
                self.stream.body_over_active_ns = self.kernel.active_ns
            self._check_body_end(upload, event.flags)
            self._plan()
        self.kernel.at(self.rng.choice((0, 1, 50)) * MILLISECOND, self._return_body)

    def _check_body_end(self, upload: Upload, flags: int) -> None:
        socket = self.stream.socket
        if flags & m.BODY_LAST:
            check(bytes(upload.received) == upload.body, "the upload's last piece came too early")
        elif flags & m.BODY_MALFORMED:
            check(upload.malformed, "a sound upload was called malformed")
        else:
            check(socket.finished or socket.was_reset, "a whole upload was called truncated")

    def _return_body(self) -> None:
        self.bodies_lent -= 1
        self.worker.send(wire.command(m.BODY_RETURN, self.stream.key))


class Worker:
    """A worker thread: one event channel, any number of streams."""

    def __init__(self, channel: int, kernel: SimulatedKernel, sender: Sender, block_bytes: int) -> None:
        self.channel = channel
        self.kernel = kernel
        self.send = sender.send
        self.block_bytes = block_bytes
        self.feeds: dict[tuple[int, int], Feed] = {}
        self.raw_feeds: dict[tuple[int, int], list[RawFeed]] = {}

    def handle(self, event: Event) -> None:
        self.kernel.log(f"   worker {self.channel}: {event}")
        assert isinstance(event, WorkerEvent), f"{event} on a worker's channel"
        key = wire.key_of(event)
        raw_feeds = self.raw_feeds.get(key, ())
        feeds = [feed for feed in raw_feeds if feed.is_started]
        if not feeds and isinstance(event, StoppedEvent):  # its start and its stop can be of one turn
            feeds = [feed for feed in raw_feeds if feed.is_read]
        if feeds:
            feeds[-1].handle(event)
            return
        feed = self.feeds.get(key)
        check(feed is not None, f"{key}: an event for a stream that channel {self.channel} does not feed")
        assert feed is not None
        feed.handle(event)


def stop_command(stream: StreamCheck, reason: int) -> tuple[bytes, Callable[[], None]]:
    """A STOP with both endings, and its effect."""
    head, error = b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"event: error\ndata: {}\n\n"
    data = wire.command(m.STOP, stream.key, head + error, head_bytes=len(head), reason=reason)
    return data, lambda: stream.stop(reason, head, error)


def body_flags(upload: Upload | None) -> int:
    """What OPEN says of an upload."""
    if upload is None:
        return 0
    kinds = {UPLOAD_LENGTH: m.BODY_LENGTH, UPLOAD_CHUNKED: m.BODY_CHUNKED}
    return kinds[upload.kind] | (m.BODY_PREFIX if upload.prefix_bytes else 0)
