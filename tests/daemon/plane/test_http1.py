"""Heads of answers against a reader made of regular expressions: whole, at every length, and in guarded memory."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from config.compilation import INTERPRETED
from daemon.plane.http1 import (
    HEAD,
    HEAD_HTTP2,
    HEAD_INCOMPLETE,
    HEAD_MALFORMED,
    HEAD_TOO_LARGE,
    head_of,
    parse_head,
)
from tests.daemon.plane.guarded import Fields, Guarded
from tests.daemon.plane.parser_reference import head_reference

pytestmark = pytest.mark.plane

MEMORY = Guarded(1 << 16)
PARSED = Fields(HEAD, head_of)
BYTES_MAX = 65536
EXAMPLES = 60 if INTERPRETED else 300
FLAGS = ("is_chunked", "closes", "is_event_stream", "is_compressed")


def parse(wire: bytes, bytes_max: int = BYTES_MAX) -> int:
    """Parse twice, with nothing readable behind the bytes and then before them; it says the same."""
    PARSED.spoil()
    result = int(parse_head(PARSED.record, MEMORY.at_end(wire), len(wire), bytes_max))
    first = PARSED.array.tobytes()
    PARSED.spoil()
    assert parse_head(PARSED.record, MEMORY.at_start(wire), len(wire), bytes_max) == result
    assert PARSED.array.tobytes() == first
    return result


def check(wire: bytes, bytes_max: int = BYTES_MAX) -> int:
    """Parse and compare everything with the reference; what `parse_head` said."""
    expected = head_reference(wire, bytes_max)
    result = parse(wire, bytes_max)
    assert result == expected.size, wire
    if result > 0:
        for name in ("status", "minor_version", "content_length", *FLAGS):
            assert PARSED[name] == int(getattr(expected, name)), (name, wire)
        assert PARSED.span(wire, "content_type") == expected.content_type
        assert PARSED.span(wire, "retry_after") == expected.retry_after
    return result


def flags(fields: bytes, status: bytes = b"HTTP/1.1 200 OK") -> list[str]:
    """Which flags a head with these fields has."""
    assert check(status + b"\r\n" + fields + b"\r\n\r\n") > 0
    return [name for name in FLAGS if PARSED[name]]


# ---- any heads

STATUS_LINES = [b"HTTP/1.1 200 OK", b"HTTP/1.0 503 Service Unavailable", b"HTTP/1.1 200", b"HTTP/1.1 429 \xe9\t!"]
ODD_STATUS_LINES = [
    b"HTTP/1.1  200 OK",
    b"HTTP/1.1 99 OK",
    b"HTTP/1.1 600 OK",
    b"HTTP/1.1 2000",
    b"HTTP/2 200",
    b"HTTP/1.x 200",
    b"HTTP/1.1 200 \x01",
    b"HTTP/1.1\t200 OK",
    b"HTTP/1.1 20x OK",
    b" HTTP/1.1 200 OK",
    b"HTTP/1.1",
    b"",
]
FIELD_NAMES = [
    b"Content-Length",
    b"content-length",
    b"Transfer-Encoding",
    b"CONNECTION",
    b"Content-Type",
    b"Content-Encoding",
    b"Retry-After",
    b"X-Request-Id",
    b"content_length",
    b"transfer+encoding",
    b"Transfer-Encodings",
    b"Date",
]
ODD_NAMES = [b"Content-Length ", b" Content-Length", b"", b"a b", b"a\x01", b"\xe9", b"a/b", b"(a)"]
VALUES = [
    b"5",
    b"05",
    b"5, 5",
    b"5,6",
    b"6",
    b"",
    b"-1",
    b"+5",
    b"5 5",
    b"0x5",
    b"5,",
    b"9223372036854775807",
    b"5\t",
    b"9223372036854775808",
    b"1" * 30,
    b"chunked",
    b"Chunked",
    b"gzip, chunked",
    b"chunked, gzip",
    b"chunked,chunked",
    b"identity",
    b"gzip",
    b"close",
    b"keep-alive",
    b"Keep-Alive, Close",
    b", ,close",
    b"closed",
    b"upgrade",
    b"text/event-stream",
    b"TEXT/EVENT-STREAM ; charset=utf-8",
    b"text/event-streams",
    b"text/html",
    b"xtext/event-stream",
    b"a\x00b",
    b"a\rb",
    b"\x7f",
    b"\xff",
    b"a\tb",
    b" x ",
    b"Wed, 21 Oct 2026 07:28:00 GMT",
    b"text/event-strea",
]


@some.composite
def heads(draw: some.DrawFn) -> bytes:
    """Heads of which many are valid."""
    line_end = draw(some.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    names = some.sampled_from(FIELD_NAMES * 4 + ODD_NAMES)
    field = some.tuples(names, some.sampled_from([b": ", b":", b" :", b":\t "]), some.sampled_from(VALUES)).map(
        b"".join
    )
    fields = draw(some.lists(field, max_size=4))
    status = draw(some.sampled_from(STATUS_LINES * 4 + ODD_STATUS_LINES))
    return line_end.join([status, *fields, b"", draw(some.binary(max_size=5))])


@settings(deadline=None, max_examples=EXAMPLES * 2)
@given(heads())
def test_a_head_says_what_the_reference_reads_in_it(wire: bytes) -> None:
    check(wire)


@settings(deadline=None, max_examples=EXAMPLES // 3)
@given(heads(), some.integers(8, 200))  # what is shorter than `HTTP/1.` is no limit
def test_a_head_says_the_same_however_it_is_cut(wire: bytes, bytes_max: int) -> None:
    whole = check(wire, bytes_max)
    for length in range(len(wire) + 1):
        result = check(wire[:length], bytes_max)
        if result != HEAD_INCOMPLETE:
            assert result == whole
            break


TOKENS = some.text("abcXYZ-_!", min_size=1, max_size=20)
TEXTS = some.text(some.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@settings(deadline=None, max_examples=EXAMPLES)
@given(some.lists(some.tuples(TOKENS, TEXTS), max_size=8), some.integers(100, 599), some.integers(0, 10**15))
def test_valid_heads_mean_what_http_client_says(fields: list[tuple[str, str]], status: int, length: int) -> None:
    lines = [f"HTTP/1.1 {status} Some Reason", *(f"X{name}: {value}" for name, value in fields)]
    lines += [f"Content-Length: {length}", "Content-Type: text/event-stream;charset=utf-8", "Retry-After: 120", "", ""]
    wire = "\r\n".join(lines).encode()
    assert check(wire + b"data") == len(wire)
    message = http.client.parse_headers(io.BytesIO(wire.split(b"\r\n", 1)[1]))
    assert PARSED["status"] == status
    assert PARSED["content_length"] == int(message["Content-Length"])
    assert PARSED.span(wire, "content_type") == message["Content-Type"].encode()
    assert PARSED.span(wire, "retry_after") == message["Retry-After"].encode()


# ---- the rules, one by one


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"A: b", []),
        (b"Transfer-Encoding: chunked", ["is_chunked"]),
        (b"transfer-encoding:CHUNKED", ["is_chunked"]),
        (b"Transfer-Encoding: gzip, chunked", ["is_chunked", "is_compressed"]),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", ["is_chunked", "is_compressed"]),
        (b"Transfer-Encoding: gzip", ["closes", "is_compressed"]),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", ["is_chunked", "closes"]),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", ["is_chunked", "closes"]),
        (b"Connection: close", ["closes"]),
        (b"Connection: keep-alive, CLOSE", ["closes"]),
        (b"Connection: closed", []),
        (b"Content-Encoding: identity", []),
        (b"Content-Encoding: br", ["is_compressed"]),
        (b"Content-Type: text/event-stream", ["is_event_stream"]),
        (b"Content-Type: Text/Event-Stream ;charset=utf-8", ["is_event_stream"]),
        (b"Content-Type: text/event-stream+json", []),
        (b"Content-Type: application/json", []),
    ],
)
def test_fields_say_how_the_body_comes(fields: bytes, expected: list[str]) -> None:
    assert flags(fields) == expected
    assert PARSED["content_length"] == -1


@pytest.mark.parametrize(
    "field",
    [
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
        b"Content-Encoding: identity",
        b"Content-Type: text/event-stream",
        b"Retry-After: 1",
    ],
)
def test_a_name_is_told_from_every_other_that_differs_in_one_bit(field: bytes) -> None:
    for at in range(len(field)):
        for bit in range(8):
            other = bytearray(field)
            other[at] ^= 1 << bit
            check(b"HTTP/1.1 200 OK\r\n" + bytes(other) + b"\r\n\r\n")


def test_a_connection_of_http_1_0_closes_unless_it_says_otherwise() -> None:
    old = b"HTTP/1.0 200 OK"
    assert flags(b"A: b", old) == ["closes"]
    assert flags(b"Connection: Keep-Alive", old) == []
    assert flags(b"Connection: Keep-Alive\r\nTransfer-Encoding: chunked", old) == ["is_chunked", "closes"]


@pytest.mark.parametrize("lengths", [b"0", b"7", b"007", b"7\r\nContent-Length: 7", b"7 , 7", b"9223372036854775807"])
def test_a_length_may_be_repeated(lengths: bytes) -> None:
    assert flags(b"Content-Length: " + lengths) == []
    assert PARSED["content_length"] == int(lengths.split()[0])


MALFORMED = [
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5, 6",
    b"Content-Length:",
    b"Content-Length: -1",
]
MALFORMED_VALUES = [
    b"Content-Length: 9223372036854775808",
    b"Content-Length: " + b"9" * 40,
    b"Content-Length: 5a",
    b"A: \0",
]
MALFORMED_LINES = [
    b"A : b",
    b" A: b",
    b"A: b\r\n c",
    b"A: b\r\n\tc",
    b": b",
    b"A",
    b"A b: c",
    b"A: b\rc",
    b"A: \x7f",
    b"A\xe9: b",
]
MALFORMED_CODINGS = [b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: chunked, gzip"]


@pytest.mark.parametrize("fields", MALFORMED + MALFORMED_VALUES + MALFORMED_LINES + MALFORMED_CODINGS)
def test_what_could_be_understood_in_two_ways_is_malformed(fields: bytes) -> None:
    assert check(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\n") == HEAD_MALFORMED
    assert check(b"HTTP/1.1 200 OK\n" + fields + b"\n") == HEAD_MALFORMED


@pytest.mark.parametrize("line", ODD_STATUS_LINES)
def test_odd_status_lines_are_malformed(line: bytes) -> None:
    assert check(line + b"\r\n\r\n") == HEAD_MALFORMED


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"", HEAD_INCOMPLETE),
        (b"H", HEAD_INCOMPLETE),
        (b"HTTP/1.", HEAD_INCOMPLETE),
        (b"HTTP/1.1 200 OK\r\n", HEAD_INCOMPLETE),
        (b"HTTP/1.1 200 OK\r\n\r", HEAD_INCOMPLETE),
        (b"h", HEAD_MALFORMED),
        (b"HTTP/2", HEAD_MALFORMED),
        (b"\r\nHTTP/1.1", HEAD_MALFORMED),
        (b"<html>", HEAD_MALFORMED),
        (b"\x15\x03\x01", HEAD_MALFORMED),  # a TLS alert
        (b"\x00", HEAD_INCOMPLETE),
        (b"\x00\x00\x12", HEAD_INCOMPLETE),
        (b"\x00\x00\x12\x04", HEAD_HTTP2),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", HEAD_HTTP2),
        (b"\x00\x00\x08\x07\x00\x00\x00\x00\x00", HEAD_HTTP2),
        (b"\x00\x00\x08\x01", HEAD_MALFORMED),
        (b"\x00\x41", HEAD_MALFORMED),
        (b"HTT\x04", HEAD_MALFORMED),
    ],
)
def test_what_comes_first_is_judged_at_once(wire: bytes, expected: int) -> None:
    assert check(wire) == expected


def test_a_head_has_a_limit() -> None:
    wire = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
    size = len(wire)
    assert check(wire + b"data", size) == size
    assert check(wire, size - 1) == HEAD_TOO_LARGE
    assert check(wire[:-1], size) == HEAD_INCOMPLETE
    assert check(wire[:-1], size - 1) == HEAD_TOO_LARGE
    assert check(b"HTTP/1.1 200 " + b"x" * 100, 100) == HEAD_TOO_LARGE


def test_the_next_head_follows_an_interim_one() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert check(interim + b"HTTP/1.1 200 OK\r\n\r\n") == len(interim)
    assert PARSED["status"] == 103
