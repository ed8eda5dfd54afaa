"""What a client must get for what an upstream sent: a plain reading of HTTP/1.1, event streams and JSON.

Written from RFC 9112, the WHATWG's description of event streams and docs/contract.md, with `json.loads`; nothing here
is shared with the plane. `ResponseReader` undoes the framing of one answer, `StreamReader` makes events of its body.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, cast

from daemon.plane import state as st

HEAD_BYTES_MAX = 65_536
ERROR_BYTES_MAX = 65_536  # of the body of an answer that is no stream
EVENT_BYTES_MAX = 1 << 20
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d\d\d)(?: [^\r\n]*)?\Z")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]*)?\Z")


class ResponseReader:
    """One answer on a connection: its head, its decoded body, and whether it ended as HTTP wants it."""

    def __init__(self) -> None:
        self.received_bytes = 0
        self.status = 0
        self.head = b""
        self.headers: dict[bytes, bytes] = {}
        self.failure = -1  # of the head, or of a stream's framing
        self.is_malformed = False  # the framing
        self.body = bytearray()  # decoded, and not yet taken
        self.has_head = False
        self.is_over = False  # the body is whole
        self.is_cut = False  # the connection ended before
        self.keeps = False  # the connection can serve another request, once the body is over
        self.has_excess = False  # bytes came after the body's end
        self._version = 1
        self._raw = bytearray()
        self._framing = ""
        self._left: int = 0
        self._in_data = False
        self._trailers = False

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        self.received_bytes += len(data)
        if self.is_over or self.is_cut:
            self.has_excess |= self.is_over
            return
        self._raw += data
        while not self.has_head and self.failure < 0:
            if not self._read_head():
                return
        if self.has_head and not self.is_malformed:
            self._read_body()

    def end(self) -> None:
        """The connection has ended: by a FIN, or by a reset, which ends nothing well."""
        if self.is_over or self.is_cut:
            return
        if not self.has_head:
            self.is_cut = True
            self._fail(st.FAILURE_RESET)
        else:
            self.is_cut = True

    def fin(self) -> None:
        if self.has_head and self._framing == "close" and not self.is_over:
            self.is_over = True
        else:
            self.end()

    def _fail(self, kind: int) -> None:
        if self.failure < 0:
            self.failure = kind

    def _break(self) -> None:
        """The framing is wrong."""
        self.is_malformed = True
        self._fail(st.FAILURE_MALFORMED)

    # ---- the head

    def _read_head(self) -> bool:
        """One head, interim ones included. False when more must come."""
        end = self._raw.find(b"\r\n\r\n")
        if end < 0 or end + 4 > HEAD_BYTES_MAX:
            self._check_beginning()
            if len(self._raw) >= HEAD_BYTES_MAX:
                self._fail(st.FAILURE_HEAD_TOO_LARGE)
            return False
        head = bytes(self._raw[: end + 4])
        del self._raw[: end + 4]
        lines = head[:-4].split(b"\r\n")
        match = _STATUS_LINE.match(lines[0])
        if match is None:
            self._fail(st.FAILURE_HEAD_MALFORMED)
            return False
        self._version, self.status = int(match[1]), int(match[2])
        if self.status < 200:
            return True
        self.headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            self.headers[name.strip().lower()] = value.strip()
        self.head = head
        self.has_head = True
        self._classify()
        return True

    def _check_beginning(self) -> None:
        """What cannot become a status line is known before its end."""
        begin = b"HTTP/1."
        got = bytes(self._raw[: len(begin)])
        if begin.startswith(got) or (len(got) < 4 and b"\0\0\x12".startswith(got)):
            return
        self._fail(st.FAILURE_HTTP_VERSION if got.startswith(b"\0\0\x12\4") else st.FAILURE_HEAD_MALFORMED)

    def _classify(self) -> None:
        headers = self.headers
        connection = headers.get(b"connection", b"").lower()
        self.keeps = connection != b"close" if self._version == 1 else connection == b"keep-alive"
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            self._framing = "chunked"
        elif b"content-length" in headers:
            self._framing = "length"
            self._left = int(headers[b"content-length"])
        else:
            self._framing = "close"
            self.keeps = False
        media = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if 300 <= self.status < 400:
            self._fail(st.FAILURE_REDIRECT)
        elif self.status >= 400:
            self._fail(st.FAILURE_STATUS)
        elif headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._fail(st.FAILURE_COMPRESSED)
        elif media != b"text/event-stream":
            self._fail(st.FAILURE_NOT_A_STREAM)

    @property
    def is_stream(self) -> bool:
        """A head has come that promises events."""
        return self.has_head and self.failure in (-1, st.FAILURE_MALFORMED)

    # ---- the body

    def _read_body(self) -> None:
        if self._framing == "chunked":
            self._read_chunks()
            return
        if self._framing == "close":
            self.body += self._raw
            self._raw.clear()
            return
        self._take(len(self._raw))
        if self._left == 0:
            self._over()

    def _take(self, count: int) -> None:
        count = min(count, self._left)
        self.body += self._raw[:count]
        del self._raw[:count]
        self._left -= count

    def _over(self) -> None:
        self.is_over = True
        self.has_excess = bool(self._raw)

    def _read_chunks(self) -> None:
        while not self.is_over:
            if self._in_data:
                self._take(len(self._raw))
                if self._left > 0 or len(self._raw) < 1:
                    return
                if not b"\r\n".startswith(bytes(self._raw[:2])):
                    self._break()
                    return
                if len(self._raw) < 2:
                    return
                del self._raw[:2]
                self._in_data = False
            line, found, rest = self._raw.partition(b"\n")
            if self._trailers:
                if not found:
                    return
                self._raw = rest
                if not line.strip(b"\r"):
                    self._over()
            elif not self._read_size(bytes(line), bool(found), rest):
                return

    def _read_size(self, line: bytes, whole: bool, rest: bytearray) -> bool:
        """The line with a chunk's size. False when more must come, or when it is wrong, which is known early."""
        so_far = line.removesuffix(b"\r")
        match = _CHUNK_SIZE.match(so_far)
        if match is None and (whole or so_far):
            self._break()
        if not whole or self.is_malformed:
            return False
        assert match is not None
        self._left = int(match[1], 16)
        self._in_data = self._left > 0
        self._trailers = self._left == 0
        self._raw = rest
        return True


