"""An event stream cut into events (WHATWG HTML, 9.2.6), and what of an event matters here.

Events come in any number of pieces; the bytes so far lie in one place, and `scan_event` is asked again as more come. It
keeps nothing but an offset, so that many streams can share one record: `resume` says how far it has looked, and no byte
is looked at more than twice. How the bytes were cut never changes what is found. Bytes of the event are never changed.

Data-plane thread, or tests. Memory is only read in [address, address + length).
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.bytes_search import line_bytes, name_words, word4_at
from daemon.plane.memory import copy_bytes
from daemon.plane.records import load_byte, record, record_accessor, store_byte

SCAN = record(
    # in and out: bytes already looked at of an event that is not complete; 0 for a new event
    "resume:i8 "
    # offset behind the blank line that ends the event
    "end:i8 "
    # the value of the only data field (of several, the last one's), and how many data fields there are
    "data_offset:i8 data_bytes:i8 data_count:i8 "
    # the event's name is exactly `error`
    "is_error:i8 "
    # lines before the blank one, comments included
    "line_count:i8",
    64,
)
scan_of = record_accessor(SCAN)

_DATA_WORD = name_words(b"data")[1]
_EVENT_WORD = name_words(b"even")[1]
_ERROR_WORD = name_words(b"erro")[1]
_BOM = (0xEF, 0xBB, 0xBF)
_DONE_FIRST_WORD = name_words(b"[DON")[1]
_DONE_LAST_WORD = name_words(b"ONE]")[1]

# What a line is
_OTHER = 0
_DATA = 1
_EVENT = 2


@compiled
def scan_event(scan: Any, address: int, length: int, is_last: bool) -> bool:
    """Whether the event that begins at `address` is complete; `scan` then says what it is, and `resume` is 0.

    Otherwise `resume` must be as this left it when more has come. A CR at the very end waits for an LF, unless
    `is_last`: nothing follows. A blank line alone is an event without data.
    """
    if scan.resume > 0 and not _is_complete(scan, address, length, is_last):
        return False
    scan.data_offset = -1
    scan.data_bytes = 0
    scan.data_count = 0
    scan.is_error = 0
    scan.line_count = 0
    start = 0
    while True:
        end = start + line_bytes(address + start, length - start)
        following = _behind_line(address, end, length, is_last)
        if following < 0:
            scan.resume = end
            return False
        if end == start:
            scan.end = following
            scan.resume = 0
            return True
        _take_line(scan, address, start, end)
        start = following


@compiled
def _is_complete(scan: Any, address: int, length: int, is_last: bool) -> bool:
    """Look for the blank line from `resume` on, which may be anywhere in a line."""
    start = int(scan.resume)
    before = load_byte(address + start - 1)
    is_begun = before != 10 and before != 13
    while True:
        end = start + line_bytes(address + start, length - start)
        following = _behind_line(address, end, length, is_last)
        if following < 0:
            scan.resume = end
            return False
        if end == start and not is_begun:
            return True
        is_begun = False
        start = following


@inlined
def _behind_line(address: int, end: int, length: int, is_last: bool) -> int:
    """Where the next line begins after a line that ends at `end`; -1 when that is not known yet."""
    if end >= length:
        return -1
    if load_byte(address + end) == 10:
        return end + 1
    if end + 1 < length:
        return end + 2 if load_byte(address + end + 1) == 10 else end + 1
    return end + 1 if is_last else -1


@inlined
def _kind_of(address: int, start: int, end: int) -> int:
    """Which field a line is: its name ends at the first colon, or is the whole line."""
    size = end - start
    if size < 4:
        return _OTHER
    word = word4_at(address + start)
    if word == _DATA_WORD and (size == 4 or load_byte(address + start + 4) == 58):
        return _DATA
    if word == _EVENT_WORD and size > 4 and load_byte(address + start + 4) == 116:
        return _EVENT if size == 5 or load_byte(address + start + 5) == 58 else _OTHER
    return _OTHER


@inlined
def _value_start(address: int, name_end: int, end: int) -> int:
    """Where a field's value begins: behind the colon and one space, where they are there."""
    if name_end < end:
        name_end += 1
    if name_end < end and load_byte(address + name_end) == 32:
        name_end += 1
    return name_end


@inlined
def _take_line(scan: Any, address: int, start: int, end: int) -> None:
    scan.line_count += 1
    kind = _kind_of(address, start, end)
    if kind == _DATA:
        value = _value_start(address, start + 4, end)
        scan.data_count += 1
        scan.data_offset = value
        scan.data_bytes = end - value
    elif kind == _EVENT:
        value = _value_start(address, start + 5, end)
        is_error = end - value == 5 and word4_at(address + value) == _ERROR_WORD and load_byte(address + end - 1) == 114
        scan.is_error = 1 if is_error else 0


@compiled
def join_data(destination: int, address: int, end: int) -> int:
    """Write the values of all data fields of the event in [address, address + end), with LF between; bytes written.

    They are at most `end` bytes. `destination` lies elsewhere.
    """
    written = 0
    data_count = 0
    start = 0
    while start < end:
        line_end = start + line_bytes(address + start, end - start)
        if _kind_of(address, start, line_end) == _DATA:
            if data_count > 0:
                store_byte(destination + written, 10)
                written += 1
            data_count += 1
            value = _value_start(address, start + 4, line_end)
            if line_end > value:
                copy_bytes(destination + written, address + value, line_end - value)
                written += line_end - value
        following = _behind_line(address, line_end, end, True)
        start = end if following < 0 else following
    return written


@compiled
def skip_bom(address: int, length: int, is_last: bool) -> int:
    """Bytes of a byte order mark at the beginning of a stream: 3 or 0, or -1 while more must come to tell."""
    for offset in range(min(length, 3)):
        if load_byte(address + offset) != _BOM[offset]:
            return 0
    if length >= 3:
        return 3
    return 0 if is_last else -1


@compiled
def is_done(address: int, length: int) -> bool:
    """Whether data is exactly `[DONE]`, the end of an OpenAI stream; spaces around it are tolerated."""
    start = 0
    while start < length and load_byte(address + start) == 32:
        start += 1
    while length > start and load_byte(address + length - 1) == 32:
        length -= 1
    # Six bytes are two words of four, the second one beginning in the first.
    return (
        length - start == 6
        and word4_at(address + start) == _DONE_FIRST_WORD
        and word4_at(address + start + 2) == _DONE_LAST_WORD
    )
