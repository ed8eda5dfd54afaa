"""Requests on a connection, as the plane reads them and as two other parsers do: llhttp (httptools) and h11."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h11
import httptools

from daemon.plane.body import COUNTED, DONE, MALFORMED, NONE, decode_body
from daemon.plane.ingress import request_head as r
from tests.daemon.plane.guarded import Fields, Guarded
from tests.daemon.plane.small import empty_stream, small_plane

MEMORY = Guarded(1 << 17)
PLANE = small_plane()
BODY_FAULT = -1
HEAD = Fields(r.REQUEST_HEAD, r.request_head_of)
AT = int(HEAD.array.ctypes.data)


@dataclass
class Request:
    """One request whose head is whole."""

    method: bytes = b""
    target: bytes = b""
    minor_version: int = 1
    fields: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    keeps_alive: bool | None = None
    body: bytes = b""

    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0)
            for name, value in self.fields
        )


@dataclass
class Reading:
    """What one reader made of the bytes of a connection."""

    requests: list[Request] = field(default_factory=list[Request])
    """Those that came whole, up to the first after which the connection does not go on."""
    fault: Any = None


# ---- ours


class PlaneReader:
    """The plane's functions, fed with pieces. Memory behind what has come, or before it, cannot be read."""

    def __init__(self, bytes_max: int = 65_536) -> None:
        self.reading = Reading()
        self.is_over = False
        self._bytes_max = bytes_max
        self._buffer = b""
        self._request: Request | None = None  # whose body is awaited
        self._head = bytes(HEAD.array.nbytes)

    def feed(self, piece: bytes) -> None:
        """More bytes have come."""
        self._buffer += piece
        while not self.is_over and (self._read_body() if self._request else self._read_head()):
            pass

    def _read_head(self) -> bool:
        HEAD.array.view("u1")[:] = bytearray(self._head)
        wire = self._buffer
        result = int(r.read_request_head(AT, MEMORY.at_end(wire), len(wire), self._bytes_max))
        after = HEAD.array.tobytes()
        HEAD.array.view("u1")[:] = bytearray(self._head)
        assert result == r.read_request_head(AT, MEMORY.at_start(wire), len(wire), self._bytes_max)
        assert HEAD.array.tobytes() == after
        self._head = after
        if result == r.HEAD_INCOMPLETE:
            assert HEAD["resume"] == len(wire) - wire.endswith(b"\r"), "bytes are looked at again"
            return False
        assert HEAD["resume"] == 0
        if result < 0:
            self.reading.fault = result
            self.is_over = True
            return False
        self._request = request_of(wire[:result])
        self._buffer = wire[result:]
        self._begin_body()
        return True

    def _begin_body(self) -> None:
        record = PLANE.streams[0]
        self._stream = empty_stream(PLANE, 0)
        record.body_line_bytes = 0
        record.body_state = HEAD["body_state"]
        record.body_remaining = HEAD["content_length"]
        if record.body_state == NONE or (record.body_state == COUNTED and record.body_remaining == 0):
            record.body_state = DONE

    def _read_body(self) -> bool:
        request, record = self._request, PLANE.streams[0]
        assert request is not None
        if record.body_state != DONE:
            wire, self._buffer = self._buffer, b""
            address = MEMORY.at_end(wire)
            size = int(decode_body(self._stream, address, len(wire)))
            request.body += MEMORY.read(address, size)
            if record.body_state == MALFORMED:
                self.reading.fault = BODY_FAULT
                self.is_over = True
            if record.body_state != DONE:
                return False
            left: int = int(record.body_line_bytes)
            self._buffer = wire[len(wire) - left :]
        self._request = None
        self.reading.requests.append(request)
        self.is_over = not request.keeps_alive
        return True


def request_of(head: bytes) -> Request:
    """What the record says of a whole head."""
    target = r.span_of(AT, r.TARGET)
    assert target is not None
    method = r.METHODS[HEAD["method"]]
    fields = [(name.lower(), value) for name, value in r.field_lines(head)]
    for span, words in r.FIELD_SPANS:
        _check_span(head, span, words[0], fields)
    return Request(method, head[target], HEAD["minor_version"], fields, bool(HEAD["keeps_alive"]))