class Emission(NamedTuple):
    """Something for the client, and how much of the body lies behind it."""

    data: bytes
    raw_end: int


class StreamReader:
    """Events of one body, and what they mean for the client."""

    def __init__(self, *, as_content: bool, passes_usage: bool) -> None:
        self.as_content = as_content
        self.passes_usage = passes_usage
        self.emissions: list[Emission] = []  # for the client, not yet taken
        self.is_done = False  # the true end
        self.failure = -1
        self.lent = b""  # what a failure tells
        self.tokens = 0
        self.valid = 0
        self.malformed = 0
        self.finish = False
        self.prompt_tokens = -1
        self.completion_tokens = -1
        self.model = b""
        self.first_model = b""  # when the first token came
        self.raw_bytes = 0  # of the body, in all
        self._buffer = bytearray()
        self._scanned = 0  # how far the buffer has been looked through for line ends
        self._lines: list[bytes] = []
        self._line_start = 0
        self._began = False
        self._event_start = 0  # in the body

    def feed(self, data: bytes) -> None:
        self.raw_bytes += len(data)
        if self.is_settled():
            return
        self._buffer += data
        self._read(is_last=False)
        if not self.is_settled() and len(self._buffer) > EVENT_BYTES_MAX:
            self.failure = st.FAILURE_EVENT_TOO_LARGE

    def end(self, *, clean: bool, malformed: bool = False) -> None:
        """The body is over: as HTTP wants it, cut, or because its framing is wrong."""
        if not self.is_settled():
            self._read(is_last=True)
        if self.is_settled():
            return
        if clean and self.finish:
            self._done(b"data: [DONE]\n\n")
        else:
            only_malformed = malformed or (self.malformed > 0 and self.valid == 0)
            self.failure = st.FAILURE_MALFORMED if only_malformed else st.FAILURE_CUT

    def is_settled(self) -> bool:
        """Nothing more is looked at."""
        return self.is_done or self.failure >= 0

    # ---- lines and blocks

    def _read(self, *, is_last: bool) -> None:
        if not self._began:
            mark = b"\xef\xbb\xbf"
            if len(self._buffer) < 3 and mark.startswith(self._buffer) and not is_last:
                return
            self._began = True
            if self._buffer.startswith(mark):
                self._drop(3)
        while not self.is_settled() and self._read_line(is_last=is_last):
            pass

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._event_start += count
        self._scanned = self._line_start = 0
        self._lines = []

    def _read_line(self, *, is_last: bool) -> bool:
        """One line; a blank one ends the block. False when there is no whole line."""
        buffer = self._buffer
        match = _LINE_END.search(buffer, self._scanned)
        if match is None:
            self._scanned = len(buffer)
            return False
        begin, end = match.span()
        if buffer[begin] == 13 and end == begin + 1 and end == len(buffer) and not is_last:
            self._scanned = begin
            return False  # a line feed may follow, and would belong to it
        line = bytes(buffer[self._line_start : begin])
        self._scanned = self._line_start = end
        if line:
            self._lines.append(line)
            return True
        block, lines = bytes(buffer[:end]), self._lines
        self._drop(end)
        self._block(block, lines)
        return True

    def _block(self, block: bytes, lines: list[bytes]) -> None:
        data: list[bytes] = []
        name = b""
        for line in lines:
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value
        if len(block) > EVENT_BYTES_MAX:
            self.failure = st.FAILURE_EVENT_TOO_LARGE
        elif data:
            self._event(block, b"\n".join(data), name)

    # ---- what events mean

    def _event(self, block: bytes, data: bytes, name: bytes) -> None:
        if data.strip(b" ") == b"[DONE]":
            if self.malformed > 0 and self.valid == 0:
                self.failure = st.FAILURE_MALFORMED
            else:
                self._done(b"data: [DONE]\n\n" if self.as_content else block)
            return
        chunk = _object(data)
        if name == b"error" or (chunk is not None and chunk.get("error") is not None):
            self.failure = st.FAILURE_ERROR_EVENT
            self.lent = data
        elif chunk is None:
            self.malformed += 1
        else:
            self.valid += 1
            self._chunk(block, data, chunk)

    def _done(self, event: bytes) -> None:
        self.is_done = True
        self._emit(event)

    def _emit(self, data: bytes) -> None:
        self.emissions.append(Emission(data, self._event_start))

    def _chunk(self, block: bytes, data: bytes, chunk: dict[str, Any]) -> None:
        choices = _list(chunk.get("choices"))
        usage = chunk.get("usage")
        first = _members(choices[0]) if choices else {}
        delta = _members(first.get("delta"))
        content = delta.get("content") if "content" in delta else first.get("text")
        if self.as_content:
            if isinstance(content, str) and content:
                self._emit(b'data: {"content":"' + escaped(content) + b'"}\n\n')
        elif not isinstance(usage, dict) or choices or self.passes_usage:
            self._emit(block)
        self.finish |= first.get("finish_reason") is not None
        if isinstance(usage, dict):
            self.prompt_tokens = _number(_members(cast("object", usage)).get("prompt_tokens"))
            self.completion_tokens = _number(_members(cast("object", usage)).get("completion_tokens"))
        if not self.model:
            named = _MODEL.search(data)
            self.model = named[1] if named else b""
        speaks = any(_says(value) for name, value in delta.items() if name != "role")
        if speaks or (isinstance(first.get("text"), str) and first["text"]):
            self.tokens += 1
            if self.tokens == 1:
                self.first_model = self.model


_LINE_END = re.compile(rb"\r\n|\n|\r")
_MODEL = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.)*)"')
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _object(data: bytes) -> dict[str, Any] | None:
    """A JSON object, or None where it is something else."""
    try:
        value: object = json.loads(data.decode())
    except ValueError:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _members(value: object) -> dict[str, Any]:
    """An object's members; none where it is no object."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


def _number(value: object) -> int:
    """A number of tokens, or -1 where it is something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _says(value: object) -> bool:
    """Whether a member of a delta says something."""
    return isinstance(value, (str, list, dict)) and len(cast("str", value)) > 0


def escaped(text: str) -> bytes:
    """The inside of a JSON string as the daemon writes it (backends/sse.py), one character at a time."""
    parts: list[str] = []
    for character in text:
        if character in _ESCAPES:
            parts.append(_ESCAPES[character])
        elif character < " ":
            parts.append(f"\\u{ord(character):04x}")
        elif "\ud800" <= character <= "\udfff":
            parts.append("\ufffd")
        else:
            parts.append(character)
    return "".join(parts).encode()
