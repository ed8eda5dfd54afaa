"""Why a handoff or a request gets no stream. The checks raise it; admission or the HTTP front answers it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.control.channel.responses import problem

if TYPE_CHECKING:
    from backends.interface import Format


class Refusal(Exception):  # noqa: N818  (it is no error of ours: the client gets an answer)
    """A handoff that gets an answer in place of a stream. `code` is also the label of the metric."""

    def __init__(
        self, status: int, code: str, detail: str, retry_after_s: int = 0, *, param: str | None = None
    ) -> None:
        """`detail` goes to the client; it never holds a value of the request."""
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        # What the HTTP front says beyond that: the field at fault, and an upstream's own answer.
        self.param = param
        self.body = b""
        self.content_type = "application/json"

    def response(self, style: Format = "content") -> bytes:
        """The whole HTTP response."""
        return problem(self.status, self.code, self.detail, style, self.retry_after_s)
