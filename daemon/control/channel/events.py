"""Events up from the data plane: bytes to records, and the main thread's reader, which hands each to its handler.

daemon/plane/event_records.py declares the records.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from daemon.control.process.supervision import essential
from daemon.plane.event_records import EVENT_LAYOUTS, Event, WorkerEvent
from daemon.plane.messages import BODY, EVENT_BYTES, RELEASED, STOPPED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

READ_BYTES = 64 * 1024
_AnEvent = TypeVar("_AnEvent", bound=Event)
_new: Any = vars(tuple)["__new__"]  # makes a record of what its struct unpacked, twice as fast as the record itself
_KINDS = {layout.record: kind for kind, layout in EVENT_LAYOUTS.items()}
_DECODERS = {kind: (layout.record, layout.struct.unpack_from) for kind, layout in EVENT_LAYOUTS.items()}
_WORKER_DECODERS = {kind: _DECODERS[kind] for kind in (RELEASED, BODY, STOPPED)}
assert max(EVENT_LAYOUTS) < 256, "the first byte of a record is its kind"


class Handler(NamedTuple):
    """Who handles one kind of event."""

    kind: int
    handle: Callable[[Any], None]


def handler(record: type[_AnEvent], handle: Callable[[_AnEvent], None]) -> Handler:
    """Have `handle` called with every event of this kind."""
    return Handler(_KINDS[record], handle)


def worker_events(data: bytes) -> Iterator[WorkerEvent]:
    """The events of a worker's channel in whole records."""
    for offset in range(0, len(data), EVENT_BYTES):
        record, unpack_from = _WORKER_DECODERS[data[offset]]
        yield _new(record, unpack_from(data, offset))


def whole_records(data: bytes) -> tuple[bytes, bytes]:
    """The records that are complete, and what is left of the last."""
    end = len(data) - len(data) % EVENT_BYTES
    return (data, b"") if end == len(data) else (data[:end], data[end:])


def _raise_again(_event: Event, error: Exception) -> None:
    raise error


class EventReader:
    """The control plane's event channel. Every kind that comes must have a handler."""

    __slots__ = ("_after", "_closed", "_failed", "_fd", "_handlers", "_leftover", "_loop")

    def __init__(
        self,
        fd: int,
        loop: asyncio.AbstractEventLoop,
        handlers: Iterable[Handler],
        after: Callable[[], None],
        closed: Callable[[], None],
        failed: Callable[[Event, Exception], None] = _raise_again,
    ) -> None:
        """`after` follows each batch (it flushes commands); `closed` is called once when the plane's end is gone.

        `failed` gets an event whose handler raised an exception, and the exception.
        """
        self._fd = fd
        self._loop = loop
        self._handlers = {kind: (handle, *_DECODERS[kind]) for kind, handle in handlers}
        self._after = after
        self._closed = closed
        self._failed = failed
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
            for offset in range(0, len(data), EVENT_BYTES):
                handle, record, unpack_from = handlers[data[offset]]
                event = _new(record, unpack_from(data, offset))
                try:
                    handle(event)
                except Exception as error:  # noqa: BLE001  (the next event belongs to another stream)
                    self._failed(event, error)
        finally:
            self._after()
