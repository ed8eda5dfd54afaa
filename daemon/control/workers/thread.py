"""One thread of the pool: runs a backend for one stream at a time and pushes what it yields.

The thread waits at four places only: for a job, for credit, for room in the command pipe, and inside the backend. At
the first three it sees events and cancellations at once; a backend sees them when it yields, or by asking its request.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

from backends.interface import BackendError, BodyTruncated, Cancelled, paced_chunks
from backends.relay import Relay
from backends.sse import content_event
from daemon.control.channel.command_pipe import write_whole
from daemon.control.channel.commands import pack, pack_push
from daemon.control.channel.events import READ_BYTES, whole_records, worker_events
from daemon.control.channel.responses import STANDARD_HEAD, either
from daemon.control.workers.credit import Credit, framing_bytes
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.command_records import (
    BodyReturnCommand,
    FinishCommand,
    PushRangeCommand,
    StartCommand,
    StopCommand,
)
from daemon.plane.event_records import BodyEvent, ReleasedEvent, StoppedEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.control.stream.job import Job
    from daemon.plane.event_records import WorkerEvent

logger = logging.getLogger(__name__)

_CHECK_NS = 1_000_000  # events are looked for this often while a backend yields without a pause


class JobSource(Protocol):
    """What a worker asks for jobs: the pool."""

    stopping: bool  # no worker begins or goes on with a stream

    def take(self, worker: WorkerThread) -> Job | None:
        """The next job; None when the pool stops. Waits for one, by the worker's own `wait_idle`."""
        ...


