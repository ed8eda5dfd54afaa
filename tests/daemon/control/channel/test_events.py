"""Events: the layout the plane writes, pieces of records, and what happens when a channel ends."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from daemon.control.channel.events import EventReader, handler, whole_records, worker_events
from daemon.plane import messages as m
from daemon.plane.event_records import (
    EVENT_HEADER,
    EVENT_LAYOUTS,
    BodyEvent,
    EndedEvent,
    HandoffEvent,
    PongEvent,
    ReleasedEvent,
    StoppedEvent,
)
from tests.daemon.control.channels import event

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reading:
    """A reader on a pipe, and everything it calls."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)
        self.loop = asyncio.new_event_loop()
        self.seen: list[HandoffEvent | EndedEvent] = []
        self.after_count = 0
        self.closed_count = 0
        handlers = [
            handler(HandoffEvent, self.seen.append),
            handler(EndedEvent, self.seen.append),
            handler(PongEvent, self._fail),
        ]
        self.reader = EventReader(self.read_fd, self.loop, handlers, self._after, self._closed)

    def _fail(self, record: PongEvent) -> None:
        raise LookupError(record.cookie)

    def _after(self) -> None:
        self.after_count += 1

    def _closed(self) -> None:
        self.closed_count += 1

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0.001))


@pytest.fixture
def reading() -> Iterator[Reading]:
    made = Reading()
    made.reader.start()
    yield made
    made.reader.stop()
    made.loop.close()
    os.close(made.read_fd)
    os.close(made.write_fd)


@pytest.mark.parametrize("kind", EVENT_LAYOUTS)
def test_each_layout_is_the_planes(kind: int) -> None:
    layout = EVENT_LAYOUTS[kind]
    assert layout.struct.size == layout.dtype.itemsize == m.EVENT_BYTES
    values = {
        name: b"name" if layout.dtype[name].kind == "S" else number for number, name in enumerate(layout.dtype.names, 1)
    }
    data = event(kind, **values)
    record, header = np.frombuffer(data, layout.dtype)[0], np.frombuffer(data, EVENT_HEADER)[0]
    assert {name: record[name].item() for name in values} == values
    assert header["kind"] == kind
    if "slot" in values:
        assert (header["slot"], header["generation"]) == (values["slot"], values["generation"])


@pytest.mark.parametrize("kind", EVENT_LAYOUTS)
def test_each_field_is_read_by_its_name(kind: int, reading: Reading) -> None:
    layout = EVENT_LAYOUTS[kind]
    seen: list[object] = []
    handlers = [handler(layout.record, seen.append)]
    reader = EventReader(reading.read_fd, reading.loop, handlers, lambda: None, lambda: None)
    for name in layout.record._fields:
        largest: int | bytes = bytes(range(1, 49)) if name == "model" else int(np.iinfo(layout.dtype[name]).max)
        os.write(reading.write_fd, event(kind, **{name: largest}))
        reader.read()
        record = seen.pop()
        assert isinstance(record, layout.record)
        assert getattr(record, name) == largest


def test_a_workers_events_have_their_own_types() -> None:
    data = event(m.BODY, slot=1) + event(m.RELEASED, released_ranges=2) + event(m.STOPPED, flags=m.COMPLETE)
    body, released, stopped = worker_events(data)
    assert isinstance(body, BodyEvent)
    assert isinstance(released, ReleasedEvent)
    assert isinstance(stopped, StoppedEvent)
    assert (body.slot, released.released_ranges, stopped.flags) == (1, 2, m.COMPLETE)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
def test_pieces_of_records_are_kept(size: int) -> None:
    data = os.urandom(size)
    whole, rest = whole_records(data)
    assert whole + rest == data
    assert len(whole) % 64 == 0
    assert len(rest) < 64


def test_records_arrive_whole_however_they_are_cut(reading: Reading) -> None:
    data = b"".join(event(m.HANDOFF, slot=slot, cookie=slot * 7) for slot in range(20))
    for start in range(0, len(data), 37):
        os.write(reading.write_fd, data[start : start + 37])
        reading.turn()
    assert [record.slot for record in reading.seen] == list(range(20))
    assert [record.cookie for record in reading.seen if isinstance(record, HandoffEvent)] == [
        slot * 7 for slot in range(20)
    ]


def test_each_batch_is_followed_once(reading: Reading) -> None:
    os.write(reading.write_fd, b"".join(event(m.ENDED, slot=slot) for slot in range(50)))
    reading.turn()
    assert len(reading.seen) == 50
    assert reading.after_count == 1
    reading.reader.read()
    assert reading.after_count == 1


def test_what_was_decided_before_a_bug_is_still_sent(reading: Reading) -> None:
    os.write(reading.write_fd, event(m.HANDOFF) + event(m.PONG))
    with pytest.raises(LookupError):
        reading.reader.read()
    assert reading.after_count == 1


def test_the_end_of_the_plane_is_told_once(reading: Reading) -> None:
    os.close(reading.write_fd)
    reading.write_fd = os.dup(reading.read_fd)
    reading.turn()
    reading.turn()
    assert reading.closed_count == 1


def test_what_is_left_is_read_to_its_end(reading: Reading) -> None:
    reading.reader.stop()
    count = 1000
    for slot in range(count):
        os.write(reading.write_fd, event(m.ENDED, slot=slot))
    reading.reader.read_rest()
    assert [record.slot for record in reading.seen] == list(range(count))
    os.close(reading.write_fd)
    reading.write_fd = os.dup(reading.read_fd)
    reading.reader.read_rest()
    assert reading.closed_count == 0
