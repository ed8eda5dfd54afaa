"""Headers that settings may add to requests: tokens of RFC 9110, except those that frame or route the request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME_CHARACTERS_MAX = 128
VALUE_CHARACTERS_MAX = 4096
HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    }
)
"""They concern a single connection, which the daemon manages."""
OWN = frozenset(
    {
        *("host", "content-length", "content-type", "accept", "accept-encoding", "expect"),
        *("x-request-id", "x-test-pattern", "traceparent"),
    }
)
"""The daemon sends them itself, or cannot handle what they request (compression, a pause before the body)."""
is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
is_value = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?").fullmatch


def fault(headers: Mapping[str, str]) -> str:
    """The fault of the first header that is not permitted, without its value; empty if all are permitted."""
    seen: set[str] = set()
    for name, value in headers.items():
        shown = name[:NAME_CHARACTERS_MAX].encode("ascii", "backslashreplace").decode()
        lower = name.lower()
        if not is_token(name) or len(name) > NAME_CHARACTERS_MAX:
            return f"{shown!r} is not a header name: permitted are letters, digits and !#$%&'*+-.^_`|~"
        if lower in HOP_BY_HOP:
            return f"{shown} is refused: it concerns a connection, which the daemon manages"
        if lower in OWN:
            return f"{shown} is refused: the daemon sets it itself"
        if lower in seen:
            return f"{shown} is given twice"
        if not is_value(value) or len(value) > VALUE_CHARACTERS_MAX:
            return f"the value of {shown} is refused: permitted is printable ASCII without space at its ends"
        seen.add(lower)
    return ""
