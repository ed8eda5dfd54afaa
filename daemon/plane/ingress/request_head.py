"""The head of a request: what is asked for, how its body comes, and where the fields lie that matter here.

Stricter than RFC 9112 asks of a server: wherever two readers could disagree on where a head, a field or a body ends,
the head is refused (docs/decisions/0009 says what, and why). The bytes lie in one place while more are added behind
them; each is looked at once, and how they were cut never changes what is found.

Data-plane thread, or tests. Memory is only read in [address, address + length). Sources: RFC 9110, RFC 9112.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from config.compilation import compiled, inlined
from daemon.plane.body import CHUNK_SIZE, COUNTED, NONE
from daemon.plane.bytes_search import folded_words, name_words, plain_words, word8_at
from daemon.plane.http_fields import (
    COLON,
    CR,
    LF,
    SPACE,
    decimal_value,
    is_blank,
    is_token_byte,
    list_has,
    skip_blanks,
    text_end,
    trim_blanks,
)
from daemon.plane.ingress import faults
from daemon.plane.ingress.request_target import (
    ABSOLUTE_FORM,
    ASTERISK_FORM,
    authority_end,
    authority_start,
    form_of_target,
    is_authority,
)
from daemon.plane.records import load_byte, record, record_accessor

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD_INCOMPLETE = 0
LINE_BYTES_MAX = 8192  # of a line with its end; the WebSocket library reads none that is longer
FIELD_COUNT_MAX = 128  # the same
_LENGTH_DIGITS_MAX = 19

REQUEST_HEAD = record(
    # in and out: bytes looked at of a head that is not complete; 0 for a new head
    "resume:i8 "
    # where the line begins that is not complete, and lines before it
    "line_start:i8 line_count:i8 "
    # an index in METHODS; of HTTP/1.0 or HTTP/1.1
    "method:i4 minor_version:i4 "
    # the body: `body_state` of daemon.plane.body is NONE, COUNTED or CHUNK_SIZE; its length where it is COUNTED
    "content_length:i8 body_state:i4 "
    # the connection serves another request; the client waits for 100 (Continue); it asks for a WebSocket
    "keeps_alive:i4 expects_continue:i4 wants_websocket:i4 "
    # bits 1 << span: what is there, and what stands in several lines, of which the span is the first
    "present:i8 repeated:i8 "
    # while reading: bits of _SAYS
    "says:i8",
    # behind it, from _SPANS_OFFSET on, a SPAN for each of the numbers below
    256,
)
SPAN = record("offset:i4 length:i4", 8)  # from the head's first byte on; only where `present` has the bit
request_head_of = record_accessor(REQUEST_HEAD)
_span_at = record_accessor(SPAN)
_SPANS_OFFSET = 96

# Spans. PATH is the target's, with its query; it is empty where a URL has none. HOST is the target's where that is a
# URL (RFC 9112, 3.2.2), and always well-formed.
TARGET, PATH, AUTHORITY, HOST, AUTHORIZATION, CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING = range(8)
TRANSFER_ENCODING, CONNECTION, EXPECT, UPGRADE, ACCEPT, ORIGIN, REQUEST_ID, FORWARDED = range(8, 16)
FORWARDED_FOR, IF_NONE_MATCH, WEBSOCKET_KEY = range(16, 19)
FIELD_SPANS = (
    (HOST, name_words(b"host")),
    (AUTHORIZATION, name_words(b"authorization")),
    (CONTENT_TYPE, name_words(b"content-type")),
    (CONTENT_LENGTH, name_words(b"content-length")),
    (CONTENT_ENCODING, name_words(b"content-encoding")),
    (TRANSFER_ENCODING, name_words(b"transfer-encoding")),
    (CONNECTION, name_words(b"connection")),
    (EXPECT, name_words(b"expect")),
    (UPGRADE, name_words(b"upgrade")),
    (ACCEPT, name_words(b"accept")),
    (ORIGIN, name_words(b"origin")),
    (REQUEST_ID, name_words(b"x-request-id")),
    (FORWARDED, name_words(b"forwarded")),
    (FORWARDED_FOR, name_words(b"x-forwarded-for")),
    (IF_NONE_MATCH, name_words(b"if-none-match")),
    (WEBSOCKET_KEY, name_words(b"sec-websocket-key")),
)
# Fields whose value is one and decides something: who asks, for what, or where the body ends.
_SINGLE = (
    (1 << HOST)
    | (1 << AUTHORIZATION)
    | (1 << CONTENT_TYPE)
    | (1 << CONTENT_LENGTH)
    | (1 << TRANSFER_ENCODING)
    | (1 << ORIGIN)
    | (1 << WEBSOCKET_KEY)
)
_FRAMING = (1 << CONTENT_LENGTH) | (1 << TRANSFER_ENCODING)

METHODS = (b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"QUERY")
GET, POST, HEAD, OPTIONS = range(4)
_METHOD_WORDS = tuple(name_words(method + b" ") for method in METHODS)  # with the space: GET alone is too short
_HTTP_1_0 = name_words(b"HTTP/1.0")[1]
_HTTP_1_1 = name_words(b"HTTP/1.1")[1]
_ANY_VERSION, _DIGIT = tuple(b"HTTP/0.0"), 48

_CHUNKED = name_words(b"chunked")
_CHUNKED_BYTES = _CHUNKED[0]
_CONTINUE = name_words(b"100-continue")
_CLOSE = name_words(b"close")
_KEEP_ALIVE = name_words(b"keep-alive")
_UPGRADE = name_words(b"upgrade")
_WEBSOCKET = name_words(b"websocket")
_SAYS_CLOSE, _SAYS_KEEP_ALIVE, _SAYS_UPGRADE, _SAYS_WEBSOCKET, _SAYS_CONTINUE = 1, 2, 4, 8, 16


@compiled
def read_request_head(at: int, address: int, length: int, bytes_max: int) -> int:
    """Bytes of the whole head with its empty line, and the REQUEST_HEAD at `at` filled; HEAD_INCOMPLETE; or a fault.

    While it is incomplete, the record must stay as this left it until more has come. Faults come in the order of the
    bytes. An empty line before the request is skipped (RFC 9112, 2.2); it counts as part of the head.
    """
    head = request_head_of(at)
    if head.resume == 0:
        _begin(head)
    fault = 0
    while fault == 0:
        start = int(head.line_start)
        limit = min(start + LINE_BYTES_MAX, bytes_max)
        visible = min(length, limit)
        end = text_end(address, int(head.resume), visible)
        head.resume = end
        if end >= visible or (end + 1 == visible and load_byte(address + end) == CR):
            if length < limit:
                return HEAD_INCOMPLETE
            fault = _fault_of_length(head, limit == bytes_max)
            break
        following = end + 2
        head.line_start = head.resume = following
        if load_byte(address + end) != CR or load_byte(address + end + 1) != LF:
            fault = faults.LINE_END if load_byte(address + end) in (CR, LF) else faults.CONTROL
        elif end > start:
            fault = _take_line(head, at, address, start, end)
        elif head.line_count > 0:
            head.resume = 0
            fault = _conclude(head, at)
            return following if fault == 0 else fault
        elif start > 0:
            fault = faults.REQUEST_LINE
    head.resume = 0
    return fault


@inlined
def _begin(head: Any) -> None:
    head.line_start = 0
    head.line_count = 0
    head.method = 0
    head.minor_version = 0
    head.content_length = 0
    head.body_state = NONE
    head.keeps_alive = 0
    head.expects_continue = 0
    head.wants_websocket = 0
    head.present = 0
    head.repeated = 0
    head.says = 0


@inlined
def _fault_of_length(head: Any, is_whole_head: bool) -> int:
    if head.line_count == 0:
        return faults.REQUEST_LINE_BYTES
    return faults.HEAD_BYTES if is_whole_head else faults.FIELD_LINE_BYTES


@inlined
def _take_line(head: Any, at: int, address: int, start: int, end: int) -> int:
    head.line_count += 1
    if head.line_count == 1:
        return _take_request_line(head, at, address, start, end)
    if head.line_count > FIELD_COUNT_MAX + 1:
        return faults.FIELD_COUNT
    return _take_field(head, at, address, start, end)


@inlined
def _note_span(head: Any, at: int, span: int, start: int, end: int) -> None:
    head.present |= 1 << span
    place = _span_at(at + _SPANS_OFFSET + span * 8)
    place.offset = start
    place.length = end - start


# ---- the request line


@compiled
def _take_request_line(head: Any, at: int, address: int, start: int, end: int) -> int:
    """Method, target and version (RFC 9112, 3)."""
    target = start
    while target < end and is_token_byte(load_byte(address + target)):
        target += 1
    method_bytes = target - start
    target += 1
    target_end = end - 9  # a space and the version
    if method_bytes == 0 or target >= target_end:
        return faults.REQUEST_LINE
    if load_byte(address + target - 1) != SPACE or load_byte(address + target_end) != SPACE:
        return faults.REQUEST_LINE
    fault = _take_version(head, address + target_end + 1)
    if fault != 0:
        return fault
    head.method = _method_of(address + start, method_bytes)
    if head.method < 0:
        return faults.METHOD
    return _take_target(head, at, address, target, target_end)


@inlined
def _take_version(head: Any, address: int) -> int:
    word = word8_at(address)
    head.minor_version = 1 if word == _HTTP_1_1 else 0
    if word in (_HTTP_1_1, _HTTP_1_0):
        return 0
    for offset in range(len(_ANY_VERSION)):
        byte, expected = load_byte(address + offset), _ANY_VERSION[offset]
        if byte != expected and not (expected == _DIGIT and 48 <= byte <= 57):
            return faults.REQUEST_LINE
    return faults.VERSION


@inlined
def _method_of(address: int, length: int) -> int:
    """Index in METHODS, or -1. Methods have a case (RFC 9110, 9.1). A space is readable behind it."""
    words = plain_words(address, length + 1)
    for index in range(len(_METHOD_WORDS)):
        if words == _METHOD_WORDS[index]:
            return index
    return -1


@compiled
def _take_target(head: Any, at: int, address: int, start: int, end: int) -> int:
    form = form_of_target(address, start, end)
    if form == 0 or (form == ASTERISK_FORM and head.method != OPTIONS):
        return faults.TARGET
    path = start
    if form == ABSOLUTE_FORM:
        authority = authority_start(address, start, end)
        path = authority_end(address, authority, end)
        if not is_authority(address, authority, path):
            return faults.TARGET
        _note_span(head, at, AUTHORITY, authority, path)
    _note_span(head, at, TARGET, start, end)
    _note_span(head, at, PATH, path, end)
    return 0


# ---- fields


@compiled
def _take_field(head: Any, at: int, address: int, start: int, end: int) -> int:
    """One field line (RFC 9112, 5), of which it is known that it holds no control character but tabs."""
    colon = start
    while colon < end and is_token_byte(load_byte(address + colon)):
        colon += 1
    if colon == start or colon >= end or load_byte(address + colon) != COLON:
        return faults.FOLDED if is_blank(load_byte(address + start)) else faults.FIELD_NAME
    span = _span_of(address + start, colon - start)
    if span < 0:
        return 0
    start = skip_blanks(address, colon + 1, end)
    end = trim_blanks(address, start, end)
    bit = 1 << span
    if head.present & bit == 0:
        _note_span(head, at, span, start, end)
    elif bit & _SINGLE:
        return faults.REPEATED
    else:
        head.repeated |= bit
    return _take_value(head, address, start, end, span)


@inlined
def _span_of(address: int, length: int) -> int:
    """The span in which a field of this name is noted, or -1."""
    words = folded_words(address, length)
    for index in range(len(FIELD_SPANS)):
        if words == FIELD_SPANS[index][1]:
            return FIELD_SPANS[index][0]
    return -1


@inlined
def _take_value(head: Any, address: int, start: int, end: int, span: int) -> int:
    """What a field's value says, where the plane must know it."""
    if span == CONTENT_LENGTH:
        return _take_length(head, address, start, end)
    if span == TRANSFER_ENCODING:
        return _take_codings(head, address, start, end)
    if span == HOST:
        return 0 if is_authority(address, start, end) else faults.HOST
    if span == CONNECTION:
        head.says |= _SAYS_CLOSE if list_has(address, start, end, _CLOSE) else 0
        head.says |= _SAYS_KEEP_ALIVE if list_has(address, start, end, _KEEP_ALIVE) else 0
        head.says |= _SAYS_UPGRADE if list_has(address, start, end, _UPGRADE) else 0
    elif span == UPGRADE:
        head.says |= _SAYS_WEBSOCKET if list_has(address, start, end, _WEBSOCKET) else 0
    elif span == EXPECT:
        if folded_words(address + start, end - start) != _CONTINUE:
            return faults.EXPECTATION
        head.says |= _SAYS_CONTINUE
    return 0


