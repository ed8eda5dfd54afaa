"""What a client is told when its stream cannot be had, or cannot go on. Pure.

Statuses say whose fault it is, codes are stable words, and messages say what to change where that is known. What an
upstream said itself is passed on, with everything masked that looks like a key.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from backends.interface import BackendError
from backends.relay import Failure, FailureKind, RelayError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.openai.options import UpstreamOptions

MASK = "***"
MESSAGE_CHARACTERS_MAX = 300
WORD_CHARACTERS_MAX = 64
_TIMEOUTS = frozenset(
    {
        *(FailureKind.CONNECT_TIMEOUT, FailureKind.HEAD_TIMEOUT),
        *(FailureKind.FIRST_TOKEN_TIMEOUT, FailureKind.SILENCE_TIMEOUT),
    }
)
# Keys of services that give them a form of their own; configured ones are replaced whatever their form. A word of a
# sentence ("Bearer authentication", "sk-learn") is none: keys are long, and a token has digits.
_SECRET = re.compile(
    r"\b(?:sk|gsk|xai|hf|nvapi)[-_][A-Za-z0-9_-]{16,}"
    r"|(?i:\bbearer\s+)(?=[A-Za-z._~+/-]*[0-9])[A-Za-z0-9._~+/-]{8,}=*"
)
_is_word = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch


class RequestError(BackendError, RelayError):
    """A request that is wrong in itself. Both kinds of error at once, for whoever expects the one or the other."""

    def __init__(self, code: str, message: str, *, param: str | None = None, status: int = 400) -> None:
        """`param` is the field that is wrong."""
        RelayError.__init__(cast("Any", self), status, code, message, param=param)


class UpstreamError(RelayError):
    """An upstream's own error: `type` is what it called it, or empty."""

    type = ""


class Said(NamedTuple):
    """What an upstream's error object says, masked and bounded; empty where it says nothing."""

    message: str = ""
    type: str = ""
    param: str | None = None
    code: str = ""
    status: int = 0  # where its code is one


# How an error of our own is told, by kind: status, code, and the end of "the upstream ...".
_TOLD: dict[FailureKind, tuple[int, str, str]] = {
    FailureKind.CONNECT: (502, "upstream_unreachable", "cannot be reached"),
    FailureKind.CONNECT_TIMEOUT: (504, "upstream_timeout", "did not accept a connection in time"),
    FailureKind.CERTIFICATE: (
        *(502, "upstream_certificate"),
        "has a certificate that is not trusted: set ca_file to the authority that signed it",
    ),
    FailureKind.RESET: (502, "upstream_disconnected", "closed the connection before it answered"),
    FailureKind.HEAD_TIMEOUT: (504, "upstream_timeout", "did not answer in time (head_timeout_ms)"),
    FailureKind.HEAD_MALFORMED: (502, "upstream_malformed", "answered with something that is not HTTP/1.1"),
    FailureKind.HEAD_TOO_LARGE: (502, "upstream_malformed", "answered with a head that is too large"),
    FailureKind.HTTP_VERSION: (502, "upstream_http_version", "speaks another version of HTTP"),
    FailureKind.STATUS: (502, "upstream_error", "answered with an error"),
    FailureKind.REDIRECT: (
        *(502, "upstream_redirect"),
        "redirects, which is not followed: set api_base to where it leads",
    ),
    FailureKind.NOT_A_STREAM: (
        *(502, "upstream_not_a_stream"),
        "did not answer with an event stream: api_base must lead to an OpenAI-compatible server",
    ),
    FailureKind.COMPRESSED: (502, "upstream_compressed", "compressed its answer although it was not asked to"),
    FailureKind.FIRST_TOKEN_TIMEOUT: (
        *(504, "upstream_timeout"),
        "sent no token in time (first_token_timeout_ms)",
    ),
    FailureKind.SILENCE_TIMEOUT: (504, "upstream_timeout", "fell silent (silence_timeout_ms)"),
    FailureKind.CUT: (502, "upstream_disconnected", "closed the connection before the stream's end"),
    FailureKind.ERROR_EVENT: (502, "upstream_error", "reported an error"),
    FailureKind.MALFORMED: (502, "upstream_malformed", "sent a stream that cannot be understood"),
    FailureKind.EVENT_TOO_LARGE: (502, "upstream_malformed", "sent an event that is too large"),
    FailureKind.NO_RESOURCES: (503, "no_resources", ""),
}


