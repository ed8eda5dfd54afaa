"""The pipe that takes commands to the data plane: written whole, at most 4,096 bytes at a time, never blocking.

`CommandWriter` is the main thread's, `CommandBatches` that of the transfers' thread. A worker writes its own commands
to the same pipe (daemon/control/workers/thread.py), which the kernel keeps apart.
"""

from __future__ import annotations

import os
import select
from collections import deque
from typing import TYPE_CHECKING

from daemon.control.channel.commands import pack
from daemon.control.process.supervision import essential
from daemon.plane.messages import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from daemon.plane.command_records import Command


class CommandWriter:
    """The main thread's end of the command pipe. What one callback produced leaves in as few writes as possible."""

    __slots__ = ("_batch", "_batch_bytes", "_closed", "_fd", "_flush_is_due", "_flush_when_due", "_loop", "_waiting")

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        """`fd` must not block. It is not closed here."""
        self._fd = fd
        self._loop = loop
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._closed = False
        self._flush_is_due = False
        self._flush_when_due = essential("commands to the data plane", self._flush_soon)
        # Batches the pipe had no room for, and callbacks that wait behind them. Bounded by what admission has open:
        # a stream gets few commands from here, and no handoff comes while the plane does not read.
        self._waiting: deque[bytes | Callable[[], None]] = deque()

    def add(self, command: bytes) -> None:
        """Send a command with the next flush."""
        self._batch_bytes += len(command)
        if self._batch_bytes > MESSAGE_BYTES_MAX:
            self._write_batch()
            self._batch_bytes = len(command)
        self._batch.append(command)

    def send(self, command: Command) -> None:
        """Pack a command without a payload and send it now."""
        self.add(pack(command))
        self.flush()

    def add_soon(self, command: bytes) -> None:
        """Send a command after the callbacks that are ready now: theirs leave in the same write."""
        self.add(command)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush_when_due)

    def _flush_soon(self) -> None:
        self._flush_is_due = False
        self.flush()

    def flush(self) -> None:
        """Send what was added. Called at the end of every callback that adds commands."""
        if self._batch:
            self._write_batch()

    def after_flush(self, callback: Callable[[], None]) -> None:
        """Call back once everything added until now is in the pipe: what a worker sends must come behind it."""
        self.flush()
        if self._waiting:
            self._waiting.append(callback)
        else:
            callback()

    @property
    def waiting_count(self) -> int:
        """Batches that wait for room in the pipe."""
        return len(self._waiting)

    def _write_batch(self) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        self._batch_bytes = 0
        if self._waiting or not self._write(data):
            if not self._waiting:
                self._loop.add_writer(self._fd, essential("commands to the data plane", self._drain))
            self._waiting.append(data)

    def _write(self, data: bytes) -> bool:
        """False when the pipe has no room. At most 4,096 bytes go whole or not at all."""
        if self._closed:
            return True
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            # The plane's thread has ended, which the service notices by itself; nobody is left to be commanded.
            self._closed = True
            return True
        assert written == len(data), "the kernel split a write of at most PIPE_BUF bytes"
        return True

    def _drain(self) -> None:
        while self._waiting:
            item = self._waiting[0]
            if not isinstance(item, bytes):
                self._waiting.popleft()
                item()
            elif self._write(item):
                self._waiting.popleft()
            else:
                return
        self._loop.remove_writer(self._fd)


class CommandBatches:
    """Commands for the plane, many in one write. What finds no room waits; its senders look at `is_blocked`."""

    __slots__ = ("_batch", "_batch_bytes", "_epoll", "_fd", "_is_closed", "_waiting")

    def __init__(self, fd: int, epoll: select.epoll) -> None:
        """`fd` must not block; it is put into `epoll` while there is no room in it."""
        self._fd = fd
        self._epoll = epoll
        self._is_closed = False
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._waiting: deque[bytes] = deque()

    def is_blocked(self) -> bool:
        """Whether the pipe was full: nothing but the rest of what was begun may be added."""
        return bool(self._waiting)

    def add(self, command: bytes) -> None:
        """Send a command with the next flush, or before."""
        size = len(command)
        self._batch_bytes += size
        if self._batch_bytes > MESSAGE_BYTES_MAX:
            self.flush()
            self._batch_bytes = size
        self._batch.append(command)

    def flush(self) -> None:
        """Send what was added."""
        if not self._batch:
            return
        data = b"".join(self._batch)
        self._batch.clear()
        self._batch_bytes = 0
        if self._waiting:
            self._waiting.append(data)
        elif not self._write(data):
            self._waiting.append(data)
            self._epoll.register(self._fd, select.EPOLLOUT)

    def drain(self) -> None:
        """There is room again."""
        while self._waiting and self._write(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self._epoll.unregister(self._fd)

    def _write(self, data: bytes) -> bool:
        if self._is_closed:
            return True
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self._is_closed = True  # the plane is gone; the service ends the process
            return True
        assert written == len(data), "the kernel split a write of at most PIPE_BUF bytes"
        return True
