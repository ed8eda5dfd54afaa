"""What a client is told when its stream ends before its true end, or cannot begin: by a deadline, or by its backend."""

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

# What EXPIRED is answered with: the status before the first byte, and what is said then and later.
_EXPIRED = {
    st.QUEUE_TIMEOUT: (503, "its turn did not come in time"),
    st.FIRST_BYTE_TIMEOUT: (504, "the backend did not answer in time"),
    st.SILENCE_TIMEOUT: (504, "the backend fell silent"),
    st.STREAM_TIMEOUT: (504, "the stream took longer than is allowed"),
}
# The same where the backend waits for the client's upload.
_UPLOAD_EXPIRED = {
    st.FIRST_BYTE_TIMEOUT: (408, "the upload did not go on in time"),
    st.SILENCE_TIMEOUT: (408, "the upload fell silent"),
}

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=64)
def ending(status: int, code: str, detail: str, style: Format, lines: bytes | None) -> Ending:
    """Both ways to say it; `lines` are header lines of a response, None for a handoff's."""
    return either(status, code, detail, style, RETRY_AFTER_S if status == 503 else 0, lines=lines)


def expired(reason: int, style: Format, lines: bytes | None, *, is_upload_due: bool) -> Ending:
    """A deadline has passed, which `reason` names; `is_upload_due`: what was waited for is the client's upload."""
    status, detail = (is_upload_due and _UPLOAD_EXPIRED.get(reason)) or _EXPIRED[reason]
    return ending(status, st.REASONS[reason], detail, style, lines)


def refusal_of(error: BaseException, name: str) -> Refusal:
    """What a client is told when the code of its backend, of this name, raised."""
    if isinstance(error, RelayError):
        refusal = Refusal(error.status, error.code, error.message, error.retry_after_s)
        refusal.param, refusal.body, refusal.content_type = error.param, error.body, error.content_type
        return refusal
    if isinstance(error, BackendError):
        return Refusal(error.status, "backend_error", error.message, param=error.param)
    logger.error("backend failed", exc_info=error, extra={"backend": name})
    return Refusal(500, "backend_error", "the backend failed")