NAMES = {
    r.HOST: b"host",
    r.AUTHORIZATION: b"authorization",
    r.CONTENT_TYPE: b"content-type",
    r.UPGRADE: b"upgrade",
    r.CONTENT_LENGTH: b"content-length",
    r.CONTENT_ENCODING: b"content-encoding",
    r.CONNECTION: b"connection",
    r.TRANSFER_ENCODING: b"transfer-encoding",
    r.EXPECT: b"expect",
    r.ACCEPT: b"accept",
    r.ORIGIN: b"origin",
    r.REQUEST_ID: b"x-request-id",
    r.FORWARDED: b"forwarded",
    r.FORWARDED_FOR: b"x-forwarded-for",
    r.IF_NONE_MATCH: b"if-none-match",
    r.WEBSOCKET_KEY: b"sec-websocket-key",
}


def _check_span(head: bytes, span: int, name_bytes: int, fields: list[tuple[bytes, bytes]]) -> None:
    """A span is the first field of its name, but Host's may be the target's."""
    name = NAMES[span]
    assert len(name) == name_bytes
    values = [value for key, value in fields if key == name]
    place = r.span_of(AT, span)
    authority = r.span_of(AT, r.AUTHORITY)
    if span == r.HOST and authority is not None:
        values = [head[authority]]
    assert (None if place is None else head[place]) == (values[0] if values else None)
    assert bool(HEAD["repeated"] & (1 << span)) == (len(values) > 1)


def read_plane(pieces: list[bytes], bytes_max: int = 65_536) -> Reading:
    """What the plane makes of these pieces."""
    reader = PlaneReader(bytes_max)
    for piece in pieces:
        reader.feed(piece)
    return reader.reading


# ---- theirs


class _Callbacks:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.now = Request()
        self.parser: Any = None
        self.place = ""

    def on_message_begin(self) -> None:
        self.now = Request()

    def on_url(self, url: bytes) -> None:
        self.now.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.now.keeps_alive is None:  # or it is a trailer
            self.now.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.place = ", in a body"
        self.now.method = self.parser.get_method()
        self.now.minor_version = int(self.parser.get_http_version()[-1])
        self.now.keeps_alive = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.now.body += body

    def on_message_complete(self) -> None:
        self.place = ""
        self.requests.append(self.now)


def read_llhttp(wire: bytes) -> Reading:
    """What llhttp makes of these bytes. Where it would change protocols, it goes on as a server that does not."""
    callbacks = _Callbacks()
    fault = None
    while fault is None:
        parser = httptools.HttpRequestParser(callbacks)
        callbacks.parser = parser
        try:
            parser.feed_data(wire)
        except httptools.HttpParserUpgrade as upgrade:
            if callbacks.now.has_body():
                callbacks.requests.pop()
                fault = "llhttp: the protocol changes before the body"
            wire = wire[upgrade.args[0] :]
            if wire:
                continue
        except httptools.HttpParserError as error:
            fault = f"llhttp{callbacks.place}: {error}"
        break
    return Reading(callbacks.requests, fault)


def read_h11(wire: bytes) -> Reading:
    """What h11 makes of these bytes; after each request a new parser goes on with what is left."""
    reading = Reading()
    while wire:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        request, place = Request(), ""
        try:
            connection.receive_data(wire)
            while True:
                event: Any = connection.next_event()
                if isinstance(event, h11.Request):
                    fields = [(name.lower(), value.strip(b" \t")) for name, value in event.headers.raw_items()]
                    place = ", in a body"
                    request = Request(event.method, event.target, int(event.http_version[-1:]), fields)
                elif isinstance(event, h11.Data):
                    request.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return reading
        except h11.RemoteProtocolError as error:
            reading.fault = f"h11{place}: {error}"
            return reading
        reading.requests.append(request)
        wire = connection.trailing_data[0]
    return reading
