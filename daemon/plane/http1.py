"""The head of an upstream's answer: status, how long its body is, and the few header fields that matter here.

Strict where a lenient reader and another one could disagree on where the body ends (RFC 9112, 6.3 and 11.2), lenient
where they cannot: a bare LF ends a line. The head is read again from its beginning as more comes; how it was cut never
changes what is found.

Data-plane thread, or tests. Memory is only read in [address, address + length). Sources: RFC 9110, RFC 9112, RFC 9113.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.bytes_search import find_byte, folded_words, name_words
from daemon.plane.http_fields import (
    COMMA,
    decimal_value,
    element_bytes,
    is_token_byte,
    skip_blanks,
    text_end,
    trim_blanks,
)
from daemon.plane.records import load_byte, record, record_accessor

# What `parse_head` says besides a number of bytes
HEAD_INCOMPLETE = 0
HEAD_MALFORMED = -1
HEAD_TOO_LARGE = -2
HEAD_HTTP2 = -3

HEAD = record(
    "status:i8 minor_version:i8 "
    # of the body; -1 where it is not given, or chunks say it
    "content_length:i8 is_chunked:i8 "
    # the connection serves no other request
    "closes:i8 "
    "is_event_stream:i8 "
    # the body is coded in a way that nobody here undoes
    "is_compressed:i8 "
    # spans; -1 and 0 where there is no such field
    "content_type_offset:i8 content_type_bytes:i8 retry_after_offset:i8 retry_after_bytes:i8 "
    # while reading: what Connection and Transfer-Encoding said
    "says_close:i8 says_keep_alive:i8 has_transfer_coding:i8",
    128,
)
head_of = record_accessor(HEAD)

_VERSION = tuple(b"HTTP/1.")
_FRAME_BYTES_MAX = 16384  # of an HTTP/2 frame, as long as nobody has allowed more (RFC 9113, 4.2)
_SETTINGS, _GOAWAY = 4, 7  # types of the frames that a server may begin with

_CONTENT_LENGTH = name_words(b"content-length")
_TRANSFER_ENCODING = name_words(b"transfer-encoding")
_CONNECTION = name_words(b"connection")
_CONTENT_TYPE = name_words(b"content-type")
_CONTENT_ENCODING = name_words(b"content-encoding")
_RETRY_AFTER = name_words(b"retry-after")
_CLOSE = name_words(b"close")
_KEEP_ALIVE = name_words(b"keep-alive")
_CHUNKED = name_words(b"chunked")
_IDENTITY = name_words(b"identity")
_EVENT_STREAM = name_words(b"text/event-stream")

# Lists whose elements are looked at
_OF_CONNECTION = 0
_OF_TRANSFER_CODINGS = 1
_OF_CONTENT_CODINGS = 2


@compiled
def parse_head(head: Any, address: int, length: int, bytes_max: int) -> int:
    """Bytes of the whole head with its empty line, and `head` filled; HEAD_INCOMPLETE; or why there will be none.

    Of an interim answer (1xx) too: the next head follows it.
    """
    _reset(head)
    beginning = _check_beginning(address, length)
    if beginning != HEAD_INCOMPLETE:
        return beginning
    visible = min(length, bytes_max)
    start = 0
    while start < visible:
        offset = find_byte(address + start, visible - start, 10)
        if offset < 0:
            break
        following = start + offset + 1
        end = following - 1
        if end > start and load_byte(address + end - 1) == 13:
            end -= 1
        if start == 0:
            is_good = _take_status_line(head, address, end)
        elif end == start:
            _conclude(head)
            return following
        else:
            is_good = _take_field(head, address, start, end)
        if not is_good:
            return HEAD_MALFORMED
        start = following
    return HEAD_TOO_LARGE if length >= bytes_max else HEAD_INCOMPLETE


@inlined
def _reset(head: Any) -> None:
    head.status = 0
    head.minor_version = 0
    head.content_length = -1
    head.is_chunked = 0
    head.closes = 0
    head.is_event_stream = 0
    head.is_compressed = 0
    head.content_type_offset = -1
    head.content_type_bytes = 0
    head.retry_after_offset = -1
    head.retry_after_bytes = 0
    head.says_close = 0
    head.says_keep_alive = 0
    head.has_transfer_coding = 0


@inlined
def _check_beginning(address: int, length: int) -> int:
    """HEAD_INCOMPLETE while this can be an answer of HTTP/1, or else what it is."""
    for offset in range(min(length, len(_VERSION))):
        if load_byte(address + offset) != _VERSION[offset]:
            return _check_frame(address, length)
    return HEAD_INCOMPLETE


@inlined
def _check_frame(address: int, length: int) -> int:
    """Whether what is no answer of HTTP/1 begins as an HTTP/2 frame does: three bytes of length, one of type."""
    payload_bytes = 0
    for offset in range(3):
        byte = load_byte(address + offset) if offset < length else 0
        payload_bytes = payload_bytes * 256 + byte
    if payload_bytes > _FRAME_BYTES_MAX:
        return HEAD_MALFORMED
    if length < 4:
        return HEAD_INCOMPLETE
    kind = load_byte(address + 3)
    return HEAD_HTTP2 if kind in (_SETTINGS, _GOAWAY) else HEAD_MALFORMED


@inlined
def _take_status_line(head: Any, address: int, end: int) -> bool:
    """`HTTP/1.x NNN` and perhaps a reason; that it begins like this is known (RFC 9112, 4)."""
    if end < 12 or load_byte(address + 8) != 32:
        return False
    minor_version = load_byte(address + 7) - 48
    status = 0
    for offset in range(9, 12):
        digit = load_byte(address + offset) - 48
        if digit < 0 or digit > 9:
            return False
        status = status * 10 + digit
    if minor_version < 0 or minor_version > 9 or status < 100 or status > 599:
        return False
    if end > 12 and load_byte(address + 12) != 32:
        return False
    head.minor_version = minor_version
    head.status = status
    return text_end(address, 12, end) == end


@compiled
def _take_field(head: Any, address: int, start: int, end: int) -> bool:
    """One field line; False when it is malformed. Lines continued by a space at their beginning are (RFC 9112, 5.2)."""
    colon = start
    while colon < end and is_token_byte(load_byte(address + colon)):
        colon += 1
    if colon == start or colon >= end or load_byte(address + colon) != 58:
        return False
    name = folded_words(address + start, colon - start)
    if text_end(address, colon + 1, end) < end:
        return False
    start = skip_blanks(address, colon + 1, end)
    end = trim_blanks(address, start, end)
    if name == _CONTENT_LENGTH:
        return _take_lengths(head, address, start, end)
    if name == _TRANSFER_ENCODING:
        head.has_transfer_coding = 1
        return _take_list(head, address, start, end, _OF_TRANSFER_CODINGS)
    if name == _CONNECTION:
        return _take_list(head, address, start, end, _OF_CONNECTION)
    if name == _CONTENT_ENCODING:
        return _take_list(head, address, start, end, _OF_CONTENT_CODINGS)
    if name == _CONTENT_TYPE:
        head.content_type_offset = start
        head.content_type_bytes = end - start
        type_bytes = element_bytes(address, start, end, 59)
        head.is_event_stream = 1 if folded_words(address + start, type_bytes) == _EVENT_STREAM else 0
    elif name == _RETRY_AFTER:
        head.retry_after_offset = start
        head.retry_after_bytes = end - start
    return True


@compiled
def _take_lengths(head: Any, address: int, start: int, end: int) -> bool:
    """Content-Length, also several times the same (RFC 9112, 6.3); differing ones are an attack or a fault."""
    while True:
        size = element_bytes(address, start, end, COMMA)
        value = decimal_value(address + start, size)
        if value < 0 or (head.content_length >= 0 and head.content_length != value):
            return False
        head.content_length = value
        start = skip_blanks(address, start + size, end)
        if start >= end:
            return True
        start = skip_blanks(address, start + 1, end)


@compiled
def _take_list(head: Any, address: int, start: int, end: int, kind: int) -> bool:
    """A list of tokens between commas; empty elements do not count (RFC 9110, 5.6.1)."""
    while start < end:
        size = element_bytes(address, start, end, COMMA)
        if size > 0 and not _take_element(head, address + start, size, kind):
            return False
        start = skip_blanks(address, start + size, end)
        start = skip_blanks(address, start + 1, end)
    return True


@inlined
def _take_element(head: Any, address: int, length: int, kind: int) -> bool:
    word = folded_words(address, length)
    if kind == _OF_CONNECTION:
        if word == _CLOSE:
            head.says_close = 1
        elif word == _KEEP_ALIVE:
            head.says_keep_alive = 1
    elif kind == _OF_CONTENT_CODINGS:
        if word != _IDENTITY:
            head.is_compressed = 1
    elif head.is_chunked:
        return False  # chunked is the last coding, and there once (RFC 9112, 7.1)
    elif word == _CHUNKED:
        head.is_chunked = 1
    else:
        head.is_compressed = 1
    return True


@inlined
def _conclude(head: Any) -> None:
    """What the fields mean together."""
    closes = head.says_close or (head.minor_version == 0 and not head.says_keep_alive)
    if head.has_transfer_coding:
        # Chunks win over a length. Whoever sends both, or chunks in HTTP/1.0, may have framed what follows otherwise:
        # the connection is not used again (RFC 9112, 6.1). Without chunks the body ends with the connection.
        if head.content_length >= 0 or head.minor_version == 0 or not head.is_chunked:
            closes = True
        head.content_length = -1
    head.closes = 1 if closes else 0
