"""Events: the layout the plane writes, pieces of records, and what happens when a channel ends."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from daemon.control.channel.events import EVENT, EventReader, EventRecord, whole_records
from daemon.plane import messages as m
from tests.daemon.control.channels import event

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reading:
    """A reader on a pipe, and everything it calls."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK)
        self.loop = asyncio.new_event_loop()
        self.seen: list[EventRecord] = []
        self.after_count = 0
        self.closed_count = 0
        handlers = {m.HANDOFF: self.seen.append, m.ENDED: self.seen.append, m.PONG: self._fail}
        self.reader = EventReader(self.read_fd, self.loop, handlers, self._after, self._closed)

    def _fail(self, record: EventRecord) -> None:
        raise LookupError(record[0])

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


def test_the_layout_is_the_planes() -> None:
    values = tuple(range(1, len(m.EVENT.names) + 1))
    record = np.frombuffer(EVENT.pack(*values), m.EVENT)[0]
    assert tuple(int(record[name]) for name in m.EVENT.names) == values
    assert EVENT.size == m.EVENT_BYTES


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
def test_pieces_of_records_are_kept(size: int) -> None:
    data = os.urandom(size)
    whole, rest = whole_records(data)
    assert whole + rest == data
    assert len(whole) % 64 == 0
    assert len(rest) < 64


def test_records_arrive_whole_however_they_are_cut(reading: Reading) -> None:
    data = b"".join(event(m.HANDOFF, slot=slot, count=slot * 7) for slot in range(20))
    for start in range(0, len(data), 37):
        os.write(reading.write_fd, data[start : start + 37])
        reading.turn()
    assert [record[2] for record in reading.seen] == list(range(20))
    assert [record[12] for record in reading.seen] == [slot * 7 for slot in range(20)]


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
    assert [record[2] for record in reading.seen] == list(range(count))
    os.close(reading.write_fd)
    reading.write_fd = os.dup(reading.read_fd)
    reading.reader.read_rest()
    assert reading.closed_count == 0
