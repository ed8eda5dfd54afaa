"""The way of a streamed completion that came whole: let in, and opened on its socket, before ASGI. Main thread.

What this decides is decided by the same functions as on the way through the application: who asks, whose key it is,
what a body may say, limits, headers of answers. What is not a stream, or is to be refused, is not answered here: the
application does, with everything that stands around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn.application import completions_of
from daemon.control.http.uvicorn.body import check_type
from daemon.control.http.uvicorn.completions import REFUSED
from daemon.control.http.uvicorn.front import framing_of, no_descriptors, stream_headers
from daemon.control.http.uvicorn.middleware import check_key, header_of, own_headers
from daemon.control.http.uvicorn.taking import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import FastAPI

    from backends.interface import Endpoint
    from daemon.control.http.uvicorn.application import Options
    from daemon.control.http.uvicorn.front import Headers, HttpFront, HttpTicket

_ENDPOINTS: Mapping[str, Endpoint] = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
_VARY = (b"vary", b"Origin")  # what CORS says to who is no page of another origin


class StreamShortcut:
    """`daemon.control.http.uvicorn.whole.Shortcut` for both endpoints that generate."""

    def __init__(
        self,
        front: HttpFront,
        application: FastAPI,
        options: Options,
        answered: Callable[[dict[str, Any] | None, int], None],
    ) -> None:
        """`application` is what the options made; `answered` is told of each response."""
        self._front = front
        self._completions = completions_of(front, options)
        self._keys = options.keys
        self._has_cors = bool(options.cors_origins)
        self._body_bytes_max = options.body_bytes_max
        self._answered = answered
        # The route stands in a scope as it does on the other way: requests are counted by it.
        self._routes = {getattr(route, "path", ""): route for route in application.routes}
        self.paths = frozenset(path.encode() for path in _ENDPOINTS)

    def take(self, scope: dict[str, Any], body: bytes, let_go: Callable[[], int]) -> bool:
        """See `Shortcut`."""
        if len(body) > self._body_bytes_max or header_of(scope, b"origin") is not None:
            return False  # CORS is the application's
        own = own_headers(scope)
        try:
            if self._keys is not None:
                check_key(scope, self._keys)
            check_type(scope["headers"])
        except ApiError:
            return False  # which will be found again
        try:
            ticket = cast("HttpTicket | None", self._completions.open(scope, _ENDPOINTS[scope["path"]], body))
        except Exception as error:  # noqa: BLE001  (the application says it, and logs what nobody expected)
            scope[REFUSED] = error
            return False
        if ticket is None:
            return False
        try:
            fd = let_go()
        except OSError as error:
            self._front.abandon(ticket)
            scope[REFUSED] = no_descriptors(error)
            return False
        self._stream(scope, ticket, fd, own)
        return True

    def _stream(self, scope: dict[str, Any], ticket: HttpTicket, fd: int, own: Headers) -> None:
        headers = (*stream_headers(ticket.entry.content_type), *((_VARY,) if self._has_cors else ()), *own)
        scope["route"] = self._routes[scope["path"]]
        self._answered(scope, 200)
        self._front.stream(
            ticket, Taken(fd, b"", expects_100=False, client_address=""), framing_of(headers, chunked=True)
        )
