"""Errors for clients whose stream fails or cannot begin: because of a deadline, or of its backend."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from backends.interface import BackendError
from backends.relay import RelayError
from daemon.control.admission.checks import RETRY_AFTER_S
from daemon.control.admission.refusal import Refusal
from daemon.control.channel.responses import Ending, either
from daemon.plane import state as st

if TYPE_CHECKING:
    from backends.interface import Format

# For EXPIRED: the status before the first byte, and the message, then or later.
_EXPIRED = {
    st.QUEUE_TIMEOUT: (503, "no worker became free in time"),
    st.FIRST_BYTE_TIMEOUT: (504, "the backend did not answer in time"),
    st.SILENCE_TIMEOUT: (504, "the backend fell silent"),
    st.STREAM_TIMEOUT: (504, "the stream took longer than is allowed"),
}
# The same where the backend waits for the client's upload.
_UPLOAD_EXPIRED = {
    st.FIRST_BYTE_TIMEOUT: (408, "the upload did not continue in time"),
    st.SILENCE_TIMEOUT: (408, "the upload fell silent"),
}

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=64)
def ending(status: int, code: str, detail: str, style: Format, lines: bytes | None) -> Ending:
    """The error as a response and as an event; `lines` are the response's header lines, None for a handoff."""
    return either(status, code, detail, style, RETRY_AFTER_S if status == 503 else 0, lines=lines)


def expired(reason: int, style: Format, lines: bytes | None, *, is_upload_due: bool) -> Ending:
    """The error for an expired deadline; `is_upload_due`: the deadline was waiting for the client's upload."""
    status, detail = (is_upload_due and _UPLOAD_EXPIRED.get(reason)) or _EXPIRED[reason]
    return ending(status, st.REASONS[reason], detail, style, lines)


def refusal_of(error: BaseException, name: str) -> Refusal:
    """The refusal for an exception in the code of the backend `name`."""
    if isinstance(error, RelayError):
        refusal = Refusal(error.status, error.code, error.message, error.retry_after_s)
        refusal.param, refusal.body, refusal.content_type = error.param, error.body, error.content_type
        return refusal
    if isinstance(error, BackendError):
        return Refusal(error.status, "backend_error", error.message, param=error.param)
    logger.error("backend failed", exc_info=error, extra={"backend": name})
    return Refusal(500, "backend_error", "the backend failed")
