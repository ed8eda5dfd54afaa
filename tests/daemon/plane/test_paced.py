"""The paced source: what it renders, how much, and when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from daemon.plane import messages as m
from daemon.plane.output import append_chunk_size, consume, has_output, next_address, next_bytes
from daemon.plane.paced import (
    CLOSING,
    INDEX,
    LITERAL,
    TEXT,
    decimal_bytes,
    generate,
    messages_due,
    next_due_ns,
    render_decimal,
)
from tests.daemon.plane.small import Record, bytes_at, empty_stream, small_plane

pytestmark = pytest.mark.plane

SLOT = 1
PLANE = small_plane()
SHARED: Record = PLANE.globals[0]
LITERALS = (b"data: ", b" for ", b"\n\n", b"data: bye\n\n")
NUMBERS = some.one_of(some.integers(0, 10**18), some.sampled_from([0, 9, 10, 99, 100, 10**18]))


def _load() -> None:
    """Scripts of `data: <number> for <text>`, then `data: <text>`, and of different ends."""
    offset = 0
    offsets: list[int] = []
    for literal in LITERALS:
        PLANE.templates[offset : offset + len(literal)] = np.frombuffer(literal, np.uint8)
        offsets.append(offset)
        offset += len(literal)
    data, middle, end, bye = ((LITERAL, offsets[n], len(LITERALS[n])) for n in range(4))
    parts = [data, (INDEX, 0, 0), middle, (TEXT, 0, 0), end, data, (TEXT, 0, 0), end, bye]
    parts += [data, (INDEX, 0, 0), middle, (TEXT, 0, 0), end, data, (CLOSING, 0, 0), end, bye, (CLOSING, 0, 0)]
    for number, part in enumerate(parts):
        PLANE.script_parts[number] = part
    for number, (first, count) in enumerate([(0, 5), (5, 3), (8, 1), (9, 9), (18, 1), (19, 0)]):
        PLANE.script_messages[number] = (first, count, 300)
    for number, end_counts in enumerate((False, True, False, False)):
        PLANE.scripts[number] = (0, 2, 2 + number, end_counts)


def _end(script: int, total: int, text: bytes, closing: bytes) -> bytes:
    shown = b"data: %d for %s\n\ndata: %s\n\n%s" % (total, text, closing, LITERALS[3])
    return (LITERALS[3], shown, closing, b"")[script]


_load()


def _begin(
    total: int,
    interval_ps: int,
    start_ns: int,
    text: bytes,
    *,
    chunked: bool,
    script: int = 0,
    closing: bytes = b"",
) -> Record:
    stream, record = empty_stream(PLANE, SLOT), PLANE.streams[SLOT]
    record["flags"] = m.CHUNKED if chunked else 0
    for name in ("message_index", "inline_head", "inline_tail", "ranges_count", "message_count", "script"):
        record[name] = 0
    record.message_total, record.interval_ps, record.pace_start_ns = total, interval_ps, start_ns
    for name, array, data in (("text_bytes", PLANE.texts, text), ("closing_bytes", PLANE.closings, closing)):
        record[name] = len(data)
        array[SLOT * m.TEXT_BYTES_MAX :][: len(data)] = np.frombuffer(data, np.uint8)
    record.script = script
    return stream


def _drain(stream: Record) -> bytes:
    sent = b""
    while has_output(stream):
        size = int(next_bytes(SHARED, SLOT, stream))
        sent += bytes_at(int(next_address(SHARED, SLOT, stream)), size)
        consume(SHARED, SLOT, stream, size)
    return sent


def _message(number: int, text: bytes) -> bytes:
    return b"data: %s\n\n" % text if number % 2 else b"data: %d for %s\n\n" % (number, text)


@settings(deadline=None)
@given(NUMBERS)
def test_decimal_numbers(number: int) -> None:
    digits = int(decimal_bytes(number))
    assert bytes_at(int(render_decimal(SHARED, number, digits)), digits) == b"%d" % number


@settings(deadline=None)
@given(some.integers(1, 2**32 - 1))
def test_chunk_sizes_are_hexadecimal(size: int) -> None:
    stream = _begin(0, 0, 0, b"", chunked=True)
    append_chunk_size(SHARED, stream, size)
    assert _drain(stream) == b"%x\r\n" % size


@settings(deadline=None)
@given(
    some.integers(0, 200),
    some.sampled_from([0, 1, 10**6, 333_333_333, 10**9, 50 * 10**9]),
    some.tuples(some.binary(max_size=m.TEXT_BYTES_MAX), some.binary(max_size=m.TEXT_BYTES_MAX)),
    some.integers(0, 3),
    some.booleans(),
    some.lists(some.integers(0, 100 * 10**6), max_size=30),
)
def test_messages_come_when_due_and_as_the_script_says(
    total: int,
    interval_ps: int,
    texts: tuple[bytes, bytes],
    script: int,
    chunked: bool,
    delays: list[int],
) -> None:
    (text, closing), start_ns, now_ns, sent, ended = texts, 10**12, 10**12, b"", False
    stream = _begin(total, interval_ps, start_ns + 1000, text, chunked=chunked, script=script, closing=closing)
    end_counts = script == 1
    for delay_ns in [*delays, 0, *[10**10] * 40]:
        if ended:
            break
        SHARED.now_ns = now_ns
        due = int(messages_due(SHARED, stream))
        ended = bool(generate(SHARED, SLOT))
        index = int(PLANE.streams["message_index"][SLOT])
        assert index <= due <= total
        end_ns = start_ns + 1000 + (total * interval_ps + 999) // 1000
        assert not (ended and end_counts) or now_ns >= end_ns
        assert ended or index < total or now_ns < (end_ns if end_counts else start_ns + 1000)
        if not ended and index == due < total + end_counts and now_ns > start_ns + 1000:
            assert next_due_ns(stream) > now_ns
        sent += _drain(stream)
        now_ns += delay_ns
    assert ended
    assert int(PLANE.streams["message_count"][SLOT]) == total + end_counts
    pieces = [_message(number, text) for number in range(total)] + [_end(script, total, text, closing)]
    form = b"%x\r\n%s\r\n"
    framed = b"".join(form % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"
    assert sent == (framed if chunked else b"".join(pieces))


@given(some.integers(0, 10**6), some.integers(0, 10**12), some.integers(0, 10**13))
@settings(deadline=None)
def test_due_counts_are_exact(total: int, interval_ps: int, elapsed_ns: int) -> None:
    stream = _begin(total, interval_ps, 10**12, b"", chunked=False)
    SHARED.now_ns = 10**12 + elapsed_ns
    naive = total if interval_ps == 0 else min(total, elapsed_ns * 1000 // interval_ps + 1)
    assert int(messages_due(SHARED, stream)) == naive
    SHARED.now_ns = 10**12 - 1
    assert int(messages_due(SHARED, stream)) == 0
