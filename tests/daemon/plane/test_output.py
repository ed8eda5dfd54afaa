"""A stream's output against a byte string."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from daemon.plane import messages as m
from daemon.plane.output import (
    append_body,
    append_last_chunk,
    append_range,
    consume,
    discard_output,
    has_output,
    next_address,
    next_bytes,
    room_for,
)
from daemon.plane.table import RANGES_MAX
from tests.daemon.plane.small import BLOCK_BYTES, bytes_at, empty_stream, small_plane

pytestmark = pytest.mark.plane

SLOT = 2
STEPS = some.lists(
    some.one_of(
        some.tuples(some.just("inline"), some.integers(1, 1500)),
        some.tuples(some.just("range"), some.sampled_from([1, 15, 16, 300, 9000])),
        some.tuples(some.just("send"), some.integers(1, 10_000)),
    ),
    max_size=80,
)


class Queue:
    """The plane's output of one stream, and what it should be."""

    def __init__(self, *, chunked: bool) -> None:
        self.plane = small_plane()
        self.shared = self.plane.globals[0]
        self.stream: Any = empty_stream(self.plane, SLOT)
        self.chunked = chunked
        self.plane.streams["flags"][SLOT] = m.CHUNKED if chunked else 0
        self.expected = bytearray()
        self.sent = bytearray()
        self.memory: list[Any] = []
        self.ends: list[int] = []  # where in the text each range ends
        self.inline_bytes = 0
        self.number = 0

    def _text(self, size: int) -> bytes:
        self.number += 1
        return bytes((self.number * 7 + index) % 251 for index in range(size))

    def _framed(self, text: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(text), text) if self.chunked else text

    def inline(self, size: int) -> None:
        if not room_for(self.shared, self.stream, size):
            return
        text = self._text(size)
        buffer = ctypes.create_string_buffer(text, size)
        append_body(self.shared, self.stream, ctypes.addressof(buffer), size)
        self.expected += self._framed(text)
        self.inline_bytes += len(self._framed(text))

    def range(self, size: int) -> None:
        text = self._text(size)
        buffer = ctypes.create_string_buffer(text, size)
        full = int(self.plane.streams["ranges_count"][SLOT]) == RANGES_MAX
        no_room = not room_for(self.shared, self.stream, 0)
        taken = append_range(self.shared, SLOT, ctypes.addressof(buffer), size)
        assert taken == (not full and not no_room)
        if taken:
            self.memory.append(buffer)
            self.expected += self._framed(text)
            self.ends.append(len(self.expected) - (2 if self.chunked else 0))
            self.inline_bytes += len(self._framed(text)) - size

    def send(self, limit: int) -> None:
        assert bool(has_output(self.stream)) == (len(self.sent) < len(self.expected))
        if not has_output(self.stream):
            return
        size = int(next_bytes(self.shared, SLOT, self.stream))
        piece = bytes_at(int(next_address(self.shared, SLOT, self.stream)), size)
        assert piece == self.expected[len(self.sent) :][:size]
        taken = min(size, limit)
        released = consume(self.shared, SLOT, self.stream, taken)
        self.sent += piece[:taken]
        assert released == (len(self.sent) in self.ends and taken == size)
        done = sum(end <= len(self.sent) for end in self.ends)
        assert int(self.plane.streams["ranges_done"][SLOT]) == done


@settings(deadline=None, max_examples=150)
@given(some.booleans(), STEPS)
def test_bytes_leave_in_the_order_in_which_they_came(chunked: bool, steps: list[tuple[str, int]]) -> None:
    queue = Queue(chunked=chunked)
    for action, size in steps:
        getattr(queue, action)(size)
        used = int(queue.plane.streams["inline_tail"][SLOT]) - int(queue.plane.streams["inline_head"][SLOT])
        assert used <= BLOCK_BYTES
    while has_output(queue.stream):
        queue.send(1 << 30)
    assert queue.sent == queue.expected
    assert int(queue.plane.streams["inline_done"][SLOT]) == queue.inline_bytes
    assert int(queue.plane.streams["block"][SLOT]) == -1


@settings(deadline=None, max_examples=50)
@given(some.booleans(), STEPS)
def test_what_is_discarded_counts_as_given_back(chunked: bool, steps: list[tuple[str, int]]) -> None:
    queue = Queue(chunked=chunked)
    for action, size in steps:
        getattr(queue, action)(size)
    discard_output(queue.shared, SLOT)
    assert not has_output(queue.stream)
    assert int(queue.plane.streams["inline_done"][SLOT]) == queue.inline_bytes
    assert int(queue.plane.streams["ranges_done"][SLOT]) == len(queue.ends)
    assert int(queue.plane.streams["block"][SLOT]) == -1


def test_only_a_chunked_stream_has_a_last_chunk() -> None:
    for chunked, expected in ((True, b"0\r\n\r\n"), (False, b"")):
        queue = Queue(chunked=chunked)
        append_last_chunk(queue.shared, queue.stream)
        queue.expected += expected
        queue.send(1 << 30)
        assert queue.sent == expected
