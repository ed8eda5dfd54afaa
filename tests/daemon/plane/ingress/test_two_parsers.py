"""Requests against llhttp and h11 on the same bytes: whatever the plane accepts, both accept, and see the same in it.

What is different is listed, with its reason. Seeds are fixed; a failure names the bytes.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from config.compilation import INTERPRETED
from daemon.plane.ingress import faults
from tests.daemon.plane.guarded import cut, mutate
from tests.daemon.plane.ingress.corpus import ATTACKS, VALID
from tests.daemon.plane.ingress.readers import BODY_FAULT, Reading, read_h11, read_llhttp, read_plane

pytestmark = pytest.mark.plane

EXAMPLES = 60 if INTERPRETED else 500
ROUNDS = 15 if INTERPRETED else 150

# What the plane accepts and one of the two refuses, by how that one begins to say so.
_DROPPED = "trailers are dropped, whatever they say (RFC 9112, 7.1.2)"
LOOSER = {
    "h11: no request line received": "an empty line before a request, which RFC 9112, 2.2, asks servers to skip",
    "llhttp: the protocol changes before the body": "a server that does not change it reads the body (RFC 9110, 7.8)",
    "llhttp, in a body: Invalid character in chunk size": "blanks before an extension or the line's end (7.1.1)",
    "h11, in a body: illegal chunk header": "blanks before an extension (7.1.1)",
    "llhttp, in a body: Invalid character in chunk ext": "extensions are skipped up to CR LF, whatever they say",
    "llhttp, in a body: Content-Length can't be present with Transfer-Encoding": _DROPPED,
    "llhttp, in a body: Invalid `Transfer-Encoding` header value": _DROPPED,
    "llhttp, in a body: Duplicate Content-Length": _DROPPED,
    "llhttp, in a body: Empty Content-Length": _DROPPED,
    "llhttp, in a body: Invalid character in Content-Length": _DROPPED,
    "h11, in a body: bad Content-Length": _DROPPED,
    "h11, in a body: conflicting Content-Length": _DROPPED,
    "h11, in a body: Only Transfer-Encoding": _DROPPED,
    "h11, in a body: multiple Transfer-Encoding": _DROPPED,
}
# What both accept and the plane refuses.
STRICTER = {
    faults.TARGET: "`#` in a target, schemes but http and https, `*` where the method is not OPTIONS, users in a URL",
    faults.HOST: "what is not a host and a port: names of hosts are compared with those that are allowed",
    faults.REPEATED: "fields that decide something have one value",
    faults.METHOD: "llhttp's other methods, of which no handler knows",
    faults.VERSION: "HTTP/2.0 and HTTP/0.9, which are not this protocol",
    faults.EXPECTATION: "RFC 9110, 10.1.1, asks for 417",
    faults.CODING_IN_HTTP_1_0: "an HTTP/1.0 proxy may have framed what follows otherwise (RFC 9112, 6.1)",
    faults.CONTENT_LENGTH: "more than 19 digits, or more than a signed number of 64 bits holds",
    BODY_FAULT: "chunk sizes of more than 15 digits, and lines of more than 4,096 bytes",
}


def is_looser(fault: str | None) -> bool:
    return fault is not None and fault.startswith(tuple(LOOSER))


def compare(wire: bytes) -> Reading:
    """Hold the plane's reading against the two others; it."""
    plane = read_plane([wire])
    for theirs in (read_llhttp(wire), read_h11(wire)):
        count = len(plane.requests)
        if len(theirs.requests) < count:
            assert is_looser(theirs.fault), (theirs, plane, wire)
            count = len(theirs.requests)
        for ours, other in zip(plane.requests[:count], theirs.requests, strict=False):
            if other.keeps_alive is None:  # h11 reads requests one by one here
                other.keeps_alive = ours.keeps_alive
            assert ours == other, wire
        goes_on = not plane.requests or plane.requests[-1].keeps_alive
        if len(theirs.requests) > len(plane.requests) and goes_on:
            assert plane.fault is not None, (theirs, plane, wire)
    both = min(len(read_llhttp(wire).requests), len(read_h11(wire).requests))
    if both > len(plane.requests) and plane.fault is not None:
        assert plane.fault in STRICTER, (faults.TEXTS.get(plane.fault), wire)
    return plane


@pytest.mark.parametrize("name", VALID)
def test_requests_of_real_clients_are_read_by_all_three(name: str) -> None:
    wire = VALID[name]
    plane = compare(wire)
    expected = 5 if name == "pipelined" else 1
    assert (len(plane.requests), plane.fault) == (expected, None)
    assert len(read_llhttp(wire).requests) == expected
    assert len(read_h11(wire).requests) >= expected


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_seen_alike_or_refused(name: str) -> None:
    compare(ATTACKS[name])


@pytest.mark.parametrize("name", [*VALID, *ATTACKS])
def test_what_is_read_does_not_depend_on_how_it_came(name: str) -> None:
    wire = {**VALID, **ATTACKS}[name]
    whole = read_plane([wire])
    step = len(wire) // 20 + 1 if INTERPRETED or len(wire) > 3000 else 1
    assert read_plane([wire[at : at + 1] for at in range(len(wire))]) == whole
    for at in range(0, len(wire), step):
        assert read_plane([wire[:at], wire[at:]]) == whole, at


