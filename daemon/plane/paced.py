"""The paced source: messages rendered from a script, so many, one every so often, or as fast as the socket takes.

A script is a list of messages made of parts: literal bytes, the message's number, the stream's two texts. Its end is
one more, shown once. What is due together is rendered together and leaves in one send.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.counters import MESSAGES_SENT
from daemon.plane.messages import CHUNKED, TEXT_BYTES_MAX
from daemon.plane.output import (
    FRAMING_BYTES,
    append_chunk_size,
    append_last_chunk,
    append_raw,
    room_for,
)
from daemon.plane.records import store_byte
from daemon.plane.table import (
    LINE_END_BYTES,
    LINE_END_OFFSET,
    SCRATCH_OFFSET,
    count,
    script_message_of,
    script_of,
    script_part_of,
    stream_of,
)

RESERVE_BYTES = 1024
LITERAL = 0
INDEX = 1
TEXT = 2
CLOSING = 3
_DIGITS_ADDRESS = SCRATCH_OFFSET + 32  # 32 more bytes of scratch, for decimal numbers


@inlined
def decimal_bytes(number: int) -> int:
    """How many decimal digits a number that is not negative has."""
    digits = 1
    while number >= 10:
        number //= 10
        digits += 1
    return digits


@inlined
def render_decimal(plane: Any, number: int, digits: int) -> int:
    """Render a number in the scratch memory; the address of its first digit."""
    address = plane.constants + _DIGITS_ADDRESS
    for index in range(digits - 1, -1, -1):
        store_byte(address + index, 48 + number % 10)
        number //= 10
    return int(address)


@inlined
def message_bytes(plane: Any, slot: int, message: Any, number: int) -> int:
    """Exact size of a rendered message."""
    total = 0
    for index in range(int(message.part_count)):
        part = script_part_of(plane, int(message.first_part) + index)
        if part.kind == LITERAL:
            total += int(part.length)
        elif part.kind == INDEX:
            total += decimal_bytes(number)
        elif part.kind == TEXT:
            total += int(stream_of(plane, slot).text_bytes)
        else:
            total += int(stream_of(plane, slot).closing_bytes)
    return total


@compiled
def render_message(plane: Any, slot: int, message_number: int, number: int) -> None:
    """Append message `message_number` of the script table, showing `number` and the stream's texts."""
    stream = stream_of(plane, slot)
    message = script_message_of(plane, message_number)
    chunked = stream.flags & CHUNKED
    if chunked:
        size = message_bytes(plane, slot, message, number)
        if size == 0:
            return  # a chunk of no bytes would end the body
        append_chunk_size(plane, stream, size)
    for index in range(int(message.part_count)):
        part = script_part_of(plane, int(message.first_part) + index)
        if part.kind == LITERAL:
            append_raw(plane, stream, plane.templates + int(part.offset), int(part.length))
        elif part.kind == INDEX:
            digits = decimal_bytes(number)
            append_raw(plane, stream, render_decimal(plane, number, digits), digits)
        elif part.kind == TEXT:
            append_raw(plane, stream, plane.texts + slot * TEXT_BYTES_MAX, int(stream.text_bytes))
        else:
            append_raw(plane, stream, plane.closings + slot * TEXT_BYTES_MAX, int(stream.closing_bytes))
    if chunked:
        append_raw(plane, stream, plane.constants + LINE_END_OFFSET, LINE_END_BYTES)


@inlined
def messages_due(plane: Any, stream: Any) -> int:
    """How many messages should have been made by now, of all."""
    elapsed_ns = plane.now_ns - stream.pace_start_ns
    if elapsed_ns < 0:
        return 0
    if stream.interval_ps == 0:
        return int(stream.message_total)
    # Beyond a hundred days the product would overflow; no stream is that long.
    return int(min(min(elapsed_ns, 1 << 53) * 1000 // stream.interval_ps + 1, stream.message_total))


@inlined
def next_due_ns(stream: Any) -> int:
    """When the next message is due."""
    return int(stream.pace_start_ns + (stream.message_index * stream.interval_ps + 999) // 1000)


@compiled
def generate(plane: Any, slot: int) -> bool:
    """Render what is due and fits. True when the source has ended and its end is appended.

    What is due and does not fit makes the stream `paused`: the next completed send brings it here again.
    """
    stream = stream_of(plane, slot)
    script = script_of(plane, stream.script)
    due = messages_due(plane, stream)
    first, own = int(script.first_message), int(script.message_count)
    number = int(stream.message_index)
    begun = number
    which = number % own if own > 0 else 0
    stream.paused = 0
    while number < due:
        # Leave room for the error event of a STOP, should one come while the client does not read.
        if not room_for(plane, stream, int(script_message_of(plane, first + which).bytes_max) + RESERVE_BYTES):
            stream.paused = 1
            break
        render_message(plane, slot, first + which, number)
        number += 1
        which += 1
        if which == own:
            which = 0
    stream.message_index = number
    if number > begun:
        stream.message_count += number - begun
        count(plane, MESSAGES_SENT, number - begun)
    if number < stream.message_total or plane.now_ns < stream.pace_start_ns:
        return False
    if script.end_counts and plane.now_ns < next_due_ns(stream):
        return False
    end = int(script.end_message)
    if not room_for(plane, stream, int(script_message_of(plane, end).bytes_max) + FRAMING_BYTES):
        stream.paused = 1
        return False
    render_message(plane, slot, end, number)
    if script.end_counts:
        stream.message_count += 1
        count(plane, MESSAGES_SENT, 1)
    append_last_chunk(plane, stream)
    return True