class WorkerThread:
    """The thread, its event channel and the stream it feeds. It is also the `Control` of that stream's request."""

    def __init__(
        self, pool: JobSource, channel: int, event_fd: int, command_fd: int, output_block_bytes: int, credit_bytes: int
    ) -> None:
        """`event_fd` reads the plane's channel `channel`; neither descriptor blocks. The pool starts the thread."""
        self._pool = pool
        self._channel = channel
        self._event_fd = event_fd
        self._command_fd = command_fd
        self._block_bytes = output_block_bytes
        self._credit_bytes = credit_bytes
        self._piece_bytes_max = Credit.piece_bytes_max(output_block_bytes)
        self._epoll = select.epoll()  # first, because it closes itself should there be no descriptor for the other
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(event_fd, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._room = select.poll()
        self._room.register(command_fd, select.POLLOUT)
        self._room.register(self._epoll.fileno(), select.POLLIN)
        self._leftover = b""
        # The stream that is fed.
        self._job: Job | None = None
        self._stopped = False
        self._head_due = False
        self._credit = Credit(output_block_bytes, credit_bytes)
        self._pieces: deque[tuple[bytes, int]] = deque()  # of an upload; the plane lends one at a time
        self._checked_ns = 0
        # Streams that were fed and whose STOPPED has not come: the plane may still read their ranges.
        self._held: dict[tuple[int, int], tuple[Job, Credit]] = {}
        self.thread = threading.Thread(target=self._main, name=f"worker-{channel}", daemon=True)

    # ------------------------------------------------------------------------------------------ for other threads

    def wake(self) -> None:
        """There is something to look at: a job, a cancellation, the end. Any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close what the worker opened, once its thread has ended."""
        self._epoll.close()
        os.close(self._wake_fd)

    # ------------------------------------------------------------------------------------- the control of a request

    def cancelled(self) -> bool:
        """Whether the stream is over."""
        self._look(0)
        return self._over()

    def cancel_fd(self) -> int:
        """Readable whenever `cancelled` is worth asking."""
        return self._epoll.fileno()

    def pause(self, seconds: float) -> bool:
        """Wait so long, or until the stream is over; True when it is over."""
        deadline_s = time.monotonic() + seconds
        while not self._over():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._look(left_s)
        return True

    # ------------------------------------------------------------------------------------------------- the thread

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (job := self._pool.take(self)) is not None:
            self._serve(job)

    def wait_idle(self) -> None:
        """Wait for a job, giving back what earlier streams still held."""
        self._look(None)

    def _serve(self, job: Job) -> None:
        """Feed one stream, whatever its backend does."""
        self._job = job
        self._stopped = False
        self._head_due = True
        self._credit = Credit(self._block_bytes, self._credit_bytes)
        job.request.control = self
        if job.has_body:
            job.request.body = self._body()
        try:
            self._write(pack(StartCommand(job.slot, job.generation, self._channel)))
            self._run_backend(job)
        except Cancelled:
            logger.debug("stream over before its backend's end", extra={"backend": job.name})
        except BackendError as error:
            # What a client got wrong is answered, and no news for the operator.
            level = logging.WARNING if error.status >= 500 else logging.DEBUG
            logger.log(level, "backend failed with status %d", error.status, extra={"backend": job.name})
            self._fail(job, st.BACKEND_ERROR, error.status, error.message, error.param)
        except BodyTruncated as error:
            self._fail(job, st.BODY_TRUNCATED, 400, str(error) or "the upload ended before its end")
        # The backend is the user's own code: nothing it raises may end the thread, asyncio's CancelledError included.
        except BaseException:
            # A stream that is over takes its backend's sockets with it: what they raise then is no news.
            level = logging.DEBUG if self._over() else logging.ERROR
            logger.log(level, "backend failed", exc_info=True, extra={"backend": job.name})
            self._fail(job, st.BACKEND_ERROR, 500, "the backend failed")
        self._leave(job)

    def _run_backend(self, job: Job) -> None:
        request, backend = job.request, job.backend
        paced = backend.open(request)
        if isinstance(paced, Relay):
            raise TypeError("a relay is made by the data plane, never by a thread")
        if paced is None:
            source: Iterator[str | bytes] = iter(backend.chunks(request))
            end = backend.end
        else:
            source = paced_chunks(paced, request)
            end = paced.finish()
        try:
            for chunk in source:
                self._glance()
                data = _piece(chunk)
                if data:
                    self._push(job, data)
            self._glance()
            self._finish(job, end)
        finally:
            close = getattr(source, "close", None)  # generators have it: they learn here that they are abandoned
            if close is not None:
                close()

    def _leave(self, job: Job) -> None:
        """Nothing more is sent for this stream. What the plane may still read is kept until it says so."""
        self._job = None
        if self._pieces:
            self._pieces.clear()
            self._return_body(job.slot, job.generation)
        if self._credit.holds and not self._stopped and not job.ended:
            self._held[job.slot, job.generation] = (job, self._credit)
            return
        self._credit.drop()
        job.settled = True

    # ------------------------------------------------------------------------------------------------- waiting

    def _over(self) -> bool:
        job = self._job
        return self._stopped or self._pool.stopping or job is None or job.cancelled

    def _glance(self) -> None:
        """Between two chunks: raise Cancelled when the stream is over, looking for events once a millisecond."""
        now_ns = time.monotonic_ns()
        if now_ns - self._checked_ns > _CHECK_NS:
            self._checked_ns = now_ns
            self._look(0)
        if self._over():
            raise Cancelled

    def _wait(self) -> None:
        """Wait for an event. Raises Cancelled when the stream is over."""
        if not self._over():
            self._look(None)
        if self._over():
            raise Cancelled

    def _look(self, timeout_s: float | None) -> None:
        """Handle what has come, waiting for it at most so long."""
        if not self._epoll.poll(timeout_s):
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._event_fd, READ_BYTES)
            if not data and not self._pool.stopping:  # the plane is gone; the service ends the process
                self._pool.stopping = True
                self._epoll.unregister(self._event_fd)
            data, self._leftover = whole_records(self._leftover + data)
            for event in worker_events(data):
                self._handle(event)
        for key, (job, credit) in list(self._held.items()):
            if job.ended:
                self._settle(key, job, credit)

    def _write(self, command: bytes, *, dropped_when_over: bool = True) -> None:
        """Write a command whole, waiting for room. Raises Cancelled when the stream is over first."""
        while not self._try_write(command):
            if self._pool.stopping or (dropped_when_over and self._over()):
                raise Cancelled
            self._room.poll()
            self._look(0)

    def _try_write(self, command: bytes) -> bool:
        try:
            return write_whole(self._command_fd, command)
        except BrokenPipeError:
            raise Cancelled from None  # the plane is gone; the service ends the process

    # ------------------------------------------------------------------------------------------------- events

    def _handle(self, event: WorkerEvent) -> None:
        job = self._job
        if job is None or job.slot != event.slot or job.generation != event.generation:
            self._handle_earlier(event)
        elif isinstance(event, ReleasedEvent):
            self._credit.released(event.released_bytes, event.released_ranges)
        elif isinstance(event, BodyEvent):
            self._pieces.append((ctypes.string_at(event.piece_address, event.piece_bytes), event.flags))
        else:
            self._stopped = True
            self._credit.drop()

    def _handle_earlier(self, event: WorkerEvent) -> None:
        """An event of a stream that is no longer fed."""
        key = event.slot, event.generation
        if isinstance(event, BodyEvent):
            self._return_body(*key)
            return
        held = self._held.get(key)
        if held is None:
            return
        job, credit = held
        if isinstance(event, ReleasedEvent):
            credit.released(event.released_bytes, event.released_ranges)
        if isinstance(event, StoppedEvent) or not credit.holds:
            self._settle(key, job, credit)

    def _settle(self, key: tuple[int, int], job: Job, credit: Credit) -> None:
        credit.drop()
        del self._held[key]
        job.settled = True

    # ------------------------------------------------------------------------------------------------- output

    def _push(self, job: Job, data: bytes) -> None:
        """One chunk: inside the message where it fits, by address where it does not."""
        flags = 0 if data.endswith(b"\n\n") else m.PARTIAL
        head, head_flag = self._take_head(job)
        room = self._piece_bytes_max - len(head)
        if len(data) <= room:
            self._push_inline(job, data, head, flags | head_flag)
            return
        start = 0
        if head or head_flag:
            start = max(room, 0)  # a small block has no room beside the longest head
            self._push_inline(job, data[:start], head, m.PARTIAL | head_flag)
        self._push_range(job, data, start, flags)

    def _take_head(self, job: Job) -> tuple[bytes, int]:
        """The head that goes before the first piece, and the flag that stands for the standard one."""
        if not self._head_due:
            return b"", 0
        self._head_due = False
        return (b"", m.STANDARD_HEAD) if job.head is None else (job.head, 0)

    def _await_room(self, size: int) -> None:
        while not self._credit.inline_fits(size):
            self._wait()
        self._credit.inline_pushed(size)

    def _push_inline(self, job: Job, data: bytes, head: bytes, flags: int) -> None:
        self._take_credit(job, data, head, flags)
        slot, generation, payload = job.slot, job.generation, head + data
        self._write(pack_push(slot, generation, payload, head_bytes=len(head), flags=flags, attempt=0))

    def _take_credit(self, job: Job, data: bytes, head: bytes, flags: int) -> None:
        """Wait until the plane has room for a piece, and count it."""
        if head or flags & m.STANDARD_HEAD:
            self._credit.inline_pushed(len(head) or len(STANDARD_HEAD))
        self._await_room(len(data) + (framing_bytes(len(data)) if job.chunked else 0))

    def _push_range(self, job: Job, data: bytes, start: int, flags: int) -> None:
        size = len(data) - start
        while not self._credit.range_fits(size):
            self._wait()
        if job.chunked:
            self._await_room(framing_bytes(size))
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        assert address is not None
        self._credit.range_pushed(data)
        self._write(pack(PushRangeCommand(job.slot, job.generation, flags, address + start, size)))

    def _finish(self, job: Job, end: bytes) -> None:
        """The true end."""
        head_bytes = len(job.head or b"") if self._head_due else 0
        if end and head_bytes + len(end) > self._piece_bytes_max:
            self._push(job, end)
            end = b""
        head, head_flag = self._take_head(job)
        flags = m.COMPLETE | head_flag
        self._take_credit(job, end, head, flags)
        finish = FinishCommand(job.slot, job.generation, head_bytes=len(head), flags=flags, reason=st.COMPLETE)
        self._write(pack(finish, head + end))

    def _fail(self, job: Job, reason: int, status: int, message: str, param: str | None = None) -> None:
        """An end that is no true one: a response of its own if nothing has left yet, otherwise an error event."""
        ending = either(status, st.REASONS[reason], message, job.style, lines=job.lines, param=param)
        command = pack(StopCommand(job.slot, job.generation, ending.head_bytes, reason), ending.payload)
        with contextlib.suppress(Cancelled):
            if not self._over():
                self._write(command)

    # ------------------------------------------------------------------------------------------------- uploads

    def _body(self) -> Iterator[bytes]:
        """The pieces of the upload. The plane receives the next one when one has been taken."""
        job = self._job
        assert job is not None
        flags = 0
        while not flags & m.BODY_LAST:
            job.awaits_upload = True
            while not self._pieces:
                self._wait()
            job.awaits_upload = False
            data, flags = self._pieces.popleft()
            self._return_body(job.slot, job.generation)
            if flags & m.BODY_TRUNCATED:
                raise BodyTruncated("the client left before the end of its upload")
            if flags & m.BODY_MALFORMED:
                raise BodyTruncated("the upload's chunked framing is wrong")
            if data:
                yield data

    def _return_body(self, slot: int, generation: int) -> None:
        with contextlib.suppress(Cancelled):
            self._write(pack(BodyReturnCommand(slot, generation)), dropped_when_over=False)


def _piece(chunk: object) -> bytes:
    """What a backend yielded, as bytes. bytes(42) would be 42 zeros: only what is bytes already is taken as such."""
    if isinstance(chunk, str):
        return content_event(chunk)
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, bytearray | memoryview):
        return bytes(cast("bytearray", chunk))
    message = f"chunks() yielded {type(chunk).__name__}: a piece is str or bytes"
    raise TypeError(message)
