"""The thread of all TLS and HTTP/2 transfers. It waits in one place: for sockets, the plane, and the main thread.

A pass: wait; let libcurl read what has come (daemon/control/transfers/transfer.py takes it); hear the plane; take
requests; see what has ended, and who is late; then push everything that was taken, of many streams in one write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from backends.relay import Failure, FailureKind
from daemon.control.channel.command_pipe import CommandBatches
from daemon.control.channel.commands import pack, pack_push
from daemon.control.channel.events import READ_BYTES, whole_records, worker_events
from daemon.control.transfers.errors import failure_of
from daemon.control.transfers.libcurl import load
from daemon.control.transfers.origin_pool import Pool
from daemon.control.transfers.transfer import Deadlines, Phase, Transfer
from daemon.plane import messages as m
from daemon.plane.command_records import FinishCommand, StartCommand
from daemon.plane.event_records import ReleasedEvent, StoppedEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.relay import Attempt, Origin

logger = logging.getLogger(__name__)

Key = tuple[int, int]  # slot and generation

_RESTART_DELAY_S = 0.1
_NEVER_S = float("inf")
# With so many transfers under way a pass begins GATHER_S after the one before, at the earliest, and serves at once what
# has come meanwhile: otherwise every token wakes this thread, and then the plane. A few streams never wait.
GATHER_TRANSFERS_MIN = 32
GATHER_S = 0.0005


class Cancel(NamedTuple):
    """A request to give up what is under way for a stream."""

    key: Key
    asked_s: float
    closed: Callable[[float], None] | None  # told how long that took, where it was a client's leaving


class TransferLoop:
    """What the thread runs. `begin`, `cancel` and `stop` are the main thread's."""

    def __init__(
        self, channel: int, event_fd: int, command_fd: int, failed: Callable[[int, int, int, Failure], None]
    ) -> None:
        """`event_fd` reads the plane's channel `channel`; neither descriptor blocks. The thread calls `failed`."""
        self._channel = channel
        self._event_fd = event_fd
        self._command_fd = command_fd
        self._report = failed
        self._epoll = select.epoll()  # first, because it closes itself should there be no descriptor for the other
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(event_fd, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._commands = CommandBatches(command_fd, self._watch_room)
        self._leftover = b""
        # From the main thread. Appending and taking are atomic; the eventfd orders them.
        self._requests: deque[Transfer | Cancel] = deque()
        self._is_stopping = False
        # The thread's own.
        self._pools: dict[Origin, Pool] = {}
        self._sockets: dict[int, Pool] = {}
        self._transfers: dict[Key, Transfer] = {}  # those the plane or the control plane waits for
        self._touched: list[Transfer] = []  # have something for the plane
        self._deadlines = Deadlines()
        self._woken_s = 0.0
        self._closed_s: dict[Key, float] = {}  # how long closing took, until the control plane asks

    # ------------------------------------------------------------------------------------------ for the main thread

    def begin(self, slot: int, generation: int, number: int, attempt: Attempt) -> None:
        """Carry out an attempt."""
        self._ask(Transfer(slot, generation, number, attempt))

    def cancel(self, slot: int, generation: int, closed: Callable[[float], None] | None = None) -> None:
        """Give up what is under way for a stream, if anything is. The thread calls `closed` if it was cut short."""
        self._ask(Cancel((slot, generation), time.monotonic(), closed))

    def stop(self) -> None:
        """End the thread."""
        self._is_stopping = True
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close what was opened here, once the thread has ended."""
        self._epoll.close()
        os.close(self._wake_fd)

    @property
    def active_count(self) -> int:
        """Transfers under way, and requests that have not been looked at."""
        return len(self._transfers) + len(self._requests)

    def _ask(self, request: Transfer | Cancel) -> None:
        self._requests.append(request)
        os.eventfd_write(self._wake_fd, 1)

    # ---------------------------------------------------------------------------------------------------- the thread

    def run(self) -> None:
        """Until `stop`. Whatever goes wrong, no stream is left waiting, and the next one is carried out."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._is_stopping:
            try:
                self._turns()
            # Also what is no Exception: the thread must not end while streams depend on it.
            except BaseException:  # noqa: PERF203  (a way round the loop is a failure)
                logger.critical("the transfers' thread failed; all its streams are ended", exc_info=True)
                self._end_all()
                os.eventfd_write(self._wake_fd, 1)  # requests that had not been taken
                time.sleep(_RESTART_DELAY_S)  # should it fail for ever, it must not take a core
        self._close_pools()

    def _turns(self) -> None:
        while not self._is_stopping:
            self._turn()

    def _turn(self) -> None:
        sockets = self._sockets
        is_asked = False
        if len(self._transfers) >= GATHER_TRANSFERS_MIN:
            self._gather()
        ready = self._epoll.poll(self._timeout_s())
        self._woken_s = time.monotonic()
        for fd, events in ready:
            pool = sockets.get(fd)
            if pool is not None:
                pool.act(fd, events, self._woken_s)
            elif fd == self._event_fd:
                self._hear()
            elif fd == self._wake_fd:
                is_asked = True
            elif fd == self._command_fd:
                self._commands.drain()
        if is_asked:
            # Behind the plane's events: what they say of an earlier attempt must not be taken for a new one's.
            self._take_requests()
        self._tend_pools()
        self._push_touched()

    def _gather(self) -> None:
        left_s = self._woken_s + GATHER_S - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)

    def _timeout_s(self) -> float | None:
        due_s = self._deadlines.next_s
        for pool in self._pools.values():
            due_s = min(due_s, pool.due_s, pool.idle_until_s)
        return None if due_s == _NEVER_S else max(0.0, due_s - time.monotonic())

    def _tend_pools(self) -> None:
        """What libcurl wants done by time, what has ended, and who is late."""
        now_s = time.monotonic()
        idle: list[Pool] = []
        for pool in self._pools.values():
            if pool.due_s <= now_s:
                pool.act_by_time()
            while pool.ended:
                self._end(*pool.ended.pop())
            if pool.trouble is not None:
                raise pool.trouble
            if pool.idle_until_s <= now_s:
                idle.append(pool)
        for pool in idle:
            del self._pools[pool.origin]
            pool.close()
        if self._deadlines.next_s <= now_s:
            for transfer in self._deadlines.passed(now_s):
                self._expire(transfer)

    # -------------------------------------------------------------------------------------------------- beginnings

    def _take_requests(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while self._requests:
            # Counted by `active_count` all the time: in the one place, in both, in the other.
            request = self._requests[0]
            if isinstance(request, Transfer):
                self._begin(request)
            else:
                self._cancel(request)
            self._requests.popleft()

    def _begin(self, transfer: Transfer) -> None:
        key = (transfer.slot, transfer.generation)
        self._drop(key)  # an earlier attempt whose end was not waited for
        try:
            pool = self._pool(transfer.attempt.origin)
            transfer.attach(pool.facts, pool.handle(), self._touched, self._deadlines, pool.write_pause)
            pool.add(transfer)
        # ImportError, pycurl.error, a path that is no ASCII: the request or the installation is at fault.
        except Exception:
            logger.exception("a transfer could not be begun", extra={"upstream": transfer.attempt.origin.name})
            self._fail(transfer, Failure(FailureKind.NO_RESOURCES, detail="the request could not be made"))
            return
        self._transfers[key] = transfer

    def _pool(self, origin: Origin) -> Pool:
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(load(), origin, self._epoll, self._sockets, self._touched)
        return pool

    def _pool_of(self, transfer: Transfer) -> Pool:
        """The pool that carries out a transfer: it stays as long as libcurl has the transfer."""
        return self._pools[transfer.attempt.origin]

    # ------------------------------------------------------------------------------------------------------- ends

    def _end(self, transfer: Transfer, code: int, message: str) -> None:
        """What libcurl is through with."""
        if transfer.phase >= Phase.LINGERING:
            self._remove(transfer)
        elif transfer.phase == Phase.STREAMING:
            transfer.has_ended = True
            transfer.is_complete = code == 0
            self._touched.append(transfer)
            self._pool_of(transfer).remove(transfer)
        else:
            self._fail(transfer, transfer.failure or self._reason(transfer, code, message))

    def _reason(self, transfer: Transfer, code: int, message: str) -> Failure:
        if transfer.phase == Phase.STATUS_BODY:
            return transfer.status_failure()
        if code == 0:
            return Failure(FailureKind.HEAD_MALFORMED, detail="its answer has no head")
        system_error = self._pool_of(transfer).system_error(transfer)
        has_connected = transfer.facts.has_answered
        return failure_of(code, message, system_error, transfer.attempt.origin, has_connected=has_connected)

    def _expire(self, transfer: Transfer) -> None:
        if transfer.phase == Phase.CONNECTING:
            self._fail(transfer, Failure(FailureKind.CONNECT_TIMEOUT, detail="no connection within connect_timeout_ms"))
        elif transfer.phase == Phase.HEAD:
            self._fail(transfer, Failure(FailureKind.HEAD_TIMEOUT, detail="no answer within head_timeout_ms"))
        elif transfer.phase == Phase.STATUS_BODY:
            self._fail(transfer, transfer.status_failure())
        elif transfer.phase == Phase.LINGERING:
            self._remove(transfer)

    def _fail(self, transfer: Transfer, failure: Failure) -> None:
        self._forget(transfer)
        self._remove(transfer)
        self._report(transfer.slot, transfer.generation, transfer.number, failure)

    def _cancel(self, request: Cancel) -> None:
        seconds = self._closed_s.pop(request.key, None)
        transfer = self._transfers.get(request.key)
        was_running = transfer is not None and not transfer.has_ended
        self._drop(request.key)
        if was_running:
            seconds = time.monotonic() - request.asked_s
        if seconds is not None and request.closed is not None:
            request.closed(seconds)

    def _drop(self, key: Key) -> None:
        """The control plane wants nothing more of a stream's transfer."""
        transfer = self._transfers.pop(key, None)
        if transfer is not None:
            self._remove(transfer)

    def _forget(self, transfer: Transfer) -> None:
        """Nobody waits for it any more."""
        key = (transfer.slot, transfer.generation)
        if self._transfers.get(key) is transfer:
            del self._transfers[key]

    def _remove(self, transfer: Transfer) -> None:
        transfer.phase = Phase.OVER
        transfer.pending = b""
        transfer.is_start_due = False
        self._deadlines.clear(transfer)
        if not transfer.has_ended:
            transfer.has_ended = True
            self._pool_of(transfer).remove(transfer)

    def _end_all(self) -> None:
        """Something is wrong with the thread: tell everyone who waits, and begin afresh."""
        transfers = list(self._transfers.values())
        self._close_pools()
        self._transfers.clear()
        self._touched.clear()
        for transfer in transfers:
            if transfer.phase == Phase.STREAMING and not transfer.is_start_due:
                self._finish(transfer, is_complete=False)
            else:
                failure = Failure(FailureKind.NO_RESOURCES, detail="the transfers' thread failed")
                self._report(transfer.slot, transfer.generation, transfer.number, failure)
        self._commands.flush()

    def _close_pools(self) -> None:
        pools = list(self._pools.values())
        self._pools.clear()
        self._deadlines = Deadlines()
        for pool in pools:
            try:
                pool.close()
            except Exception:  # noqa: PERF203  (a few pools, at the end)
                logger.exception("an upstream's connections could not be closed")
        self._sockets.clear()

    # ---------------------------------------------------------------------------------------------------- the plane

    def _hear(self) -> None:
        """What the plane says of its streams."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._event_fd, READ_BYTES)
            if not data:  # the plane is gone; the service ends the process
                self._epoll.unregister(self._event_fd)
            data, self._leftover = whole_records(self._leftover + data if self._leftover else data)
            for event in worker_events(data):
                transfer = self._transfers.get((event.slot, event.generation))
                if transfer is None:
                    continue
                if isinstance(event, ReleasedEvent):
                    self._released(transfer, event.released_bytes)
                elif isinstance(event, StoppedEvent):
                    self._stopped(transfer, event.flags)

    def _released(self, transfer: Transfer, released_bytes: int) -> None:
        if released_bytes > transfer.pushed_bytes:
            return  # of an earlier attempt
        transfer.credit_end = released_bytes + m.RAW_CREDIT_BYTES
        if transfer.pending:
            self._touched.append(transfer)

    def _stopped(self, transfer: Transfer, flags: int) -> None:
        """The stream is over. After its true end the body's own is near, which lets the connection be kept."""
        self._forget(transfer)
        if not flags & m.COMPLETE or transfer.has_ended:
            was_running = not transfer.has_ended
            self._remove(transfer)
            if was_running:
                # The plane told at some time before the thread woke. Its ENDED makes the control plane ask for this.
                self._closed_s[transfer.slot, transfer.generation] = time.monotonic() - self._woken_s
            return
        transfer.linger()
        if transfer.is_paused:
            self._resume(transfer)

    # ------------------------------------------------------------------------------------------------------ pushing

    def _push_touched(self) -> None:
        """Send what has come for the plane, as far as there is credit and room."""
        commands = self._commands
        touched = self._touched
        while touched and not commands.is_blocked():
            # Resuming a transfer may have it touched again, so the list is walked as it grows.
            for index, transfer in enumerate(touched):
                if commands.is_blocked():
                    del touched[:index]
                    break
                pending = transfer.pending
                size = len(pending)
                pushed_bytes = transfer.pushed_bytes + size
                if (
                    pushed_bytes > transfer.credit_end
                    or size > m.PAYLOAD_BYTES_MAX
                    or transfer.is_start_due
                    or transfer.has_ended
                    or transfer.is_paused
                ):
                    self._push_at_length(transfer)
                elif size:
                    transfer.pending = b""
                    transfer.pushed_bytes = pushed_bytes
                    commands.add(_raw_push(transfer, pending))
            else:
                touched.clear()
            commands.flush()

    def _watch_room(self, is_wanted: bool) -> None:
        """While the command pipe is full, nothing is pushed but the rest of what was begun."""
        if is_wanted:
            self._epoll.register(self._command_fd, select.EPOLLOUT)
        else:
            self._epoll.unregister(self._command_fd)

    def _push_at_length(self, transfer: Transfer) -> None:
        """As above, for what is not once per token: a beginning, an end, much at once, little credit."""
        if transfer.phase == Phase.OVER:
            return
        if transfer.is_start_due:
            transfer.is_start_due = False
            start_command = StartCommand(transfer.slot, transfer.generation, self._channel, transfer.number)
            self._commands.add(pack(start_command))
        pending = transfer.pending
        start, end = 0, min(len(pending), transfer.credit_end - transfer.pushed_bytes)
        while start < end:
            piece = pending[start : min(end, start + m.PAYLOAD_BYTES_MAX)]
            start += len(piece)
            self._commands.add(_raw_push(transfer, piece))
        transfer.pushed_bytes += start
        transfer.pending = pending[start:]
        if transfer.pending:
            return
        if transfer.has_ended:
            self._finish(transfer, is_complete=transfer.is_complete)
            self._forget(transfer)
        elif transfer.is_paused:
            self._resume(transfer)

    def _finish(self, transfer: Transfer, *, is_complete: bool) -> None:
        transfer.phase = Phase.OVER
        flags = m.RAW | m.COMPLETE if is_complete else m.RAW
        finish = FinishCommand(transfer.slot, transfer.generation, flags=flags, attempt=transfer.number)
        self._commands.add(pack(finish))

    def _resume(self, transfer: Transfer) -> None:
        try:
            self._pool_of(transfer).resume(transfer)
        except load().error as error:
            logger.debug("a paused transfer could not go on: %s", error)
            self._end(transfer, 1, "")


def _raw_push(transfer: Transfer, data: bytes) -> bytes:
    """A PUSH of the upstream's own body."""
    slot, generation, number = transfer.slot, transfer.generation, transfer.number
    return pack_push(slot, generation, data, head_bytes=0, flags=m.RAW, attempt=number)
