"""What a server that streams tokens over HTTP sends: the chunks are undone, and every byte of every event is checked.

A response is HTTP/1.1 and chunked. Its body is one event for each token, numbered from 0, and then `[DONE]`. An event
is given by a template (scripts/bench/completion_events.py): what differs from stream to stream (an identity, a time)
is learnt from a stream's first event and stays the same within it; then comes the token's number. What stands behind
the number of the last token is given by itself. Whole pieces are compared (memcmp): millions of tokens come a second.

Pure: bytes and a time in, counts out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.just_in_time import compiled, foreign, inlined, types

if TYPE_CHECKING:
    from scripts.bench.records import Tables

# Where in the framing of chunks a stream is: `framing`.
SIZE, SIZE_LF, DATA, DATA_CR, DATA_LF, LAST_CR, LAST_LF, ENDED = 0, 1, 2, 3, 4, 5, 6, 7
# Where in its body: `part`.
LEARNING, BEGINNING, NUMBER, REST, TAIL, OVER = 0, 1, 2, 3, 4, 5
LEARNT_BYTES_MAX = 512
DIGITS_MAX = 16
SHOWN_BYTES_MAX = 120  # of what came where it was wrong, or of the body of a refusal
_SIZE_DIGITS_MAX = 12

_CR, _LF, _ZERO, _NINE = 13, 10, 48, 57

_memcmp = foreign("memcmp", types.int32, types.intp, types.intp, types.intp)


@inlined
def _matched(tables: Tables, line: int, matched: int, byte: int) -> int:
    """How much of a head's line, with the line ends around it and in lower case, has come."""
    if 65 <= byte <= 90:
        byte += 32
    if byte == tables.head_lines[line, matched]:
        return matched + 1
    return 1 if byte == _CR else 0


@inlined
def _head_byte(tables: Tables, slot: int, byte: int) -> None:
    """The head ends with an empty line; its status stands at bytes 9 to 11. Two of its lines matter."""
    stream, response = tables.streams[slot], tables.responses[slot]
    if 9 <= stream.position < 12:
        stream.status = stream.status * 10 + byte - _ZERO
    stream.position += 1
    if byte == (_CR if stream.head_matched % 2 == 0 else _LF):
        stream.head_matched += 1
    else:
        stream.head_matched = 1 if byte == _CR else 0
    response.chunked_matched = _matched(tables, 0, response.chunked_matched, byte)
    if response.chunked_matched == tables.run[0].chunked_line_bytes:
        response.is_chunked, response.chunked_matched = 1, 2  # its line end may begin the other line
    response.close_matched = _matched(tables, 1, response.close_matched, byte)
    if response.close_matched == tables.run[0].close_line_bytes:
        response.is_closing, response.close_matched = 1, 2


@inlined
def _show(tables: Tables, slot: int, start: int, end: int) -> None:
    response = tables.responses[slot]
    response.shown_bytes = min(end - start, SHOWN_BYTES_MAX)
    for index in range(response.shown_bytes):
        tables.shown[slot, index] = tables.buffer[start + index]


@inlined
def _differs(tables: Tables, slot: int, start: int, end: int) -> None:
    tables.streams[slot].differs_at = tables.responses[slot].body_bytes
    _show(tables, slot, start, end)


@inlined
def _next_number(tables: Tables, slot: int) -> None:
    response, digits = tables.responses[slot], tables.digits
    at = response.digit_count - 1
    while at >= 0 and digits[slot, at] == _NINE:
        digits[slot, at] = _ZERO
        at -= 1
    if at >= 0:
        digits[slot, at] += 1
        return
    digits[slot, response.digit_count] = _ZERO
    digits[slot, 0] = _ZERO + 1
    response.digit_count += 1


@inlined
def _part_over(tables: Tables, slot: int, now_ns: int) -> None:
    """A part has come whole. The last token's event is whole at the body's end: its tail holds [DONE], too."""
    stream, response, run = tables.streams[slot], tables.responses[slot], tables.run[0]
    response.part_bytes = 0
    if response.part == NUMBER:
        response.part = REST if stream.message_count + 1 < run.messages_expected else TAIL
        return
    if response.part == BEGINNING:
        response.part = NUMBER
        return
    response.part = BEGINNING if response.part == REST else OVER
    if stream.message_count == 0:
        stream.first_message_ns = now_ns
    stream.last_message_ns = now_ns
    stream.message_count += 1
    run.message_count += 1
    _next_number(tables, slot)


@inlined
def _learn(tables: Tables, slot: int, start: int, end: int) -> int:
    """The first event up to its number, byte by byte. Where the rest of the piece begins."""
    response, run = tables.responses[slot], tables.run[0]
    for index in range(start, end):
        byte, at = tables.buffer[index], response.learnt_bytes
        is_wrong = at < run.before_bytes and byte != tables.event_text[at]
        if at == LEARNT_BYTES_MAX or is_wrong or byte == _LF:
            _differs(tables, slot, index, end)
            return end
        tables.learnt[slot, at] = byte
        response.learnt_bytes = at + 1
        middle_at = response.learnt_bytes - run.middle_bytes
        learnt_address = run.learnt_address + slot * LEARNT_BYTES_MAX
        is_whole = middle_at > run.before_bytes
        if is_whole and _memcmp(learnt_address + middle_at, run.middle_address, run.middle_bytes) == 0:
            response.part = NUMBER
            return index + 1
    return end


