"""What a handoff's response consists of: every byte is checked, messages are counted and timed. Pure, and compiled.

Also the histograms that all of the load generator counts into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from compiler.just_in_time import compiled, inlined

if TYPE_CHECKING:
    from scripts.bench.records import Tables

Integer: TypeAlias = "int | np.int64"

# Rows of the histograms.
CONNECT, HANDOFF, FIRST_BYTE, BETWEEN, LATENESS, WHOLE, FIRST_TOKEN, TOKENS_PER_S = 0, 1, 2, 3, 4, 5, 6, 7
METRICS = ("connect", "handoff", "first_byte", "between_messages", "lateness", "whole_stream")
HTTP_METRICS = ("first_token", "tokens_per_s")  # the rows behind those, over HTTP alone; the second is no time

# A bucket is at most 1/512 of its lower bound wide, and its middle is reported: 0.1 % off at most.
LINEAR_BITS = 10
HALF = 1 << (LINEAR_BITS - 1)
VALUE_BITS = 42  # 73 minutes in nanoseconds
BUCKET_COUNT = (VALUE_BITS - LINEAR_BITS) * HALF + 2 * HALF

# A stream's own number stands in its handoff and in what is expected of it: always eight digits, no leading zero.
NUMBER_FIRST = 10_000_000
NUMBER_DIGITS = 8
NUMBER_MARK = 256  # NUMBER_MARK + k in a template stands for digit k
_POWERS = np.array([10**exponent for exponent in range(NUMBER_DIGITS - 1, -1, -1)], np.int64)

ZERO = 48
_CR, _LF, _COLON = 13, 10, 58
_DONE = np.frombuffer(b"data: [DONE]\n\n", np.uint8)
_ERROR = np.frombuffer(b"event: error", np.uint8)
DONE_BYTES, _ERROR_BYTES = 14, 12


@inlined
def bucket_of(value: int) -> int:
    """The bucket of a value of at least 0: as it is below 1,024, then 512 buckets for each power of two."""
    value = min(value, (1 << VALUE_BITS) - 1)
    shift = 0
    for step in (32, 16, 8, 4, 2, 1):
        if value >> (shift + step - 1) >= 1 << LINEAR_BITS:
            shift += step
    return shift * HALF + (value >> shift)


@inlined
def count_value(tables: Tables, metric: int, value: int) -> None:
    """Add one value in nanoseconds to a metric's histogram."""
    value = max(value, 0)
    tables.histograms[metric, bucket_of(value)] += 1
    tables.least[metric] = min(tables.least[metric], value)
    tables.most[metric] = max(tables.most[metric], value)


@inlined
def digit_or_byte(mark: Integer, number: Integer) -> Integer:
    """What a template says at one place for the stream with this number."""
    if mark < NUMBER_MARK:
        return mark
    digit: Integer = number // _POWERS[mark - NUMBER_MARK] % 10
    return ZERO + digit


@inlined
def _message_arrived(tables: Tables, stream: np.record, now_ns: int) -> None:
    """Times of one message. All messages of one recv share its time; [DONE] has no pace and is not counted."""
    run = tables.run[0]
    if stream.message_count == 0:
        stream.first_message_ns = now_ns
    else:
        count_value(tables, BETWEEN, now_ns - stream.last_message_ns)
        if run.interval_ns > 0:
            late_ns = now_ns - stream.first_message_ns - stream.message_count * run.interval_ns
            run.early_ns_max = max(run.early_ns_max, -late_ns)
            count_value(tables, LATENESS, late_ns)
    stream.last_message_ns = now_ns
    stream.message_count += 1
    run.message_count += 1


@inlined
def _block_ended(tables: Tables, stream: np.record, now_ns: int) -> None:
    """A blank line: what was the block before it? A block that begins with a colon is a comment (keep-alive)."""
    if stream.is_comment:
        tables.run[0].comment_count += 1
    elif stream.done_matched == DONE_BYTES and stream.block_bytes == DONE_BYTES:
        stream.is_done = 1
    elif stream.error_matched == _ERROR_BYTES:
        stream.error_count += 1
    elif stream.block_bytes > 2:  # more than a stray empty line
        _message_arrived(tables, stream, now_ns)
    stream.block_bytes = 0
    stream.done_matched = 0
    stream.error_matched = 0
    stream.is_comment = 0


@inlined
def _head_byte(stream: np.record, byte: Integer) -> None:
    r"""The head ends with \r\n\r\n; its status stands at bytes 9 to 11."""
    if 9 <= stream.position < 12:
        stream.status = stream.status * 10 + byte - ZERO
    if byte == (_CR if stream.head_matched % 2 == 0 else _LF):
        stream.head_matched += 1
    else:
        stream.head_matched = 1 if byte == _CR else 0


@inlined
def _body_byte(tables: Tables, stream: np.record, byte: Integer, now_ns: int) -> None:
    at = stream.block_bytes
    if at == 0:
        stream.is_comment = byte == _COLON
    if at < DONE_BYTES and stream.done_matched == at and byte == _DONE[at]:
        stream.done_matched += 1
    if at < _ERROR_BYTES and stream.error_matched == at and byte == _ERROR[at]:
        stream.error_matched += 1
    stream.block_bytes += 1
    if byte == _LF:
        if stream.line_bytes == 0:
            _block_ended(tables, stream, now_ns)
        stream.line_bytes = 0
    elif byte != _CR:
        stream.line_bytes += 1


@compiled
def scan(tables: Tables, slot: int, byte_count: int, now_ns: int) -> None:
    """Take the first `byte_count` bytes of `tables.buffer` as the next bytes of the stream in `slot`."""
    stream = tables.streams[slot]
    buffer = tables.buffer
    expected = tables.expected
    for index in range(byte_count):
        byte = np.int64(buffer[index])
        if stream.head_matched < 4:
            _head_byte(stream, byte)
        elif stream.status != 200:
            break  # a refusal's body: nothing to learn from it
        else:
            is_comment = stream.is_comment if stream.block_bytes > 0 else byte == _COLON
            was_done = stream.is_done
            _body_byte(tables, stream, byte, now_ns)
            if is_comment:
                continue  # a keep-alive may come anywhere between messages, and is no part of what is expected
            stream.after_done_bytes += was_done
        if stream.differs_at < 0 and expected.size > 0:
            at = stream.position
            if at >= expected.size or byte != digit_or_byte(np.int64(expected[at]), stream.number):
                stream.differs_at = at
        stream.position += 1
    stream.byte_count += byte_count
    tables.run[0].byte_count += byte_count
