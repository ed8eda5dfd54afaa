"""What the daemon itself says to a client: heads of streams, refusals, and the error that ends a stream.

Everything is a whole HTTP/1.1 response or a whole event, as bytes. Bodies of errors are RFC 9457 problems, or OpenAI's
envelope where the stream speaks OpenAI's format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from daemon.plane.messages import PAYLOAD_BYTES_MAX

if TYPE_CHECKING:
    from backends.interface import Format

# Byte for byte what clients of the older daemons get.
STANDARD_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Connection: close\r\n"
    b"X-Accel-Buffering: no\r\n"
    b"\r\n"
)
PHRASES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
# `type` of OpenAI's envelope and of the error event, by status.
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_exceeded",
    500: "internal_error",
    502: "backend_error",
    503: "service_unavailable",
    504: "timeout",
}
DETAIL_CHARACTERS_MAX = 500  # a refusal must fit in one command, however its detail has to be escaped
PARAM_CHARACTERS_MAX = 100
EVENT_CHARACTERS_MAX = 150  # and an error event in what the plane keeps free for it


class Ending(NamedTuple):
    """Both ways to end a stream: the payload's first `head_bytes` if no head has left, otherwise the rest."""

    payload: bytes
    head_bytes: int


def phrase(status: int) -> str:
    """The reason phrase of a status."""
    return PHRASES.get(status, "Error")


def error_type(status: int) -> str:
    """The class of an error, as OpenAI's clients know it."""
    return _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "internal_error")


def streaming_head(extra: bytes) -> bytes:
    """The standard head with more header lines, each ended by CR LF."""
    return STANDARD_HEAD[:-2] + extra + b"\r\n"


def typed_head(head: bytes | None, content_type: str) -> bytes:
    """A head for another type of content than events; None is the standard one."""
    return (head or STANDARD_HEAD).replace(b"text/event-stream", content_type.encode("ascii"), 1)


def _sayable(detail: str, characters_max: int) -> str:
    """The beginning of a text, as UTF-8 can say it: a backend's message may hold a lone surrogate."""
    return detail[:characters_max].encode(errors="replace").decode()


def envelope(status: int, detail: str, code: str | None, param: str | None = None) -> bytes:
    """The body of an error as OpenAI's clients read it; `param` is the field at fault."""
    error = {"message": detail, "type": error_type(status), "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def problem(
    status: int,
    code: str,
    detail: str,
    style: Format = "content",
    retry_after_s: int = 0,
    lines: bytes = b"",
    param: str | None = None,
) -> bytes:
    """A whole response that refuses: the status, why, and when to come back where that is known.

    `lines` are more header lines, each ended by CR LF; `param` is the field at fault, which OpenAI's envelope names.
    """
    detail = _sayable(detail, DETAIL_CHARACTERS_MAX)
    if style == "openai":
        kind = "application/json"
        body = envelope(status, detail, code, None if param is None else _sayable(str(param), PARAM_CHARACTERS_MAX))
    else:
        kind = "application/problem+json"
        body = msgspec.json.encode(
            {"type": "about:blank", "title": phrase(status), "status": status, "detail": detail, "code": code}
        )
    return answer_of(status, kind, body, retry_after_s, lines)


def answer_of(status: int, content_type: str, body: bytes, retry_after_s: int = 0, lines: bytes = b"") -> bytes:
    """A whole response with somebody else's body, such as an upstream's."""
    kind = "".join(character for character in content_type if " " <= character <= "~") or "application/octet-stream"
    retry = f"Retry-After: {retry_after_s}\r\n" if retry_after_s > 0 else ""
    head = (
        f"HTTP/1.1 {status} {phrase(status)}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{retry}"
    )
    return head.encode("ascii") + lines + b"Connection: close\r\n\r\n" + body


def error_event(status: int, code: str, detail: str) -> bytes:
    """The event that ends a stream which cannot go on: clients of OpenAI's API raise it."""
    body = envelope(status, _sayable(detail, EVENT_CHARACTERS_MAX), code)
    return b"event: error\ndata: " + body + b"\n\n"


def either(
    status: int,
    code: str,
    detail: str,
    style: Format = "content",
    retry_after_s: int = 0,
    *,
    lines: bytes | None = None,
    param: str | None = None,
) -> Ending:
    """The payload of a STOP. A raw stream has no events: once its head has left it can only be cut.

    `lines` are more header lines of the response. They are given for the HTTP front alone, whose clients all read
    OpenAI's envelope.
    """
    detail = detail[:EVENT_CHARACTERS_MAX]
    response = problem(status, code, detail, style if lines is None else "openai", retry_after_s, lines or b"", param)
    event = b"" if style == "raw" else error_event(status, code, detail)
    assert len(response) + len(event) <= PAYLOAD_BYTES_MAX
    return Ending(response + event, len(response))