def masked(text: str, secrets: Sequence[str]) -> str:
    """A text without these secrets, the longest of which come first, and without anything that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return _SECRET.sub(MASK, text)


def said(body: bytes, secrets: Sequence[str]) -> Said:
    """What an error's body says: OpenAI's envelope, or the forms that servers like vLLM and Ollama have for it."""
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Said()
    if not isinstance(found, dict):
        return Said()
    outer = cast("dict[str, Any]", found)
    error: object = outer.get("error", outer)
    if isinstance(error, str):
        return Said(message=_sentence(error, secrets))
    if not isinstance(error, dict):
        return Said()
    inner = cast("dict[str, Any]", error)
    message = next((inner[name] for name in ("message", "detail") if isinstance(inner.get(name), str)), "")
    code = inner.get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 0
    return Said(
        message=_sentence(message, secrets),
        type=_word(inner.get("type"), secrets),
        param=_word(inner.get("param"), secrets) or None,
        code=_word(code, secrets),
        status=status,
    )


def _sentence(text: str, secrets: Sequence[str]) -> str:
    text = " ".join(masked(text, secrets).split())
    return text if len(text) <= MESSAGE_CHARACTERS_MAX else text[: MESSAGE_CHARACTERS_MAX - 3] + "..."


def _word(value: object, secrets: Sequence[str]) -> str:
    return masked(value, secrets) if isinstance(value, str) and _is_word(value) else ""


def is_of_the_request(error: Said) -> bool:
    """Whether an error is the request's own fault, so that nobody else need be asked."""
    return (400 <= error.status < 500 and error.status != 429) or error.type == "invalid_request_error"


def of_failure(failure: Failure, upstream: UpstreamOptions, retry_after_s: int = 0) -> RelayError:
    """What the client is told about the failure that nothing can be done about any more."""
    status, code, what = _TOLD[failure.kind]
    if failure.kind is FailureKind.STATUS:
        return _of_status(failure, upstream, retry_after_s)
    if failure.kind is FailureKind.ERROR_EVENT:
        return _of_event(failure, upstream)
    if failure.kind is FailureKind.NO_RESOURCES:
        return RelayError(status, code, "there are no connections left for another stream", retry_after_s=1)
    if failure.kind is FailureKind.HTTP_VERSION:
        spoken, setting = ("HTTP/1.1", "false") if upstream.origin.http2 else ("HTTP/2", "true")
        what = f"answered with {spoken}: set http2_enabled = {setting}"
    message = f"the upstream {what}"
    own = (
        said(failure.body, upstream.secrets).message
        or masked(failure.detail, upstream.secrets)[:MESSAGE_CHARACTERS_MAX]
    )
    return RelayError(status, code, f"{message}: {own}" if own else message)


def _of_status(failure: Failure, upstream: UpstreamOptions, retry_after_s: int) -> RelayError:
    answer, own = failure.status, said(failure.body, upstream.secrets)
    end = f": {own.message}" if own.message else ""
    message = f"the upstream answered with {answer}{end}"
    if answer == 429:
        return RelayError(429, "upstream_rate_limited", message, retry_after_s=retry_after_s)
    if 400 <= answer < 500:
        body = _passed_on(failure.body, upstream.secrets)
        return RelayError(answer, "upstream_refused", message, param=own.param, body=body)
    if answer == 503:
        return RelayError(503, "upstream_unavailable", message, retry_after_s=retry_after_s)
    return RelayError(504 if answer == 504 else 502, "upstream_error", message)


def _passed_on(body: bytes, secrets: Sequence[str]) -> bytes:
    """The body as it is but for secrets; nothing where it is no JSON, because it was cut, or is a page for browsers."""
    try:
        text = masked(body.decode(), secrets)
        plain = json.dumps(msgspec.json.decode(text), ensure_ascii=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return b""
    # JSON can write the same characters in several ways: a "/" as "\/", a "=" as "\u003d".
    shown = masked(plain, secrets)
    return (text if shown == plain else shown).encode(errors="replace")


def _of_event(failure: Failure, upstream: UpstreamOptions) -> RelayError:
    own = said(failure.body, upstream.secrets)
    message = own.message or "the upstream reported an error"
    status = own.status if is_of_the_request(own) and own.status else 400 if is_of_the_request(own) else 502
    code = own.code or "upstream_error"
    envelope = {"message": message, "type": own.type or "backend_error", "param": own.param, "code": own.code or None}
    error = UpstreamError(status, code, message, param=own.param, body=msgspec.json.encode({"error": envelope}))
    error.type = own.type
    return error
