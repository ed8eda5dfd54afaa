"""A stream's events, put together into the one object that a client gets who did not ask for a stream. Pure.

`SseReader` finds events in bytes, however they are cut. `Assembly` takes what the events say: text is joined, calls
of tools are matched by their index, lists are joined, and of anything else the last that is not null wins.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Any, NamedTuple, cast

import msgspec

from daemon.control.channel.responses import error_type
from daemon.control.http.api.errors import ApiError

DONE = b"[DONE]"
_BOM = b"\xef\xbb\xbf"
_line_end = re.compile(rb"\r\n|\r|\n")
# Strings that are said whole, and by some upstreams again and again: never joined.
_WHOLE = frozenset({"role", "id", "type", "name", "object", "finish_reason", "model", "status"})
_FIRST = frozenset({"id", "object", "created", "model"})
_BY_INDEX = "tool_calls"
_STATUSES = {error_type(status): status for status in (400, 429, 500, 502, 503, 504)}
_NOT_THE_CLIENTS = frozenset({401, 403, 407})  # of an upstream: what is refused is the daemon's key


class Event(NamedTuple):
    """One event of a stream."""

    name: str  # empty: it has none
    data: bytes


class SseReader:
    """Finds whole events in a stream of bytes (WHATWG HTML 9.2): CR, LF or CRLF end a line, a BOM is skipped."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of a line whose end has not come
        self._began = False
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in this chunk."""
        pending = self._pieces
        held = bool(pending) and pending[-1].endswith(b"\r")
        pending.append(chunk)
        if not held and b"\n" not in chunk and b"\r" not in chunk:
            return []
        text = b"".join(pending)
        # A CR at the very end may be half of a CRLF: what comes next will say.
        kept = 1 if text.endswith(b"\r") else 0
        lines = _line_end.split(text[: len(text) - kept])
        self._pieces = [lines.pop() + text[len(text) - kept :]] if kept else [lines.pop()]
        if lines and not self._began:
            self._began = True
            lines[0] = lines[0].removeprefix(_BOM)
        events: list[Event] = []
        for line in lines:
            self._line(line, events)
        return events

    def end(self) -> list[Event]:
        """The stream is over: what a CR ended, with nothing behind it, has ended."""
        return self.feed(b"\n") if self._pieces and self._pieces[-1].endswith(b"\r") else []

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(self._name, b"\n".join(self._data)))
            self._name, self._data = "", []
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")


class _Text:
    """A string that grows: joined once, at the end."""

    __slots__ = ("pieces",)

    def __init__(self, text: str) -> None:
        self.pieces = [text]


class Assembly:
    """The object that events add up to."""

    def __init__(self, *, is_chat: bool, model: str, choice_count: int = 1) -> None:
        """`model` and `choice_count` are for a stream that says nothing."""
        self._is_chat = is_chat
        self._model = model
        self._choice_count = choice_count
        self._said: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: object = None
        self._event_count = 0
        self._malformed_count = 0

    def add(self, event: Event) -> None:
        """Take what an event says. Raises ApiError where it says that something went wrong."""
        if event.data == DONE:
            return
        self._event_count += 1
        try:
            found: object = msgspec.json.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            if event.name == "error":
                raise ApiError(502, "upstream_error", "the upstream reported an error")
            self._malformed_count += 1
            return
        said = cast("dict[str, Any]", found)
        error = said.get("error")
        if error is not None or event.name == "error":
            raise error_of(said if error is None else error)
        try:
            self._take(said)
        except RecursionError:
            raise ApiError(502, "upstream_malformed", "the upstream's answer is nested too deeply") from None

    def result(self) -> dict[str, Any]:
        """The whole answer. Raises ApiError 502 where nothing could be understood."""
        if self._event_count and self._malformed_count == self._event_count:
            raise ApiError(502, "upstream_malformed", "the upstream sent a stream that cannot be understood")
        kind, prefix = ("chat.completion", "chatcmpl-") if self._is_chat else ("text_completion", "cmpl-")
        said = self._said
        whole = {
            "id": said.pop("id", None) or prefix + secrets.token_hex(12),
            "object": kind,
            "created": said.pop("created", None) or int(time.time()),
            "model": said.pop("model", None) or self._model,
        }
        said.pop("object", None)
        indexes = sorted({*self._choices, *range(0 if self._choices else self._choice_count)})
        whole["choices"] = [self._choice(index, self._choices.get(index, {})) for index in indexes]
        return {**whole, "usage": self._usage, **said}

    def _take(self, said: dict[str, Any]) -> None:
        for name, value in said.items():
            if name == "choices":
                for choice in _objects(value):
                    self._take_choice(choice)
            elif name == "usage":
                self._usage = self._usage if value is None else value
            elif value is not None and not (name in _FIRST and self._said.get(name) is not None):
                self._said[name] = value

    def _take_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        mine = self._choices.setdefault(index if isinstance(index, int) else 0, {})
        for name, value in choice.items():
            if name in {"delta", "logprobs"} and isinstance(value, dict):
                _merge(_dictionary_in(mine, name), cast("dict[str, Any]", value))
            elif name == "text" and isinstance(value, str):
                _merge(mine, {"text": value})
            elif name != "index" and (value is not None or name not in mine):
                mine[name] = value

    def _choice(self, index: int, said: dict[str, Any]) -> dict[str, Any]:
        found = cast("dict[str, Any]", _finished(said))
        delta = found.pop("delta", None)
        text = found.pop("text", None)
        logprobs = found.pop("logprobs", None)
        # The stream has come to its true end, or there would be no answer at all.
        finish_reason = found.pop("finish_reason", None) or "stop"
        shown: dict[str, Any] = {"index": index}
        if self._is_chat:
            message = cast("dict[str, Any]", delta) if isinstance(delta, dict) else {}
            has_calls = bool(message.get("tool_calls") or message.get("function_call"))
            content = message.get("content")
            if content is None and isinstance(text, str):
                content = text
            if content is None and not has_calls and not message.get("refusal"):
                content = ""
            shown["message"] = {**message, "role": message.get("role") or "assistant", "content": content}
            shown["message"].setdefault("refusal", None)
        else:
            shown["text"] = text if isinstance(text, str) else ""
        return {**shown, "logprobs": logprobs, "finish_reason": finish_reason, **found}


def error_of(said: object) -> ApiError:
    """An error that stood in a stream, as an answer of its own: 502, unless it names a status itself."""
    if not isinstance(said, dict):
        return ApiError(502, "upstream_error", said if isinstance(said, str) else "the upstream reported an error")
    error = cast("dict[str, Any]", said)
    code = error.get("code")
    status = _status(code) or _status(error.get("status")) or _STATUSES.get(str(error.get("type")), 502)
    message, param = error.get("message"), error.get("param")
    return ApiError(
        502 if status in _NOT_THE_CLIENTS else status,
        str(code) if isinstance(code, str | int) and not isinstance(code, bool) else "upstream_error",
        message if isinstance(message, str) and message else "the upstream reported an error",
        param=param if isinstance(param, str) else None,
    )


def _status(value: object) -> int:
    """A status that an error names; 0 where it names none."""
    if isinstance(value, str) and len(value) == 3 and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and 400 <= value <= 599 else 0


def _objects(value: object) -> list[dict[str, Any]]:
    elements = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("dict[str, Any]", element) for element in elements if isinstance(element, dict)]


def _dictionary_in(mine: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(mine.get(name), dict):
        mine[name] = {}
    return cast("dict[str, Any]", mine[name])


def _merge(mine: dict[str, Any], added: dict[str, Any]) -> None:
    """Add what an event says of an object to what earlier ones said."""
    for name, value in added.items():
        if value is None:
            mine.setdefault(name, None)
        elif isinstance(value, str):
            _merge_text(mine, name, value)
        elif isinstance(value, dict):
            _merge(_dictionary_in(mine, name), cast("dict[str, Any]", value))
        elif isinstance(value, list):
            if not isinstance(mine.get(name), list):
                mine[name] = []
            _extend(mine[name], cast("list[object]", value), by_index=name == _BY_INDEX)
        else:
            mine[name] = value


def _merge_text(mine: dict[str, Any], name: str, text: str) -> None:
    old = mine.get(name)
    if name in _WHOLE:
        mine[name] = text or old or text
    elif isinstance(old, _Text):
        old.pieces.append(text)
    else:
        mine[name] = _Text(text)


def _extend(mine: list[Any], added: list[object], *, by_index: bool) -> None:
    if not by_index:
        mine.extend(added)
        return
    for element in _objects(added):
        index = element.get("index")
        known: list[dict[str, Any]] = [one for one in mine if index is not None and one.get("index") == index]
        if not known:
            known.append({})
            mine.append(known[0])
        _merge(known[0], element)


def _finished(value: Any) -> Any:  # noqa: ANN401  (any JSON)
    """The same with strings that are strings, and calls in their order, without their index."""
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {
            name: _finished(_in_order(inner)) if name == _BY_INDEX else _finished(inner)
            for name, inner in members.items()
        }
    if isinstance(value, list):
        return [_finished(inner) for inner in cast("list[object]", value)]
    return value


def _in_order(calls: Any) -> Any:  # noqa: ANN401
    """Calls of tools by their index, which a whole answer does not have."""
    if not isinstance(calls, list):
        return calls
    found = _objects(cast("list[object]", calls))
    if all(isinstance(call.get("index"), int) for call in found):
        found = sorted(found, key=lambda call: cast("int", call["index"]))
    return [{name: value for name, value in call.items() if name != "index"} for call in found]
