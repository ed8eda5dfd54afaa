"""Events as OpenAI-compatible servers write them: bytes, one item an event. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODEL = "test-model"
DONE = b"data: [DONE]\n\n"
Usage = dict[str, int]


def event(data: str | bytes, *, line_end: str = "\n") -> bytes:
    """One event with this data, each of whose lines becomes a `data:` line."""
    text = data.decode() if isinstance(data, bytes) else data
    lines = [f"data: {line}" for line in text.split("\n")]
    return (line_end.join([*lines, "", ""])).encode()


def comment(text: str = "") -> bytes:
    """A comment, as servers send them to keep a connection open."""
    return f": {text}\n\n".encode()


def ask_usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """What the usage event says."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chunk(choices: Sequence[Mapping[str, Any]], *, model: str = MODEL, **extra: object) -> dict[str, Any]:
    """The object of one event."""
    head = {"id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 0, "model": model}
    return {**head, "choices": list(choices), **extra}


def delta(finish: str | None = None, *, model: str = MODEL, spaces: bool = False, **fields: object) -> bytes:
    """One event whose delta has these fields."""
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    separators = (", ", ": ") if spaces else (",", ":")
    return event(json.dumps(chunk([choice], model=model), ensure_ascii=False, separators=separators))


def tool_call(name: str, arguments: str) -> bytes:
    """A call of a tool, which has no content."""
    return delta(tool_calls=[{"index": 0, "id": "call_1", "function": {"name": name, "arguments": arguments}}])


def error_event(message: str, *, kind: str = "server_error", code: str | None = None) -> bytes:
    """An error object in mid-stream."""
    return event(json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}))


def openai_stream(
    tokens: Sequence[str],
    *,
    finish: str | None = "stop",
    usage: Usage | None = None,
    done: bool = True,
    role: bool = True,
    model: str = MODEL,
) -> list[bytes]:
    """A whole answer: the role, an event for each token, the finish_reason, the usage, [DONE]."""
    events = [delta(role="assistant", content="", model=model)] if role else []
    events += [delta(content=token, model=model) for token in tokens]
    if finish is not None:
        events.append(delta(finish, model=model))
    if usage is not None:
        events.append(event(json.dumps(chunk([], model=model, usage=usage))))
    if done:
        events.append(DONE)
    return events
