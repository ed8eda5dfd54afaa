"""Every answer the daemon gives by itself: the streaming head, refusals, and errors inside a stream.

Before the first byte an error is an HTTP response of its own: RFC 9457 problem+json. After it, it is an
`event: error`, which every SSE client can tell from an end.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: close\r\nX-Accel-Buffering: no\r\n\r\n"
)
KEEP_ALIVE = b": keep-alive\n\n"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# The stream's own: a handoff may not change how its body is framed or cached.
_RESERVED = frozenset(
    ("content-type", "cache-control", "connection", "x-accel-buffering", "transfer-encoding", "content-length", "content-encoding")
)


def stream_head(headers: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """The streaming head with a handoff's own headers after the standard ones, and the names of those left out."""
    lines, dropped = [], []
    for name, value in headers.items():
        good = isinstance(value, str) and _TOKEN.fullmatch(name) and not _CONTROL.search(value)
        if good and name.lower() not in _RESERVED:
            lines.append(f"{name}: {value}\r\n")
        else:
            dropped.append(name)
    return HEAD[:-2] + "".join(lines).encode("utf-8", "replace") + b"\r\n", dropped


def problem(status: int, detail: str, *, retry_after_s: int | None = None, openai: bool = False) -> bytes:
    """A whole HTTP response that says what is wrong; `openai` chooses OpenAI's envelope over RFC 9457."""
    title = HTTPStatus(status).phrase
    if openai:
        kind = "application/json"
        body = json.dumps({"error": error_object(status, detail)}).encode()
    else:
        kind = "application/problem+json"
        members = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        body = json.dumps(members, ensure_ascii=False).encode("utf-8", "replace")
    retry = f"Retry-After: {retry_after_s}\r\n" if retry_after_s is not None else ""
    head = (
        f"HTTP/1.1 {status} {title}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def error_object(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    server_error = HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error" if status >= server_error else "invalid_request_error"
    return {"message": message, "type": kind, "param": None, "code": code or str(status)}


def error_event(status: int, message: str, code: str | None = None) -> bytes:
    """An error inside a stream that has begun; the stream is closed after it."""
    return b"event: error\ndata: %s\n\n" % json.dumps({"error": error_object(status, message, code)}).encode()
