"""JSON text for SSE messages: the escapes that the wire format promises, raw UTF-8 otherwise."""

from __future__ import annotations

import json


def content_event(text: str) -> bytes:
    """One SSE message with this content, as `data: {"content":"..."}`. Lone surrogates become U+FFFD."""
    return b'data: {"content":%s}\n\n' % json_text(text)


def json_text(text: str) -> bytes:
    """A JSON string with raw UTF-8: backslash, quote and control characters escaped."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")


def cut_bytes(data: bytes, limit: int) -> bytes:
    """At most `limit` bytes, never ending inside a UTF-8 character."""
    if len(data) <= limit:
        return data
    return data[:limit].decode("utf-8", "ignore").encode()
