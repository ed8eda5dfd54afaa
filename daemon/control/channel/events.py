"""Events up from the data plane, on the main thread: read in batches, handed to whoever registered for their kind."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

from daemon.control.process.supervision import essential
from daemon.plane.messages import EVENT_BYTES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# kind, flags, slot, generation, reason, state, address, length, client_fd, peer_fd, time_ns, bytes, count
EventRecord = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]
EVENT = struct.Struct("<HHIIHHqqiiqqq")
READ_BYTES = 64 * 1024


def whole_records(data: bytes) -> tuple[bytes, bytes]:
    """The records that are complete, and what is left of the last."""
    end = len(data) - len(data) % EVENT_BYTES
    return (data, b"") if end == len(data) else (data[:end], data[end:])


class EventReader:
    """The control plane's event channel. `handlers` maps a kind to a function of the record."""

    __slots__ = ("_after", "_closed", "_fd", "_handlers", "_leftover", "_loop")

    def __init__(
        self,
        fd: int,
        loop: asyncio.AbstractEventLoop,
        handlers: dict[int, Callable[[EventRecord], None]],
        after: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        """`after` follows each batch (it flushes commands); `closed` is called once when the plane's end is gone."""
        self._fd = fd
        self._loop = loop
        self._handlers = handlers
        self._after = after
        self._closed = closed
        self._leftover = b""

    def start(self) -> None:
        """Begin to read."""
        self._loop.add_reader(self._fd, essential("events of the data plane", self.read))

    def stop(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._fd)

    def read(self) -> None:
        """Handle what has come."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.stop()
            self._closed()
            return
        self._handle(data)

    def read_rest(self) -> None:
        """Handle all that has come, when the plane has been told to stop: that its end is gone is no news then."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, READ_BYTES):
                self._handle(data)

    def _handle(self, data: bytes) -> None:
        data, self._leftover = whole_records(self._leftover + data if self._leftover else data)
        handlers = self._handlers
        try:
            for record in EVENT.iter_unpack(data):
                handlers[record[0]](record)
        finally:
            self._after()
