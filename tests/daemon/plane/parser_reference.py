"""What the compiled parsers are compared with: the same in plain Python, slow and obvious."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from daemon.plane.http1 import HEAD_HTTP2, HEAD_INCOMPLETE, HEAD_MALFORMED, HEAD_TOO_LARGE
from daemon.plane.json_walk import (
    CONTENT_ABSENT,
    CONTENT_ESCAPED,
    CONTENT_NULL,
    CONTENT_OTHER,
    CONTENT_PLAIN,
    DEPTH_MAX,
)

Json = Any

# ---- JSON


MISSING = object()


@dataclass
class Members:
    """An object, with its duplicate keys."""

    pairs: list[tuple[str, Json]] = field(default_factory=list[tuple[str, Json]])

    def last(self, key: str) -> Json:
        """The value of the last member with this key, or MISSING."""
        return next((value for name, value in reversed(self.pairs) if name == key), MISSING)

    def values(self) -> list[Json]:
        return [value for _, value in self.pairs]


class Number(str):
    """An integer as it is written."""

    __slots__ = ()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def load_json(document: bytes) -> Json:
    """The document, or MISSING where it is invalid or too deep. Bytes outside of ASCII are taken as Latin-1."""
    try:
        value: Json = json.loads(
            document.decode("latin-1"), object_pairs_hook=Members, parse_int=Number, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        return MISSING
    return value if _depth(value) <= DEPTH_MAX else MISSING


def _object(value: Json) -> Members:
    """The value, or an empty object where it is none."""
    return value if isinstance(value, Members) else Members()


def is_array(value: object) -> bool:
    return isinstance(value, list)


def _inside(value: Json) -> list[Json] | None:
    """What an object or an array holds; None for other values."""
    if isinstance(value, Members):
        return value.values()
    return value if is_array(value) else None


def _depth(value: Json) -> int:
    inside = _inside(value)
    return 0 if inside is None else 1 + max(map(_depth, inside), default=0)


def _objects(value: Json) -> int:
    return isinstance(value, Members) + sum(map(_objects, _inside(value) or []))


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) and not isinstance(value, Number) else None


def _says(value: Json) -> bool:
    return bool(_text(value) or _inside(value))


def _count(usage: Members, key: str) -> int:
    value = usage.last(key)
    return int(value) if isinstance(value, Number) and value.isdigit() and len(value) <= 18 else -1


def _there(value: Json) -> bool:
    return value is not MISSING and value is not None


@dataclass
class Walked:
    """What a chunk says. Strings are None where there is none."""

    content: str | None
    kinds: tuple[int, ...]  # what the content may be: whether it is escaped shows in the document alone
    choice_count: int
    finish: bool
    finish_text: str | None
    token: bool
    usage: bool
    prompt_tokens: int
    completion_tokens: int
    error: Json
    model: str | None
    object_count: int


def walk_reference(document: bytes) -> Walked | None:
    """What `walk_chunk` must find; None where it must refuse."""
    top = load_json(document)
    if not isinstance(top, Members):
        return None
    array: Json = top.last("choices")
    choices: list[Json] | None = array if is_array(array) else None
    choice = _object(choices[0] if choices else None)
    delta = _object(choice.last("delta"))
    text, content = choice.last("text"), delta.last("content")
    others = [value for name, value in delta.pairs if name not in {"role", "content"}]
    token = _says(content) or bool(_text(text)) or any(map(_says, others))
    if content is MISSING:
        content = text
    finish, usage, error = choice.last("finish_reason"), top.last("usage"), top.last("error")
    return Walked(
        content=_text(content),
        kinds=_kinds(content),
        choice_count=-1 if choices is None else len(choices),
        finish=_there(finish),
        finish_text=_text(finish),
        token=token,
        usage=isinstance(usage, Members),
        prompt_tokens=_count(_object(usage), "prompt_tokens"),
        completion_tokens=_count(_object(usage), "completion_tokens"),
        error=error if _there(error) else MISSING,
        model=_text(top.last("model")),
        object_count=_objects(top),
    )


def _kinds(content: Json) -> tuple[int, ...]:
    if content is MISSING:
        return (CONTENT_ABSENT,)
    if content is None:
        return (CONTENT_NULL,)
    return (CONTENT_OTHER,) if _text(content) is None else (CONTENT_PLAIN, CONTENT_ESCAPED)


_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def rewrite_reference(inside: bytes) -> bytes | None:
    """What `rewrite_string` must write; None where it must refuse."""
    try:
        text: str = json.loads((b'"' + inside + b'"').decode())
    except ValueError:
        return None
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    short = "".join(_SHORT.get(character, character) for character in text)
    return re.sub("[\0-\x1f]", lambda control: f"\\u{ord(control[0]):04x}", short).encode()


# ---- event streams


@dataclass
class Event:
    """One block of an event stream, up to and with its blank line."""

    block: bytes
    data: list[bytes]
    is_error: bool
    line_count: int


_LINE = re.compile(rb"([^\r\n]*)(\r\n|\r|\n)")


def events_reference(stream: bytes) -> list[Event]:
    """The complete blocks of a whole stream, as the standard's grammar has them (WHATWG HTML, 9.2.5 and 9.2.6)."""
    events: list[Event] = []
    begin, data, name, line_count = 0, list[bytes](), b"", 0
    for line in _LINE.finditer(stream):
        content = line[1]
        if content:
            line_count += 1
            key, _, value = content.partition(b":")
            value = value[1:] if value.startswith(b" ") else value
            if key == b"data":
                data.append(value)
            elif key == b"event":
                name = value
        else:
            events.append(Event(stream[begin : line.end()], data, name == b"error", line_count))
            begin, data, name, line_count = line.end(), [], b"", 0
    return events


