"""Why a handoff or a request gets no stream. Raised by checks; admission or the HTTP front sends the response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.control.channel.responses import problem

if TYPE_CHECKING:
    from backends.interface import Format


class Refusal(Exception):  # noqa: N818  (not an internal error: the client gets a response)
    """A handoff that gets an error response instead of a stream. `code` is also the metric's label."""

    def __init__(
        self, status: int, code: str, detail: str, retry_after_s: int = 0, *, param: str | None = None
    ) -> None:
        """`detail` goes to the client; it must not contain a value from the request."""
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        # Used by the HTTP front only: the field at fault, and an upstream's own response.
        self.param = param
        self.body = b""
        self.content_type = "application/json"

    def response(self, style: Format = "content") -> bytes:
        """The full HTTP response."""
        return problem(self.status, self.code, self.detail, style, self.retry_after_s)
