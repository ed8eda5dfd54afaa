"""Decodes a handoff's data: JSON into the known fields, and its response headers with their validation."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from backends.interface import Fields
from daemon.control.admission.refusal import Refusal

# Headers set by the daemon, including framing: a handoff must not change them.
BLOCKED_HEADERS = frozenset(
    {
        "content-type",
        "cache-control",
        "connection",
        "x-accel-buffering",
        "transfer-encoding",
        "content-length",
        "content-encoding",
    }
)
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_has_control = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search
_decode = msgspec.json.Decoder(Fields).decode
_WHERE = re.compile(r"^(.*?)(?: - at `\$\.?(.*)`)?$", re.DOTALL)


def decode(data: bytes) -> Fields:
    """The fields of a handoff. Empty data, or a single NUL byte, is a request without fields. Raises Refusal."""
    if data in {b"", b"\0"}:
        return Fields()
    try:
        if not data.isascii():
            data.decode()  # msgspec does not validate fields that it skips, and a backend may read them
        return _decode(data)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None


def _wrong_type(message: str) -> Refusal:
    match = _WHERE.match(message)
    assert match is not None, "the pattern matches anything"
    what, field = match.group(1), match.group(2)
    if not field:
        return Refusal(400, "not_an_object", f"the handoff's JSON must be an object: {what.lower()}")
    return Refusal(400, "wrong_type", f"field `{field}` of the handoff: {what[:1].lower()}{what[1:]}")


def _malformed(error: Exception) -> Refusal:
    if isinstance(error, UnicodeDecodeError):
        return Refusal(400, "malformed_json", "the handoff's JSON is not UTF-8")
    if isinstance(error, RecursionError):
        return Refusal(400, "malformed_json", "the handoff's JSON is nested too deeply")
    return Refusal(400, "malformed_json", f"the handoff's data is not JSON: {error}")


def header_lines(headers: dict[str, Any]) -> tuple[bytes, int]:
    """Header lines for the response head, and the number of headers dropped.

    A name must be a token of RFC 9110, a value a string without control characters except tab, and neither may concern
    a header that the daemon sets.
    """
    lines: list[str] = []
    dropped = 0
    for name, value in headers.items():
        if (
            isinstance(value, str)
            and _is_token(name)
            and name.lower() not in BLOCKED_HEADERS
            and not _has_control(value)
        ):
            lines.append(f"{name}: {value}\r\n")
        else:
            dropped += 1
    return "".join(lines).encode(errors="replace"), dropped
