"""A small HTTP server for monitoring: /metrics, /health and /ready; GET and HEAD, one request per connection.

httptools parses. Everything a client can consume is bounded: bytes of the head, time, connections. Main thread.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httptools

from daemon.control.process.exit_codes import StartError, status_of_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEAD_BYTES_MAX = 8192
CONNECTIONS_MAX = 32
# A request must arrive within this time; its response must then be sent within the same time again.
IDLE_TIMEOUT_S = 5.0
DISCARDED_BYTES_MAX = 1 << 20
BACKLOG = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageResponse:
    """The response of a page."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"

    def encoded(self, *, with_body: bool) -> bytes:
        """The full response."""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            + ("Allow: GET, HEAD\r\n" if self.status == HTTPStatus.METHOD_NOT_ALLOWED else "")
            + "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        return head.encode("ascii") + (self.body if with_body else b"")


if TYPE_CHECKING:
    # A page is called with the request's Accept header.
    Page = Callable[[str], PageResponse]


def json_response(status: HTTPStatus, fields: Mapping[str, object]) -> PageResponse:
    """A JSON response."""
    return PageResponse(status, json.dumps(fields).encode() + b"\n")


def problem(status: HTTPStatus) -> PageResponse:
    """An error in the form of RFC 9457."""
    body = json.dumps({"title": status.phrase, "status": status.value}).encode() + b"\n"
    return PageResponse(status, body, "application/problem+json")


class _Connection(asyncio.Protocol):
    """One client: its request is parsed as it arrives and answered once; further input is discarded.

    After the response our side is shut down and the client gets time to close: closing with unread input would send a
    reset, which can destroy a response in flight.
    """

    def __init__(self, pages: Mapping[str, Page], connections: set[_Connection]) -> None:
        self._pages = pages
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._method = b""
        self._url = b""
        self._accept = ""
        self._received_bytes = 0
        self._head_is_complete = False
        self._has_responded = False

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self._connections) >= CONNECTIONS_MAX:
            self._transport.abort()
            return
        self._connections.add(self)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._has_responded:
            if self._received_bytes > DISCARDED_BYTES_MAX:
                self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the head is complete; a requested upgrade is ignored
        except httptools.HttpParserError:
            if not self._head_is_complete:
                self._respond(problem(HTTPStatus.BAD_REQUEST))
                return
        if self._head_is_complete:
            self._respond(self._find_response())
        elif self._received_bytes > HEAD_BYTES_MAX:
            self._respond(problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()

    # Called by the parser.

    def on_url(self, url: bytes) -> None:
        if not self._head_is_complete:  # the same bytes may hold a second request, which is ignored
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_is_complete and name.lower() == b"accept":
            self._accept = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if not self._head_is_complete:
            self._head_is_complete = True
            self._method = self._parser.get_method()

    # Responses.

    def abort(self) -> None:
        """Close the connection now, discarding unsent data."""
        if self._transport is not None:
            self._transport.abort()

    def _find_response(self) -> PageResponse:
        if self._method not in {b"GET", b"HEAD"}:
            return problem(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            path = urlsplit(self._url.decode("ascii")).path
        except ValueError:  # not ASCII, or an invalid authority
            return problem(HTTPStatus.BAD_REQUEST)
        page = self._pages.get(path)
        if page is None:
            return problem(HTTPStatus.NOT_FOUND)
        try:
            return page(self._accept)
        except Exception:  # a failing page must not end the streams
            logger.exception("the page %s failed", path)
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _respond(self, response: PageResponse) -> None:
        assert self._transport is not None
        assert not self._has_responded
        self._has_responded = True
        self._received_bytes = 0
        self._set_deadline()
        self._transport.write(response.encoded(with_body=self._method != b"HEAD"))
        self._transport.write_eof()

    def _set_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(IDLE_TIMEOUT_S, self.abort)


class MonitoringServer:
    """Serves the pages until closed."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        """`pages` maps a path to the function that makes its response; it runs in the loop, so it must be fast."""
        self._pages = pages
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> tuple[str, int]:
        """Listen; returns the address and port in use.

        Raises:
            StartError: the address or port cannot be used.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _Connection(self._pages, self._connections),
                address,
                port,
                backlog=BACKLOG,
                reuse_address=True,
            )
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            message = f"cannot serve metrics on {address}:{port}: {reason}"
            raise StartError(message, status_of_errno(error.errno)) from error
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    def close(self) -> None:
        """Stop listening and close every connection now: no client may delay the daemon's exit."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
