"""Errors of the HTTP front, raised before a response's head has been sent; always in OpenAI's envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from daemon.control.channel.responses import envelope

if TYPE_CHECKING:
    from collections.abc import Mapping


class ApiError(Exception):
    """A request that gets an error response. The message goes to the client and must not contain a secret."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = "application/json",
    ) -> None:
        """`status` is 400 to 599, `param` the field at fault; `body` replaces the envelope."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        self.body = body or envelope(status, message, code, param)
        self.content_type = content_type


def response_of(error: ApiError) -> Response:
    """The error as a response."""
    headers = {"Cache-Control": "no-store", **error.headers}
    return Response(error.body, error.status, headers, media_type=error.content_type)