@inlined
def _take_length(head: Any, address: int, start: int, end: int) -> int:
    """Content-Length: digits, once. RFC 9112, 6.3, allows a list of equal numbers, too, which readers differ on."""
    value = decimal_value(address + start, end - start)
    if value < 0 or end - start > _LENGTH_DIGITS_MAX:
        return faults.CONTENT_LENGTH
    if head.present & _FRAMING == _FRAMING:
        return faults.LENGTH_AND_CODING
    head.content_length = value
    head.body_state = COUNTED
    return 0


@inlined
def _take_codings(head: Any, address: int, start: int, end: int) -> int:
    """Transfer-Encoding: chunked alone. 501 where it is the last of several codings (RFC 9112, 6.1 and 6.3)."""
    if head.minor_version == 0:
        return faults.CODING_IN_HTTP_1_0
    if head.present & _FRAMING == _FRAMING:
        return faults.LENGTH_AND_CODING
    last = end - _CHUNKED_BYTES
    if last < start or folded_words(address + last, _CHUNKED_BYTES) != _CHUNKED:
        return faults.NOT_CHUNKED
    if last > start:
        return faults.NOT_CHUNKED if is_token_byte(load_byte(address + last - 1)) else faults.CODING
    head.body_state = CHUNK_SIZE
    return 0