@pytest.mark.parametrize("name", [*VALID, *ATTACKS])
def test_faulty_requests_are_seen_alike_or_refused(name: str) -> None:
    chance = random.Random(f"request {name}")
    wire = {**VALID, **ATTACKS}[name]
    if len(wire) > 3000:
        return
    for _ in range(ROUNDS):
        faulty = mutate(chance, wire, b"\r\n:;, \t\0019-clHTPE/.*#\x7f\x80")
        whole = compare(faulty)
        sizes = [chance.choice([0, 1, 2, 7, 40]) for _ in range(40)]
        assert read_plane(cut(faulty, sizes)) == whole, faulty


# ---- any requests

METHODS = [b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"QUERY"]
ODD_METHODS = [b"CONNECT", b"get", b"PRI", b"M-SEARCH", b"G@T", b"", b"LOCK", b"SOURCE", b"\xe9"]
TARGETS = [
    b"/",
    b"/a?b=c&d",
    b"*",
    b"http://a/b",
    b"HTTPS://a.b:1?c",
    b"/%zz",
    b"//a/b",
    b'/a|b{}"<>^`\\',
    b"/?" + b"x" * 60,
]
ODD_TARGETS = [
    b"",
    b"a",
    b"/a#b",
    b"/\x80",
    b"/\x7f",
    b"ftp://a/",
    b"http://",
    b"http:///",
    b"http://u@a/",
    b"http://a:b/",
    b"a:1",
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]
ODD_VERSIONS = [
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"HTTP/1.",
    b"HTTP/11",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"ICE/1.0",
    b"HTTP/x.1",
]
NAMES = [
    b"Content-Length",
    b"Transfer-Encoding",
    b"CONNECTION",
    b"Expect",
    b"Upgrade",
    b"Authorization",
    b"Content-Type",
    b"X-Forwarded-For",
    b"host",
    b"Accept",
    b"origin",
    b"content_length",
    b"X",
    b"Transfer-Encodings",
    b"X-Much-Longer-Name",
]
ODD_NAMES = [b"Content-Length ", b" Content-Length", b"", b"a b", b"a\x01", b"\xe9", b"a/b", b"(a)"]
VALUES = [
    b"5",
    b"0",
    b"5",
    b"chunked",
    b"Chunked",
    b"close",
    b"keep-alive",
    b"Keep-Alive, Upgrade",
    b"upgrade",
    b"websocket",
    b"100-continue",
    b"a",
    b"a:80",
    b"[::1]:80",
    b"",
    b"a\tb",
    b"\xff",
    b" x ",
    b"application/json",
    b"h2c, websocket",
]
ODD_VALUES = [
    b"5, 5",
    b"+5",
    b"05",
    b"gzip, chunked",
    b"100-Continue, x",
    b"a, b",
    b"a\x00b",
    b"a\rb",
    b"\x7f",
    b"1" * 30,
    b"close;",
]
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a\r\nhello\r\n0\r\nA: b\r\n\r\n",
    b"hello\r\n",
    b"0\r\n\r\n",
    b"5\nhello\n0\n\n",
]


def _mostly(usual: list[bytes], odd: list[bytes]) -> some.SearchStrategy[bytes]:
    return some.sampled_from(usual * 5 + odd)


@some.composite
def requests(draw: some.DrawFn) -> bytes:
    """Requests of which many are valid."""
    line_end = draw(some.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n"]))
    line = b" ".join(
        (
            draw(_mostly(METHODS, ODD_METHODS)),
            draw(_mostly(TARGETS, ODD_TARGETS)),
            draw(_mostly(VERSIONS, ODD_VERSIONS)),
        )
    )
    separators = some.sampled_from([b": ", b":", b":\t ", b": ", b" :"])
    field = some.tuples(_mostly(NAMES, ODD_NAMES), separators, _mostly(VALUES, ODD_VALUES)).map(b"".join)
    fields = [b"Host: a", *draw(some.lists(field, max_size=3))]
    head = b"\r\n".join([line, *fields[:-1], fields[-1] + line_end, b""])
    return head + draw(some.sampled_from(BODIES))


@settings(deadline=None, max_examples=EXAMPLES)
@given(some.lists(requests(), min_size=1, max_size=3), some.lists(some.integers(0, 30), max_size=30))
def test_any_requests_are_seen_alike_or_refused(wires: list[bytes], sizes: list[int]) -> None:
    wire = b"".join(wires)
    assert read_plane(cut(wire, sizes)) == compare(wire)


@settings(deadline=None, max_examples=EXAMPLES)
@given(some.binary(max_size=200), some.lists(some.integers(0, 30), max_size=30))
def test_any_bytes_are_read_without_harm(wire: bytes, sizes: list[int]) -> None:
    assert read_plane(cut(wire, sizes)) == compare(wire)
