"""Credit: bookkeeping of what a worker may push."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.control.workers.credit import Credit, framing_bytes
from daemon.plane.messages import PAYLOAD_BYTES_MAX
from daemon.plane.table import RANGES_MAX


@pytest.mark.parametrize("size", [1, 15, 16, 255, 256, 4095, 65536, 1 << 20])
def test_framing_is_what_http_says(size: int) -> None:
    assert framing_bytes(size) == len(f"{size:x}\r\n\r\n")


def test_nothing_is_framed_as_nothing() -> None:
    assert framing_bytes(0) == 0


@pytest.mark.parametrize("block_bytes", [8192, 16_384, 1 << 20])
def test_the_largest_piece_always_finds_room_in_the_end(block_bytes: int) -> None:
    piece = Credit.piece_bytes_max(block_bytes)
    assert 1024 <= piece <= PAYLOAD_BYTES_MAX
    credit = Credit(block_bytes, 1 << 20)
    pushed = 0
    while credit.inline_fits(piece):
        credit.inline_pushed(piece)
        pushed += piece
    # The plane has sent everything, and said so of all but the last half of a block.
    credit.released(pushed - block_bytes // 2 + 1, 0)
    assert credit.inline_fits(piece)


@given(some.lists(some.integers(1, 5000), max_size=200))
def test_no_more_than_the_block_is_ever_out(sizes: list[int]) -> None:
    credit = Credit(16_384, 1 << 20)
    out: list[int] = []
    released = 0
    for size in sizes:
        while not credit.inline_fits(size):
            assert out
            released += out.pop(0)
            credit.released(released, 0)
        credit.inline_pushed(size)
        out.append(size)
        assert sum(out) + 16 <= 16_384 - 64


def test_ranges_are_kept_until_they_come_back() -> None:
    credit = Credit(16_384, 1000)
    assert credit.range_fits(10**9)
    credit.range_pushed(bytes(400))
    assert credit.range_fits(600)
    assert not credit.range_fits(601)
    credit.range_pushed(bytes(1))
    credit.range_pushed(bytes(1))
    assert RANGES_MAX == 3
    assert not credit.range_fits(1)
    credit.released(0, 1)
    assert credit.range_bytes == 2
    credit.released(0, 1)
    assert credit.range_bytes == 2
    credit.released(0, 3)
    assert not credit.holds


def test_everything_can_be_dropped() -> None:
    credit = Credit(16_384, 1000)
    credit.range_pushed(b"x")
    assert credit.holds
    credit.drop()
    assert not credit.holds
