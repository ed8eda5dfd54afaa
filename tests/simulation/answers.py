"""What upstreams answer, from the seed: heads, framings, events and their faults. Bytes; nobody here knows a plane."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

TEXTS = (
    *("Hello", " world", ",", " ", "\n", "\n\n", '"quoted"', "back\\slash", "tab\there", "\b\f\x01\x7f", "é", "中文"),
    *("😀", "\u2028", "</script>", "data: no event", "\r\n\r\n", "{}", "[DONE]", "a/b"),
)
LINE_ENDS = (b"\n", b"\n", b"\n", b"\n", b"\r\n", b"\r\n", b"\r")
HEAD_NAMES = (b"X-Request-Id", b"server", b"DATE", b"Cache-Control", b"x-content-type", b"openai-processing-ms")
MEBIBYTE = 1 << 20
# How an answer ends on the wire.
KEEP, FIN, RESET, STALL = "keep", "fin", "reset", "stall"


@dataclass
class Answer:
    """The bytes of one answer, how fast they come, and what the upstream does after them."""

    wire: bytes
    ending: str = KEEP
    sizes: tuple[int, ...] = (1 << 20,)  # of the pieces, drawn for each
    delays_ms: tuple[int, ...] = (0,)  # before each piece
    wait_ms: int = 0  # before the first
    early: bool = False  # it does not wait for the request's end


@dataclass
class _Stream:
    """What one stream of events is made of."""

    rng: random.Random
    line_end: bytes
    model: str
    mixed: bool
    body: bytearray = field(default_factory=bytearray)

    def end_line(self) -> bytes:
        return self.rng.choice(LINE_ENDS) if self.mixed else self.line_end

    def line(self, data: bytes) -> None:
        self.body += data + self.end_line()

    def event(self, data: str | bytes, name: bytes = b"") -> None:
        """An event with this data, one line or several, and whatever else an event may have."""
        rng = self.rng
        if rng.random() < 0.05:
            self.line(rng.choice((b": a comment", b":", b"id: 17", b"retry: 1000", b"unknown: field", b"no colon")))
        if name:
            self.line(b"event: " + name)
        elif rng.random() < 0.05:
            self.line(rng.choice((b"event: message", b"event:completion", b"event")))
        raw = data.encode() if isinstance(data, str) else data
        for part in raw.split(b"\n"):
            self.line((b"data:" if rng.random() < 0.1 else b"data: ") + part)
        if rng.random() < 0.03:
            self.line(b"id: after")
        self.line(b"")
        if rng.random() < 0.03:
            self.line(b"")

    def chunk(self, choices: list[dict[str, Any]], **more: object) -> str:
        """A chat completion chunk, written in one of many ways."""
        rng = self.rng
        members: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "choices": choices,
        }
        if rng.random() < 0.8:
            members["model"] = self.model
        members |= more
        if rng.random() < 0.2:
            items = list(members.items())
            rng.shuffle(items)
            members = dict(items)
        if rng.random() < 0.1:
            members["extra"] = {"choices": [{"delta": {"content": "no"}}], "n": [1, -2.5e3, True, None, '\\"'], "": {}}
        ascii_only = rng.random() < 0.5
        if rng.random() < 0.08:
            return json.dumps(members, indent=rng.choice((0, 1, 3)), ensure_ascii=ascii_only)
        separators = (",", ":") if rng.random() < 0.7 else rng.choice(((", ", ": "), (" ,", " : "), (",\t", ":  ")))
        return json.dumps(members, separators=separators, ensure_ascii=ascii_only)

    def say(self, text: str, **more: object) -> None:
        choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        if self.rng.random() < 0.1:
            choice["delta"] = {"role": "assistant", "content": text, "refusal": None}
        if self.rng.random() < 0.1:
            choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.5}]}
        self.event(self.chunk([choice], **more))


def _usage(rng: random.Random) -> dict[str, Any]:
    return {
        "prompt_tokens": rng.randrange(0, 10_000),
        "completion_tokens": rng.randrange(0, 10_000),
        "total_tokens": 1,
        "completion_tokens_details": {"reasoning_tokens": 3, "completion_tokens": 4},
    }


def _something(stream: _Stream, text_bytes: int) -> None:
    """One event of a stream: most say something, some do not, a few cannot be understood."""
    rng = stream.rng
    kind = rng.choices(
        ("text", "role", "empty", "usage beside", "tool", "malformed", "no object", "odd", "comment", "choices"),
        (60, 3, 2, 2, 2, 2, 1, 2, 2, 2),
    )[0]
    if kind == "text":
        size = rng.choice((1, 1, 1, 3, text_bytes))
        text = "".join(rng.choices(TEXTS, k=min(size, 40)))
        if size > 40:
            text = (text * (size // max(len(text), 1) + 1))[:size]
        stream.say(text)
    elif kind == "role":
        stream.event(stream.chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]))
    elif kind == "empty":
        stream.event(stream.chunk([{"index": 0, "delta": {}, "finish_reason": None}]))
    elif kind == "usage beside":
        stream.say("x", usage=_usage(rng) if rng.random() < 0.5 else None)
    elif kind == "tool":
        call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a":'}}
        stream.event(stream.chunk([{"index": 0, "delta": {"tool_calls": [call]}}]))
    elif kind == "malformed":
        stream.event(rng.choice(('{"choices":[{', "{'a':1}", '{"a":1}}', "hello", '{"a":"\\x"}', "{a:1}", '{"a":1,}')))
    elif kind == "no object":
        stream.event(rng.choice(("[]", "1", '"text"', "null", "true")))
    elif kind == "odd":
        stream.event(
            rng.choice(("{}", '{"choices":null}', '{"choices":[]}', '{"choices":[{"delta":null}]}', ' {"a" : 1} '))
        )
    elif kind == "comment":
        stream.line(b": " + rng.choice((b"ping", b"OPENROUTER PROCESSING", b"")))
        if rng.random() < 0.7:
            stream.line(b"")
    else:
        two = [{"index": n, "delta": {"content": f"choice {n}"}, "finish_reason": None} for n in range(2)]
        stream.event(stream.chunk(two))


def make_events(rng: random.Random, *, large: bool) -> bytes:
    """A body of events, with a true end or without."""
    stream = _Stream(
        rng, rng.choice(LINE_ENDS), rng.choice(("gpt-4o", "m", "ein Modell/" * 9, "é\\")), rng.random() < 0.1
    )
    if rng.random() < 0.05:
        stream.body += b"\xef\xbb\xbf"
    count = rng.choice((0, 1, 2, 5, 12, 40))
    text_bytes = rng.choice((30, 30, 300, 3000))
    for _ in range(count):
        _something(stream, text_bytes)
    if large:
        size = rng.choice((9000, 13_000, 20_000, 60_000, 60_000, 300_000, MEBIBYTE - 5000, MEBIBYTE + 20_000))
        stream.say((rng.choice(TEXTS) * size)[:size])
        _something(stream, 30)
    _end(stream)
    return bytes(stream.body)


def _end(stream: _Stream) -> None:
    rng = stream.rng
    end = rng.choices(
        ("done", "finish and done", "finish", "nothing", "error", "error event", "malformed"), (6, 20, 5, 2, 1, 1, 1)
    )[0]
    if "finish" in end:
        reason = rng.choice(("stop", "length"))
        stream.event(stream.chunk([{"index": 0, "delta": {}, "finish_reason": reason}]))
    if rng.random() < 0.5:
        stream.event(stream.chunk([], usage=_usage(rng)))
    if end.endswith("done"):
        stream.event(rng.choice((b"[DONE]", b"[DONE]", b"[DONE]", b" [DONE]", b"[DONE] ")))
        if rng.random() < 0.1:
            stream.say("after the end")
        if rng.random() < 0.05 and stream.body.endswith(b"\n\n"):
            del stream.body[-1:]  # the blank line is missing
    elif end == "error":
        stream.event('{"error":{"message":"overloaded","type":"server_error","code":503}}')
    elif end == "error event":
        stream.event(rng.choice(('{"message":"no"}', "plain words")), b"error")
    elif end == "malformed":
        del stream.body[:]
        for _ in range(rng.randrange(1, 4)):
            stream.event("no JSON")
        if rng.random() < 0.5:
            stream.event(b"[DONE]")


def _chunked(rng: random.Random, body: bytes, *, malformed: bool) -> bytes:
    """HTTP/1.1 chunks of any size."""
    wire = bytearray()
    sizes = rng.choice(((1, 7, 50), (100, 1000), (4096, 5000), (1 << 20,)))
    if len(body) > 5000:
        sizes = rng.choice(((1000, 4096, 10_000), (1 << 20,)))
    at = 0
    broken = rng.randrange(0, len(body) + 1) if malformed else len(body) + 1
    while at < len(body):
        if at >= broken:
            return bytes(wire) + rng.choice((b"zz\r\n", b"\r\n\r\n", b"-1\r\n", b"5\r\nhello!!\r\n", b"0x10\r\n"))
        piece = body[at : at + rng.choice(sizes)]
        at += len(piece)
        size = rng.choice((b"%x", b"%X", b"%x", b"000%x")) % len(piece)
        wire += size + rng.choice((b"", b"", b"", b";name=value", b' ; a="b"')) + b"\r\n" + piece + b"\r\n"
    return bytes(wire) + (b"zz\r\n" if malformed else b"0\r\n" + rng.choice((b"", b"", b"Trailer: x\r\n")) + b"\r\n")


def _head(rng: random.Random, status: bytes, headers: list[bytes], version: bytes = b"HTTP/1.1") -> bytes:
    headers += [
        rng.choice(HEAD_NAMES) + b": " + b"v" * rng.choice((0, 1, 30, 300)) for _ in range(rng.choice((0, 0, 2, 6)))
    ]
    rng.shuffle(headers)
    return version + b" " + status + b"\r\n" + b"".join(line + b"\r\n" for line in headers) + b"\r\n"


def _framed(
    rng: random.Random, status: bytes, headers: list[bytes], body: bytes, *, malformed: bool = False
) -> tuple[bytes, str]:
    """Head and body in one of the three framings, and what the upstream does then."""
    framing = rng.choices(("chunked", "length", "close"), (6, 2, 2))[0]
    keeps = rng.random() < 0.8
    version = b"HTTP/1.1"
    if framing == "chunked" or malformed:
        headers.append(
            rng.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:chunked", b"TRANSFER-ENCODING: Chunked"))
        )
        body = _chunked(rng, body, malformed=malformed)
    elif framing == "length":
        headers.append(b"Content-Length: %d" % len(body))
    else:
        version = rng.choice((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"))
        keeps = False
    if not keeps:
        headers.append(b"Connection: close")
    elif rng.random() < 0.2:
        headers.append(rng.choice((b"Connection: keep-alive", b"connection: Keep-Alive")))
    lies = keeps and rng.random() < 0.1  # it says that it stays, and goes
    return _head(rng, status, headers, version) + body, KEEP if keeps and not lies else FIN


_TYPES = (
    b"Content-Type: text/event-stream",
    b"content-type:text/event-stream; charset=utf-8",
    b"Content-Type: Text/Event-Stream",
)


def _stream_answer(rng: random.Random, *, large: bool, malformed: bool) -> tuple[bytes, str]:
    body = make_events(rng, large=large)
    status = rng.choice((b"200 OK", b"200 OK", b"200", b"200 ", b"201 Created"))
    wire, ending = _framed(rng, status, [rng.choice(_TYPES)], body, malformed=malformed)
    interim = b""
    for _ in range(rng.choices((0, 1, 3), (12, 2, 1))[0]):
        interim += rng.choice((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"))
    return interim + wire, ending


def _other_answer(rng: random.Random, kind: str) -> tuple[bytes, str]:
    """An answer that is no stream."""
    json_type = [b"Content-Type: application/json"]
    if kind == "status":
        status = rng.choice(
            (b"500 Internal Server Error", b"429 Too Many Requests", b"404 Not Found", b"503 x", b"401 ")
        )
        size = rng.choice((0, 1, 50, 3000, 20_000, 65_536, 70_000, 200_000))
        return _framed(rng, status, json_type, (b'{"error":{"message":"no"}} ' * (size // 27 + 1))[:size])
    if kind == "redirect":
        return _framed(
            rng, rng.choice((b"302 Found", b"307 x", b"301 Moved")), [b"Location: http://elsewhere/"], b"moved"
        )
    if kind == "wrong type":
        headers = rng.choice(([], json_type, [b"Content-Type: text/html"], [b"Content-Type: text/event-streams"]))
        return _framed(rng, b"200 OK", list(headers), b'{"choices":[]}')
    if kind == "compressed":
        return _framed(rng, b"200 OK", [_TYPES[0], b"Content-Encoding: gzip"], b"\x1f\x8b\x08\x00\x00")
    if kind == "giant head":
        return _head(
            rng, b"200 OK", [_TYPES[0], *(b"X-%d: " % n + b"v" * 500 for n in range(rng.choice((20, 200))))]
        ), KEEP
    if kind == "not HTTP":
        return rng.choice(
            (b"SSH-2.0-OpenSSH_9\r\n", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b"HTTP/2.0 200\r\n\r\n")
        ), FIN
    return b"", FIN


_KINDS = ("stream", "status", "redirect", "wrong type", "compressed", "giant head", "not HTTP", "empty")
_KIND_WEIGHTS = (60, 4, 1, 1, 1, 1, 1, 1)


def make_answer(rng: random.Random) -> Answer:
    """An answer, whole or cut at any byte, fast or slow."""
    kind = rng.choices(_KINDS, _KIND_WEIGHTS)[0]
    large = rng.random() < 0.04
    if kind == "stream":
        wire, ending = _stream_answer(rng, large=large, malformed=rng.random() < 0.04)
    else:
        wire, ending = _other_answer(rng, kind)
    fault = rng.choices(("none", "fin", "reset", "stall"), (20, 1, 1, 1))[0]
    if fault != "none":
        wire = wire[: rng.randrange(0, len(wire) + 1)]
        ending = fault
    if len(wire) > 20_000:
        sizes: tuple[int, ...] = rng.choice(((5000, 20_000), (1 << 21,)))
        delays: tuple[int, ...] = rng.choice(((0,), (0, 0, 1, 5)))
    else:
        small = (1, 10, 100) if len(wire) < 1500 else (10, 300, 1400)
        sizes = rng.choice((small, (100, 1400), (4000, 9000), (1 << 21,), (1 << 21,)))
        delays = rng.choice(((0,), (0, 0, 1, 20), (0, 1, 200), (0, 10, 40)))
    return Answer(wire, ending, sizes, delays, wait_ms=rng.choice((0, 0, 1, 20, 500)), early=rng.random() < 0.05)