# ---- the end


@inlined
def _conclude(head: Any, at: int) -> int:
    """What the lines mean together."""
    present, says, is_1_1 = int(head.present), int(head.says), head.minor_version == 1
    if is_1_1 and not present & (1 << HOST):
        return faults.HOST_MISSING
    if present & (1 << AUTHORITY):
        authority = _span_at(at + _SPANS_OFFSET + AUTHORITY * 8)
        _note_span(head, at, HOST, int(authority.offset), int(authority.offset) + int(authority.length))
    if not says & _SAYS_CLOSE and (is_1_1 or says & _SAYS_KEEP_ALIVE):
        head.keeps_alive = 1
    # Neither is part of HTTP/1.0, where they do not count (RFC 9110, 7.8 and 10.1.1).
    has_body = head.body_state == CHUNK_SIZE or head.content_length > 0
    if is_1_1 and says & _SAYS_CONTINUE and has_body:
        head.expects_continue = 1
    if is_1_1 and head.method == GET and says & _SAYS_UPGRADE and says & _SAYS_WEBSOCKET and not has_body:
        head.wants_websocket = 1
    return 0


# ---- for Python


def span_of(at: int, span: int) -> slice | None:
    """Where in the head's bytes a span lies; None where it is absent."""
    if not int(request_head_of(at).present) & (1 << span):
        return None
    place = _span_at(at + _SPANS_OFFSET + span * 8)
    return slice(int(place.offset), int(place.offset) + int(place.length))


def field_lines(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and values of all fields of a head that was complete, in their order."""
    for line in head.strip(b"\r\n").split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        yield name, value.strip(b" \t")
