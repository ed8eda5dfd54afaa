"""Requests that come whole, a head and at once its body: looked at before ASGI, which many of them never need.

`WholeRequestProtocol` asks a shortcut about them. What the shortcut does not take goes to the application as if nobody
had asked, and so does everything that did not come whole, or is out of the ordinary. Nothing here knows the daemon.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any, Protocol, cast

from daemon.control.http.uvicorn.taking import HELD_BYTES_MAX, RequestProtocol, TakingProtocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

BODY_BYTES_MAX = HELD_BYTES_MAX  # no longer body is waited for
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,4})[ \t]*\r\n", re.IGNORECASE)
BODY_WAIT_S = 0.1  # for a body that is sent apart from its head, as many clients do; then the application waits for it


class Shortcut(Protocol):
    """Takes requests before the application sees them."""

    @property
    def paths(self) -> Collection[bytes]:
        """Those of the requests that it is asked about, each a POST."""
        ...

    def take(self, scope: dict[str, Any], body: bytes, let_go: Callable[[], int]) -> bool:
        """Whether it has taken the request.

        `scope` is ASGI's, with path, method, headers and client. What it puts in there the application finds, where it
        does not take the request. `let_go` returns the connection's descriptor, which is then its own; it must take the
        request after that. Raises nothing.
        """
        ...


class WholeRequestProtocol(RequestProtocol):
    """Asks a shortcut first."""

    def __init__(self, *arguments: Any, shortcut: Shortcut | None = None, **options: Any) -> None:  # noqa: ANN401
        """As RequestProtocol is made."""
        super().__init__(*arguments, **options)
        self._shortcut = shortcut
        self._awaited_bytes: int | None = None  # length of the body of a request that the shortcut is asked about
        self._came = b""  # what has come behind its head
        self._patience: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A request that may be the shortcut's waits for what comes behind its head."""
        shortcut = self._shortcut
        if shortcut is not None and self.url in shortcut.paths and self._is_plain():
            self._awaited_bytes = self._length()
        if self._awaited_bytes is None:
            super().begin()

    def _is_plain(self) -> bool:
        """Whether nothing but a body is to be looked at."""
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and self.scheme == "http"
            and not self.expect_100_continue
            and not parser.should_upgrade()
        )

    def _length(self) -> int | None:
        """Of a short body. None for others: an empty one, for example, the parser has done with."""
        length = 0
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                return None
        return length if 0 < length <= BODY_BYTES_MAX else None

    def _hold(self, rest: bytes) -> None:
        if self._awaited_bytes is None:
            super()._hold(rest)
            return
        self._came = rest
        if len(rest) >= self._awaited_bytes:
            self._decide()
            return
        self._head_arrived()
        self._patience = self.loop.call_later(BODY_WAIT_S, self._pass_on)

    @property
    def read_bytes_max(self) -> int:
        """How much may be read at once: of a body that is waited for, no further than to its end."""
        return super().read_bytes_max if self._awaited_bytes is None else self._awaited_bytes - len(self._came)

    def data_received(self, data: bytes) -> None:
        """More of a body that is waited for, or what RequestProtocol knows of."""
        if self._awaited_bytes is None or self.transport.is_closing():
            super().data_received(data)
            return
        self._came += data
        if len(self._came) >= self._awaited_bytes:
            self._decide()

    def _decide(self) -> None:
        """The request is whole."""
        length, transport = self._awaited_bytes, self.transport
        # An answer to an earlier request may still be on its way out.
        if not transport.is_closing() and transport.get_write_buffer_size() == 0:
            assert self._shortcut is not None, "nobody else waits for a body"
            scope = cast("dict[str, Any]", self.scope)
            scope["method"], scope["path"] = "POST", self.url.decode("ascii")
            if self._shortcut.take(scope, self._came[:length], self.let_go):
                self._wait_no_more()
                return
        self._pass_on()

    def _pass_on(self) -> None:
        """The application gets the request."""
        came = self._wait_no_more()
        super().begin()
        super()._hold(came)

    def _wait_no_more(self) -> bytes:
        self._head_arrived()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        came, self._came, self._awaited_bytes = self._came, b"", None
        return came

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or its socket was taken."""
        self._wait_no_more()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends: a request that has begun is answered."""
        if self._awaited_bytes is not None:
            self._pass_on()
        super().shutdown()


class WholeTakingProtocol(TakingProtocol):
    """TakingProtocol for a server with a shortcut.

    A request that has come whole by the time that its connection is seen, as most have, is read at once. The event loop
    would first have its kernel watch the socket, which is then let go, and look for others: who came early would wait
    for who came late.
    """

    request_protocol = WholeRequestProtocol
    _must_pause = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        inner = self._inner
        if inner.scheme != "http" or inner.transport.is_closing():
            return
        # Of anything else nothing is taken out of the socket: it is read in its turn.
        data = read_whole(transport.get_extra_info("socket").fileno())
        if not data:
            return
        inner.data_received(data)
        if inner.flow.read_paused and not inner.transport.is_closing():
            # uvloop begins to read behind `connection_made`, whatever was said there.
            self._must_pause = True
            inner.loop.call_soon(self._pause_again)

    def buffer_updated(self, nbytes: int) -> None:
        """So much has been read; where reading had been paused before it began, it is the last."""
        super().buffer_updated(nbytes)
        if self._must_pause:
            self._pause_again()

    def _pause_again(self) -> None:
        inner, self._must_pause = self._inner, False
        if inner.flow.read_paused and not inner.transport.is_closing():
            inner.transport.resume_reading()
            inner.transport.pause_reading()


def read_whole(fd: int) -> bytes:
    """A short POST that has come whole, and nothing behind it; otherwise nothing, and nothing is read."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        data = probe.recv(HELD_BYTES_MAX, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if not _is_whole(data):
            return b""
        return probe.recv(len(data), socket.MSG_DONTWAIT)
    except OSError:
        return b""  # nothing has come yet; or the client has gone, which the event loop will see
    finally:
        probe.detach()


def _is_whole(data: bytes) -> bool:
    """Whether a head with a length is followed by so much. That it is a good one, the parser finds out."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or not data.startswith(b"POST "):
        return False
    length = _LENGTH.search(data, 0, end + 2)
    return length is not None and len(data) == end + 4 + int(length[1])