@inlined
def _part_address(tables: Tables, slot: int) -> int:
    response, run = tables.responses[slot], tables.run[0]
    address: int = run.tail_address
    if response.part == BEGINNING:
        address = run.learnt_address + slot * LEARNT_BYTES_MAX
    elif response.part == NUMBER:
        address = run.digits_address + slot * DIGITS_MAX
    elif response.part == REST:
        address = run.rest_address
    return address


@inlined
def _part_size(tables: Tables, slot: int) -> int:
    response, run = tables.responses[slot], tables.run[0]
    size: int = run.tail_bytes
    if response.part == BEGINNING:
        size = response.learnt_bytes
    elif response.part == NUMBER:
        size = response.digit_count
    elif response.part == REST:
        size = run.rest_bytes
    return size


@compiled
def _take_body(tables: Tables, slot: int, start: int, end: int, now_ns: int) -> None:
    stream, response, run = tables.streams[slot], tables.responses[slot], tables.run[0]
    while start < end and stream.differs_at < 0:
        if response.part == LEARNING:
            following = _learn(tables, slot, start, end)
        elif response.part == OVER:
            _differs(tables, slot, start, end)
            return
        else:
            size = _part_size(tables, slot)
            taken = min(size - response.part_bytes, end - start)
            address = _part_address(tables, slot) + response.part_bytes
            if _memcmp(run.buffer_address + start, address, taken) != 0:
                _differs(tables, slot, start, end)
                return
            following = start + taken
            response.part_bytes += taken
            if response.part_bytes == size:
                _part_over(tables, slot, now_ns)
        response.body_bytes += following - start
        start = following


@inlined
def _hexadecimal(byte: int) -> int:
    """The value of a digit, or -1."""
    if _ZERO <= byte <= _NINE:
        return byte - _ZERO
    byte |= 32
    return byte - 87 if 97 <= byte <= 102 else -1


@inlined
def _size_byte(response: Any, byte: int) -> bool:  # noqa: ANN401  (a record's fields are known to Numba alone)
    if byte == _CR and response.size_digits > 0:
        response.framing = SIZE_LF
        return True
    digit = _hexadecimal(byte)
    response.size_digits += 1
    if digit < 0 or response.size_digits > _SIZE_DIGITS_MAX:
        return False
    response.chunk_left = response.chunk_left * 16 + digit
    return True


@inlined
def _framing_byte(response: Any, byte: int) -> bool:  # noqa: ANN401
    """A byte between the data of chunks. False where it is wrong."""
    framing = response.framing
    if framing == SIZE:
        return _size_byte(response, byte)
    if framing == SIZE_LF:
        response.framing = DATA if response.chunk_left > 0 else LAST_CR
    elif framing == DATA_LF:
        response.framing = SIZE
        response.chunk_left = response.size_digits = 0
    else:
        response.framing = framing + 1  # DATA_CR, LAST_CR, LAST_LF
    wanted = _CR if framing in (DATA_CR, LAST_CR) else _LF
    return bool(byte == wanted)


@inlined
def _take_chunks(tables: Tables, slot: int, start: int, end: int, now_ns: int) -> None:
    stream, response = tables.streams[slot], tables.responses[slot]
    while start < end and stream.differs_at < 0:
        if response.framing == DATA:
            taken = min(response.chunk_left, end - start)
            _take_body(tables, slot, start, start + taken, now_ns)
            response.chunk_left -= taken
            if response.chunk_left == 0:
                response.framing = DATA_CR
            start += taken
        elif response.framing == ENDED or not _framing_byte(response, int(tables.buffer[start])):
            _differs(tables, slot, start, end)
        else:
            start += 1


@compiled
def scan_response(tables: Tables, slot: int, byte_count: int, now_ns: int) -> None:
    """Take the first `byte_count` bytes of `tables.buffer` as the next bytes of the response in `slot`."""
    stream, response, run = tables.streams[slot], tables.responses[slot], tables.run[0]
    stream.byte_count += byte_count
    run.byte_count += byte_count
    start = 0
    while start < byte_count and stream.head_matched < 4:
        _head_byte(tables, slot, int(tables.buffer[start]))
        start += 1
    if start == byte_count:
        return
    if stream.status != 200 or not response.is_chunked:
        if response.shown_bytes == 0:
            _show(tables, slot, start, byte_count)
        return
    tokens_before = stream.message_count
    _take_chunks(tables, slot, start, byte_count, now_ns)
    if run.interval_ns > 0 and stream.message_count > tokens_before:
        late_ns = now_ns - stream.first_message_ns - (stream.message_count - 1) * run.interval_ns
        run.late_ns_max = max(run.late_ns_max, late_ns)
        run.early_ns_max = max(run.early_ns_max, -late_ns)