# ---- heads


@dataclass
class Head:
    """What a head says."""

    size: int
    status: int = 0
    minor_version: int = 0
    content_length: int = -1
    is_chunked: bool = False
    closes: bool = False
    is_event_stream: bool = False
    is_compressed: bool = False
    content_type: bytes | None = None
    retry_after: bytes | None = None


_STATUS = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_PREFIX = b"HTTP/1."


def head_reference(wire: bytes, bytes_max: int) -> Head:
    """What `parse_head` must say of these bytes."""
    if wire[: len(_PREFIX)] != _PREFIX[: len(wire)]:
        if int.from_bytes(wire[:3].ljust(3, b"\0"), "big") > 16384:
            return Head(HEAD_MALFORMED)
        if len(wire) < 4:
            return Head(HEAD_INCOMPLETE)
        return Head(HEAD_HTTP2 if wire[3] in {4, 7} else HEAD_MALFORMED)
    lines: list[bytes] = []
    end = 0
    for line in re.finditer(rb"([^\n]*)\n", wire[:bytes_max]):
        content, end = line[1].removesuffix(b"\r"), line.end()
        if lines and not content:
            return _head_of(lines, end) or Head(HEAD_MALFORMED)
        lines.append(content)
        if _head_of(lines, end) is None:
            return Head(HEAD_MALFORMED)
    return Head(HEAD_TOO_LARGE if len(wire) >= bytes_max else HEAD_INCOMPLETE)


def _head_of(lines: list[bytes], size: int) -> Head | None:
    status = _STATUS.fullmatch(lines[0])
    matches = [_FIELD.fullmatch(line) for line in lines[1:]]
    if status is None or None in matches:
        return None
    pairs = [(match[1].lower(), match[2]) for match in matches if match is not None]
    head = Head(size, int(status[2]), int(status[1]))

    def elements(name: bytes) -> list[bytes]:
        return [element.strip(b" \t").lower() for key, value in pairs if key == name for element in value.split(b",")]

    lengths = elements(b"content-length")
    codings = [coding for coding in elements(b"transfer-encoding") if coding]
    if any(re.fullmatch(rb"[0-9]+", length) is None or int(length) >= 1 << 63 for length in lengths):
        return None
    if len(set(map(int, lengths))) > 1 or b"chunked" in codings[:-1]:
        return None
    head.is_chunked = codings[-1:] == [b"chunked"]
    head.is_compressed = bool(set(codings) - {b"chunked"} | set(elements(b"content-encoding")) - {b"identity", b""})
    connection = elements(b"connection")
    head.closes = b"close" in connection or (head.minor_version == 0 and b"keep-alive" not in connection)
    if any(key == b"transfer-encoding" for key, _ in pairs):
        head.closes = head.closes or bool(lengths) or head.minor_version == 0 or not head.is_chunked
    elif lengths:
        head.content_length = int(lengths[0])
    for key, value in pairs:
        if key == b"content-type":
            head.content_type = value
            head.is_event_stream = value.split(b";")[0].strip(b" \t").lower() == b"text/event-stream"
        elif key == b"retry-after":
            head.retry_after = value
    return head
