"""The rules for heads of requests, one by one."""

from __future__ import annotations

import pytest

from daemon.plane.body import CHUNK_SIZE, COUNTED, NONE
from daemon.plane.ingress import faults
from daemon.plane.ingress import request_head as r
from tests.daemon.plane.ingress.corpus import BROWSER, OPENAI, WEBSOCKET, lines
from tests.daemon.plane.ingress.readers import AT, HEAD, MEMORY, NAMES, request_of

pytestmark = pytest.mark.plane

BYTES_MAX = 65_536
GET, POST, HOST = b"GET / HTTP/1.1", b"POST / HTTP/1.1", b"Host: a"
CHUNKED = b"Transfer-Encoding: chunked"


def read(wire: bytes, bytes_max: int = BYTES_MAX) -> int:
    """Read a new head, of which this is all that has come, in a record that has served before."""
    HEAD.spoil()
    HEAD["resume"] = 0
    return int(r.read_request_head(AT, MEMORY.at_end(wire), len(wire), bytes_max))


def read_cut(wire: bytes, bytes_max: int = BYTES_MAX) -> int:
    """Read a head that comes byte by byte."""
    HEAD.spoil()
    HEAD["resume"] = 0
    for size in range(len(wire) + 1):
        result = int(r.read_request_head(AT, MEMORY.at_end(wire[:size]), size, bytes_max))
        if result != r.HEAD_INCOMPLETE:
            return result
    return r.HEAD_INCOMPLETE


def check(wire: bytes, bytes_max: int = BYTES_MAX) -> int:
    """Read a head whole and cut; both say the same."""
    cut = read_cut(wire, bytes_max)
    after_cut = HEAD.array.tobytes()
    result = read(wire, bytes_max)
    assert result == cut
    if result > 0:
        assert HEAD.array.tobytes() == after_cut
    return result


def accept(*parts: bytes) -> None:
    """Read a head of these lines, which is complete."""
    wire = lines(*parts)
    assert check(wire) == len(wire), faults.TEXTS.get(check(wire))
    request_of(wire)


def says(name: str, *fields: bytes, line: bytes = GET) -> int:
    """A field of the record that is made of a head with these fields."""
    accept(line, HOST, *fields)
    return HEAD[name]


