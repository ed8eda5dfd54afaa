"""The pipe that takes commands to the data plane: written whole, at most 4,096 bytes at a time, never blocking.

`CommandWriter` is the main thread's, `CommandBatches` the transfers' thread's. A worker has one command at a time and
calls `write_whole`. The kernel keeps the writes of several threads apart.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from daemon.control.channel.commands import pack
from daemon.control.process.supervision import essential
from daemon.plane.messages import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from daemon.plane.command_records import Command


def write_whole(fd: int, data: bytes) -> bool:
    """Write at most 4,096 bytes, whole or not at all: False when the pipe has no room.

    Raises:
        BrokenPipeError: the plane's thread has ended, which the service notices by itself.
    """
    try:
        written = os.write(fd, data)
    except BlockingIOError:
        return False
    assert written == len(data), "the kernel split a write of at most PIPE_BUF bytes"
    return True


class CommandBatches:
    """Commands for the plane, as many as possible in one write. What finds no room waits, and the order is kept."""

    __slots__ = ("_batch", "_batch_bytes", "_fd", "_is_closed", "_is_watching", "_waiting", "_watch_room")

    def __init__(self, fd: int, watch_room: Callable[[bool], None]) -> None:
        """`fd` must not block; it is not closed here.

        `watch_room(True)` asks the caller to call `drain` whenever the pipe has room, until `watch_room(False)`.
        """
        self._fd = fd
        self._watch_room = watch_room
        self._is_watching = False
        self._is_closed = False
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        # Batches the pipe had no room for, and callbacks that wait behind them. Bounded by what admission has open:
        # a stream gets few commands from here, and no handoff comes while the plane does not read.
        self._waiting: deque[bytes | Callable[[], None]] = deque()

    @property
    def waiting_count(self) -> int:
        """Batches and callbacks that wait for room in the pipe."""
        return len(self._waiting)

    def is_blocked(self) -> bool:
        """Whether something waits for room."""
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
        if self._waiting or not self._write(data):
            self._waiting.append(data)
            if not self._is_watching:
                self._is_watching = True
                self._watch_room(True)

    def after_flush(self, callback: Callable[[], None]) -> None:
        """Call back once everything added until now is in the pipe: what a worker sends must come behind it."""
        self.flush()
        if self._waiting:
            self._waiting.append(callback)
        else:
            callback()

    def drain(self) -> None:
        """The pipe has room again."""
        while self._waiting:
            item = self._waiting[0]
            if not isinstance(item, bytes):
                self._waiting.popleft()
                item()
            elif self._write(item):
                self._waiting.popleft()
            else:
                return
        self._is_watching = False
        self._watch_room(False)

    def _write(self, data: bytes) -> bool:
        """False when the pipe has no room. Where the plane has ended, commands are dropped."""
        try:
            return self._is_closed or write_whole(self._fd, data)
        except BrokenPipeError:
            self._is_closed = True
            return True


class CommandWriter(CommandBatches):
    """The main thread's end. What one callback of the event loop produced leaves in as few writes as possible.

    `flush` is called at the end of every callback that adds commands.
    """

    __slots__ = ("_drain_when_due", "_flush_is_due", "_flush_when_due", "_loop")

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        """`fd` must not block; it is not closed here."""
        super().__init__(fd, self._watch)
        self._loop = loop
        self._flush_is_due = False
        self._flush_when_due = essential("commands to the data plane", self._flush_soon)
        self._drain_when_due = essential("commands to the data plane", self.drain)

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

    def _watch(self, is_wanted: bool) -> None:
        if is_wanted:
            self._loop.add_writer(self._fd, self._drain_when_due)
        else:
            self._loop.remove_writer(self._fd)
