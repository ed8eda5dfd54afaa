"""What a stream still has to send: inline bytes in a block used as a ring, and ranges by address in between.

A stream holds a block only while it has unsent inline bytes. Ranges remember the position in the inline bytes at which
they stand, so the order in which a source handed things over is the order in which they leave. Chunked framing is added
as bytes are appended, so that whatever is ready together leaves in one send.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.counters import MESSAGES_SENT
from daemon.plane.lists import block_give, block_take
from daemon.plane.memory import copy_bytes
from daemon.plane.messages import CHUNKED
from daemon.plane.records import store_byte
from daemon.plane.table import (
    LAST_CHUNK_BYTES,
    LAST_CHUNK_OFFSET,
    LINE_END_BYTES,
    LINE_END_OFFSET,
    RANGES_MAX,
    SCRATCH_OFFSET,
    count,
    range_of,
    stream_of,
)

FRAMING_BYTES = 16  # the most that chunked framing adds to a piece: eight hexadecimal digits, two line ends, and room


@inlined
def inline_bytes(stream: Any) -> int:
    """Inline bytes that are not yet sent."""
    return int(stream.inline_tail) - int(stream.inline_head)


@inlined
def has_output(stream: Any) -> bool:
    return bool(inline_bytes(stream) > 0 or stream.ranges_count > 0)


@inlined
def room_for(plane: Any, stream: Any, byte_count: int) -> bool:
    """Whether a piece of this size, with its framing, fits in the block."""
    return bool(inline_bytes(stream) + byte_count + FRAMING_BYTES <= plane.block_bytes)


@inlined
def append_raw(plane: Any, stream: Any, address: int, byte_count: int) -> None:
    """Append bytes as they are. The caller has checked the room."""
    if stream.block < 0:
        stream.block = block_take(plane)
        stream.inline_head = 0
        stream.inline_tail = 0
    assert inline_bytes(stream) + byte_count <= plane.block_bytes
    base = plane.blocks + stream.block * plane.block_bytes
    offset = stream.inline_tail & (plane.block_bytes - 1)
    until_end = plane.block_bytes - offset
    if byte_count <= until_end:
        copy_bytes(base + offset, address, byte_count)
    else:
        copy_bytes(base + offset, address, until_end)
        copy_bytes(base, address + until_end, byte_count - until_end)
    stream.inline_tail += byte_count


@inlined
def disown(stream: Any, tail_before: int) -> None:
    """What was appended since is the plane's own, not the worker's: RELEASED must not give it credit for it."""
    stream.inline_done -= int(stream.inline_tail) - tail_before


@compiled
def append_chunk_size(plane: Any, stream: Any, byte_count: int) -> None:
    """The line that begins an HTTP/1.1 chunk: its size in hexadecimal (RFC 9112, 7.1)."""
    digits = 1
    while byte_count >> (4 * digits) > 0:
        digits += 1
    address = plane.constants + SCRATCH_OFFSET
    for index in range(digits):
        nibble = (byte_count >> (4 * (digits - 1 - index))) & 15
        store_byte(address + index, nibble + 48 if nibble < 10 else nibble + 87)
    store_byte(address + digits, 13)
    store_byte(address + digits + 1, 10)
    append_raw(plane, stream, address, digits + 2)


@inlined
def append_body(plane: Any, stream: Any, address: int, byte_count: int) -> None:
    """Append bytes of the body, framed as one chunk where the stream is chunked."""
    if byte_count == 0:
        return
    if stream.flags & CHUNKED:
        append_chunk_size(plane, stream, byte_count)
        append_raw(plane, stream, address, byte_count)
        append_raw(plane, stream, plane.constants + LINE_END_OFFSET, LINE_END_BYTES)
    else:
        append_raw(plane, stream, address, byte_count)


@inlined
def append_last_chunk(plane: Any, stream: Any) -> None:
    """A chunked body's true end."""
    if stream.flags & CHUNKED:
        append_raw(plane, stream, plane.constants + LAST_CHUNK_OFFSET, LAST_CHUNK_BYTES)


@compiled
def append_range(plane: Any, slot: int, address: int, byte_count: int) -> bool:
    """Queue bytes by address. False when the sender has more ranges out than the contract allows."""
    stream = stream_of(plane, slot)
    if stream.ranges_count >= RANGES_MAX or byte_count <= 0 or not room_for(plane, stream, 0):
        return False
    if stream.flags & CHUNKED:
        append_chunk_size(plane, stream, byte_count)
    if stream.block < 0:
        stream.inline_head = 0
        stream.inline_tail = 0
    entry = range_of(plane, slot, stream.ranges_first + stream.ranges_count)
    entry.address = address
    entry.remaining = byte_count
    entry.position = stream.inline_tail
    stream.ranges_count += 1
    if stream.flags & CHUNKED:
        append_raw(plane, stream, plane.constants + LINE_END_OFFSET, LINE_END_BYTES)
    count(plane, MESSAGES_SENT, 1)
    return True


@inlined
def range_is_next(plane: Any, slot: int, stream: Any) -> bool:
    """Whether the next byte to leave belongs to a range."""
    return bool(stream.ranges_count > 0 and range_of(plane, slot, stream.ranges_first).position == stream.inline_head)


@inlined
def next_address(plane: Any, slot: int, stream: Any) -> int:
    """Where the next bytes to leave lie."""
    if range_is_next(plane, slot, stream):
        return int(range_of(plane, slot, stream.ranges_first).address)
    return int(plane.blocks + stream.block * plane.block_bytes + (stream.inline_head & (plane.block_bytes - 1)))


@inlined
def next_bytes(plane: Any, slot: int, stream: Any) -> int:
    """How many of them lie there in one piece."""
    if range_is_next(plane, slot, stream):
        return min(int(range_of(plane, slot, stream.ranges_first).remaining), 1 << 30)
    limit = int(stream.inline_tail)
    if stream.ranges_count > 0:
        limit = min(limit, int(range_of(plane, slot, stream.ranges_first).position))
    offset = stream.inline_head & (plane.block_bytes - 1)
    return min(limit - int(stream.inline_head), int(plane.block_bytes - offset))


@inlined
def consume(plane: Any, slot: int, stream: Any, byte_count: int) -> bool:
    """The kernel has taken so many bytes. True when a range is the sender's again."""
    if range_is_next(plane, slot, stream):
        entry = range_of(plane, slot, stream.ranges_first)
        assert byte_count <= entry.remaining
        entry.remaining -= byte_count
        entry.address += byte_count
        if entry.remaining > 0:
            return False
        stream.ranges_first = (stream.ranges_first + 1) & 3
        stream.ranges_count -= 1
        stream.ranges_done += 1
        release_block(plane, stream)
        return True
    assert byte_count <= inline_bytes(stream)
    stream.inline_head += byte_count
    stream.inline_done += byte_count
    release_block(plane, stream)
    return False


@inlined
def release_block(plane: Any, stream: Any) -> None:
    """Give the block back when nothing in it is unsent and no range refers to a position in it."""
    if stream.block >= 0 and inline_bytes(stream) == 0 and stream.ranges_count == 0:
        block_give(plane, stream.block)
        stream.block = -1
        stream.inline_head = 0
        stream.inline_tail = 0


@compiled
def discard_output(plane: Any, slot: int) -> None:
    """Drop what is unsent, ranges included: they are the sender's again. No send may be in flight."""
    stream = stream_of(plane, slot)
    stream.inline_done += inline_bytes(stream)
    stream.inline_head = stream.inline_tail
    stream.ranges_done += stream.ranges_count
    stream.ranges_count = 0
    release_block(plane, stream)