REFUSED = [
    (faults.REQUEST_LINE, lines(b"GET /", HOST)),
    (faults.TARGET, lines(b"GET  / HTTP/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b"GET HTTP/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b"GET / HTTP/1.1 ", HOST)),
    (faults.REQUEST_LINE, lines(b"GET /abHTTP/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b"GET / HTTP/11", HOST)),
    (faults.REQUEST_LINE, lines(b"GET / HTTP/1.x", HOST)),
    (faults.REQUEST_LINE, lines(b"GET / http/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b"G@T / HTTP/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b"GET\t/ HTTP/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b" GET / HTTP/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b"/ HTTP/1.1", HOST)),
    (faults.REQUEST_LINE, lines(b"x", HOST)),
    (faults.REQUEST_LINE, b"\r\n\r\n" + lines(GET, HOST)),
    (faults.TARGET, lines(b"GET /a b HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET /a#b HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET /\x80 HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET /\ta HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET a HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET * HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"OPTIONS ** HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET ftp://a/ HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET http:// HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET http:///a HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET http://a@b/ HTTP/1.1", HOST)),
    (faults.TARGET, lines(b"GET https:/a HTTP/1.1", HOST)),
    (faults.METHOD, lines(b"CONNECT a:1 HTTP/1.1", HOST)),
    (faults.METHOD, lines(b"get / HTTP/1.1", HOST)),
    (faults.METHOD, lines(b"GETT / HTTP/1.1", HOST)),
    (faults.METHOD, lines(b"G / HTTP/1.1", HOST)),
    (faults.METHOD, lines(b"VERY-LONG-METHOD-NAME / HTTP/1.1", HOST)),
    (faults.VERSION, lines(b"GET / HTTP/1.2", HOST)),
    (faults.VERSION, lines(b"GET / HTTP/0.9", HOST)),
    (faults.VERSION, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    (faults.LINE_END, b"GET / HTTP/1.1\n"),
    (faults.LINE_END, lines(GET, b"A: b\nHost: a")),
    (faults.LINE_END, lines(GET, b"A: b\rc")),
    (faults.LINE_END, lines(GET, HOST + b"\r")),
    (faults.LINE_END, lines(GET, HOST)[:-2] + b"\n"),
    (faults.LINE_END, b"\n" + lines(GET, HOST)),
    (faults.LINE_END, b"\r\r"),
    (faults.CONTROL, b"\x16\x03\x01"),
    (faults.CONTROL, lines(GET, b"A: \0")),
    (faults.CONTROL, lines(GET, b"A: \x7f")),
    (faults.CONTROL, lines(GET, b"A\x01: b")),
    (faults.CONTROL, lines(b"GET /\0 HTTP/1.1")),
    (faults.FIELD_NAME, lines(GET, b"A : b")),
    (faults.FIELD_NAME, lines(GET, b"A")),
    (faults.FIELD_NAME, lines(GET, b": b")),
    (faults.FIELD_NAME, lines(GET, b"\xe4: b")),
    (faults.FIELD_NAME, lines(GET, b"a b: c")),
    (faults.FOLDED, lines(GET, HOST, b" b")),
    (faults.FOLDED, lines(GET, HOST, b"\tContent-Length: 5")),
    (faults.FOLDED, lines(GET, b" A: b")),
    (faults.FOLDED, lines(GET, HOST, b" ")),
    (faults.HOST_MISSING, lines(GET)),
    (faults.HOST_MISSING, lines(GET, b"Hosts: a", b"Hos: a")),
    (faults.HOST_MISSING, lines(b"GET http://a/ HTTP/1.1")),
    (faults.CONTENT_LENGTH, lines(POST, b"Content-Length:")),
    (faults.CONTENT_LENGTH, lines(POST, b"Content-Length: 5, 5")),
    (faults.CONTENT_LENGTH, lines(POST, b"Content-Length: +5")),
    (faults.CONTENT_LENGTH, lines(POST, b"Content-Length: 9223372036854775808")),
    (faults.CONTENT_LENGTH, lines(POST, b"Content-Length: 00000000000000000005")),
    (faults.LENGTH_AND_CODING, lines(POST, b"Content-Length: 0", CHUNKED)),
    (faults.LENGTH_AND_CODING, lines(POST, CHUNKED, b"Content-Length: 5")),
    (faults.CODING_IN_HTTP_1_0, lines(b"POST / HTTP/1.0", CHUNKED)),
    (faults.NOT_CHUNKED, lines(POST, b"Transfer-Encoding: chunked, gzip")),
    (faults.NOT_CHUNKED, lines(POST, b"Transfer-Encoding: identity")),
    (faults.NOT_CHUNKED, lines(POST, b"Transfer-Encoding: xchunked")),
    (faults.NOT_CHUNKED, lines(POST, b"Transfer-Encoding:")),
    (faults.NOT_CHUNKED, lines(POST, b"Transfer-Encoding: chunked,")),
    (faults.CODING, lines(POST, b"Transfer-Encoding: gzip, chunked")),
    (faults.CODING, lines(POST, b"Transfer-Encoding: chunked,chunked")),
    (faults.EXPECTATION, lines(POST, b"Expect: 200-ok")),
    (faults.EXPECTATION, lines(b"POST / HTTP/1.0", b"Expect: 100-continue, x")),
    (faults.REQUEST_LINE_BYTES, b"GET /" + b"a" * 9000),
    (faults.FIELD_LINE_BYTES, GET + b"\r\nA: " + b"a" * 9000),
    (faults.FIELD_COUNT, lines(GET, *[b"A: b"] * 129)),
    (faults.HEAD_BYTES, lines(GET, *[b"A: " + b"b" * 8000] * 9)),
]
SINGLE = [b"Host", b"Authorization", b"Content-Type", b"Content-Length", b"Transfer-Encoding", b"Origin"]
SINGLE_VALUES = {b"Content-Length": b"5", b"Transfer-Encoding": b"chunked"}
REPEATED = [
    (faults.REPEATED, lines(POST, name + value, b"A: b", name.lower() + value))
    for name, value in [(name, b": " + SINGLE_VALUES.get(name, b"a")) for name in [*SINGLE, b"Sec-WebSocket-Key"]]
]
HOSTS = [
    b"a",
    b"localhost:8080",
    b"127.0.0.1",
    b"a.B-c_d~.",
    b"[::1]",
    b"[::ffff:1.2.3.4]:65535",
    b"%2Frun%2Fa.sock",
    b"a:",
]
BAD_HOSTS = [
    b"",
    b":80",
    b"a b",
    b"a,b",
    b"a/b",
    b"a@b",
    b"a:b",
    b"a:123456",
    b"[",
    b"[]",
    b"[:",
    b"[::1",
    b"[::1]a",
    b"[::g]",
    b"\xe4",
    b"a:80:80",
    b"a\tb",
    b"a?",
    b"http://a",
    b"::1",
    b"[::1]:x",
    b"a!",
    b"'a'",
]


@pytest.mark.parametrize(("fault", "wire"), REFUSED + REPEATED)
def test_a_fault_has_its_number_however_the_head_is_cut(fault: int, wire: bytes) -> None:
    assert check(wire) == fault, wire


def test_every_fault_has_a_text_a_status_and_a_test() -> None:
    numbers = {value for name, value in vars(faults).items() if name.isupper() and isinstance(value, int)}
    assert numbers == set(faults.TEXTS)
    assert numbers == {fault for fault, _ in REFUSED} | {faults.REPEATED, faults.HOST}
    assert len(set(faults.TEXTS.values())) == len(numbers)
    assert {faults.status_of(fault) for fault in numbers} == {400, 414, 417, 431, 501, 505}


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(host: bytes) -> None:
    accept(GET, b"Host: " + host + b" ")
    accept(b"GET http://" + host + b"?x HTTP/1.1", b"Host: other")


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_malformed_hosts(host: bytes) -> None:
    assert check(lines(GET, b"Host: " + host)) == faults.HOST
    assert check(lines(b"GET / HTTP/1.0", b"Host: " + host)) == faults.HOST


def test_the_target_says_which_host_is_meant() -> None:
    wire = lines(b"POST HTTPS://B.example:443/c?d HTTP/1.1", HOST)
    assert check(wire) == len(wire)
    spans = {span: r.span_of(AT, span) for span in (r.TARGET, r.PATH, r.AUTHORITY, r.HOST)}
    assert [wire[place] for place in spans.values() if place] == [
        b"HTTPS://B.example:443/c?d",
        b"/c?d",
        b"B.example:443",
        b"B.example:443",
    ]
    accept(b"GET http://a?b HTTP/1.1", HOST)
    path = r.span_of(AT, r.PATH)
    assert path is not None
    assert lines(b"GET http://a?b HTTP/1.1")[path] == b"?b"
    accept(b"OPTIONS * HTTP/1.1", HOST)
    assert r.span_of(AT, r.AUTHORITY) is None


@pytest.mark.parametrize("method", r.METHODS)
def test_methods(method: bytes) -> None:
    accept(method + b" / HTTP/1.1", HOST)
    assert r.METHODS[HEAD["method"]] == method


def test_how_the_body_comes() -> None:
    names = ("body_state", "content_length")
    assert [says(name) for name in names] == [NONE, 0]
    assert [says(name, b"Content-Length: 0") for name in names] == [COUNTED, 0]
    assert [says(name, b"content-length:\t0012 ") for name in names] == [COUNTED, 12]
    assert [says(name, b"Content-Length: 9223372036854775807") for name in names] == [COUNTED, 2**63 - 1]
    assert [says(name, b"TRANSFER-ENCODING:Chunked") for name in names] == [CHUNK_SIZE, 0]


@pytest.mark.parametrize(
    ("fields", "in_1_1", "in_1_0"),
    [
        ([], 1, 0),
        ([b"Connection: close"], 0, 0),
        ([b"Connection: keep-alive"], 1, 1),
        ([b"connection: x ,\tKEEP-ALIVE\t, y"], 1, 1),
        ([b"Connection: keep-alive, Close"], 0, 0),
        ([b"Connection: keep-alive", b"Connection: close"], 0, 0),
        ([b"Connection: close", b"Connection: keep-alive"], 0, 0),
        ([b"Connection: closed"], 1, 0),
        ([b"Connection: keep-alives"], 1, 0),
        ([b"Connection: ,,close,"], 0, 0),
        ([b"Connection:"], 1, 0),
        ([b"Proxy-Connection: close"], 1, 0),
    ],
)
def test_which_connections_go_on(fields: list[bytes], in_1_1: int, in_1_0: int) -> None:
    assert says("keeps_alive", *fields) == in_1_1
    assert says("keeps_alive", *fields, line=b"GET / HTTP/1.0") == in_1_0


def test_who_waits_for_100() -> None:
    expect = b"Expect: 100-Continue"
    assert says("expects_continue", expect, b"Content-Length: 5", line=POST) == 1
    assert says("expects_continue", expect, CHUNKED, line=POST) == 1
    assert says("expects_continue", expect, expect, CHUNKED, line=POST) == 1
    assert says("expects_continue", expect, b"Content-Length: 0", line=POST) == 0
    assert says("expects_continue", expect, line=POST) == 0
    assert says("expects_continue", b"Content-Length: 5", line=POST) == 0
    assert says("expects_continue", expect, b"Content-Length: 5", line=b"POST / HTTP/1.0") == 0


def test_who_asks_for_a_websocket() -> None:
    connection, upgrade = b"Connection: keep-alive, Upgrade", b"Upgrade: h2c, WebSocket"
    assert says("wants_websocket", connection, upgrade) == 1
    assert says("wants_websocket", upgrade, b"Connection: upgrade", b"Content-Length: 0") == 1
    assert says("wants_websocket", connection) == 0
    assert says("wants_websocket", upgrade) == 0
    assert says("wants_websocket", connection, b"Upgrade: h2c") == 0
    assert says("wants_websocket", connection, upgrade, line=POST) == 0
    assert says("wants_websocket", connection, upgrade, line=b"GET / HTTP/1.0") == 0
    assert says("wants_websocket", connection, upgrade, b"Content-Length: 5") == 0
    assert says("wants_websocket", connection, upgrade, CHUNKED) == 0


def test_an_empty_line_before_a_request_is_part_of_its_head() -> None:
    accept(b"", GET, HOST)
    wire = lines(b"", GET, HOST)
    host = r.span_of(AT, r.HOST)
    assert host is not None
    assert wire[host] == b"a"


@pytest.mark.parametrize("span", NAMES)
def test_a_name_is_told_from_every_other_that_differs_in_one_bit(span: int) -> None:
    name, value = NAMES[span], {r.CONTENT_LENGTH: b"5", r.EXPECT: b"100-continue"}.get(span, b"chunked")
    accept(b"GET / HTTP/1.1", *([] if span == r.HOST else [HOST]), name.upper() + b": " + value)
    assert HEAD["present"] & (1 << span)
    for at in range(len(name)):
        for bit in range(8):
            other = bytearray(name)
            other[at] ^= 1 << bit
            read(lines(b"GET / HTTP/1.0", bytes(other) + b": " + value))
            assert bool(HEAD["present"] & (1 << span)) == (bytes(other).lower() == name)


@pytest.mark.parametrize("byte", range(256))
def test_where_each_byte_may_stand(byte: int) -> None:
    it = bytes((byte,))
    is_visible, is_letter = 33 <= byte <= 126, it.isalnum()
    may_stand = {
        GET + b"\r\nHost: a\r\nA" + it + b"b: c\r\n\r\n": is_letter or it in b"!#$%&'*+-.^_`|~:",
        GET + b"\r\nHost: a\r\nA: b" + it + b"c\r\n\r\n": is_visible or it in b"\t " or byte >= 128,
        GET + b"\r\nHost: a" + it + b"b\r\n\r\n": is_letter or it in b"%-._~",
        b"GET /a" + it + b"b HTTP/1.1\r\nHost: a\r\n\r\n": is_visible and it != b"#",
        b"GET http://a" + it + b"b/ HTTP/1.1\r\nHost: a\r\n\r\n": is_letter or it in b"%-._~/?",
    }
    assert [read(wire) == len(wire) for wire in may_stand] == list(may_stand.values())


def test_limits() -> None:
    line = b"A: " + b"b" * (r.LINE_BYTES_MAX - 5)
    accept(GET, HOST, line)
    assert check(lines(GET, HOST, line + b"b")) == faults.FIELD_LINE_BYTES
    target = b"GET /" + b"a" * (r.LINE_BYTES_MAX - 16) + b" HTTP/1.1"
    accept(target, HOST)
    assert check(lines(target.replace(b"a", b"aa", 1), HOST)) == faults.REQUEST_LINE_BYTES
    accept(GET, HOST, *[b"A: b"] * 127)
    assert check(lines(GET, HOST, *[b"A: b"] * 128)) == faults.FIELD_COUNT


@pytest.mark.parametrize("wire", [OPENAI[: OPENAI.index(b"{")], BROWSER, WEBSOCKET])
def test_a_head_has_a_limit(wire: bytes) -> None:
    size = len(wire)
    assert check(wire + b"data", size) == size
    assert check(wire, size - 1) == faults.HEAD_BYTES
    assert check(wire[:-1], size) == r.HEAD_INCOMPLETE
    assert check(wire[:-1], size - 1) == faults.HEAD_BYTES
    for bytes_max in range(20, size):
        first = wire.index(b"\n") + 1
        assert read(wire, bytes_max) == (faults.HEAD_BYTES if bytes_max >= first else faults.REQUEST_LINE_BYTES)


def test_fields_are_all_there_for_who_walks_the_head_again() -> None:
    head = lines(b"", GET, b"A:b", b"C-d: \t e f\t ", b"A:", HOST)
    assert list(r.field_lines(head)) == [(b"A", b"b"), (b"C-d", b"e f"), (b"A", b""), (b"Host", b"a")]
    assert list(r.field_lines(lines(b"GET / HTTP/1.0"))) == []
