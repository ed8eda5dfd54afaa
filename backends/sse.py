"""Server-sent events as the daemon writes them: one JSON object a `data:` line, compact, raw UTF-8."""

from __future__ import annotations

import re

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x20)}
_ESCAPES = _CONTROLS | {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_needs_escape = re.compile(r'[\x00-\x1f"\\]').search


def escape(text: str) -> str:
    r"""The inside of a JSON string: backslash, quote, \n, \r, \t, other control characters as \u00xx; the rest raw."""
    return text.translate(_ESCAPES) if _needs_escape(text) else text


def content_event(text: str) -> bytes:
    """`data: {"content":"..."}` and the blank line. A lone surrogate, which UTF-8 cannot say, becomes a `?`."""
    return f'data: {{"content":"{escape(text)}"}}\n\n'.encode(errors="replace")
