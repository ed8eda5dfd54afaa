"""Requests that came whole, head and body in one piece: looked at before ASGI, which many of them never need.

`WholeRequestProtocol` asks a shortcut about them. What the shortcut does not take goes to the application as if nobody
had asked, and so does everything that did not come whole, or is out of the ordinary. Nothing here knows the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from daemon.control.http.taking import RequestProtocol, TakingProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


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
        self._offered_bytes: int | None = None  # length of the body of a request that the shortcut is asked about

    def begin(self) -> None:
        """A request that may be the shortcut's waits for what came behind its head."""
        shortcut = self._shortcut
        if shortcut is not None and self.url in shortcut.paths and self._is_plain():
            self._offered_bytes = self._length()
        if self._offered_bytes is None:
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
        """Of the body. None where its head does not say it, and for an empty one, which the parser has done with."""
        length: int | None = None
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                return None
        return length or None

    def _hold(self, rest: bytes) -> None:
        length, self._offered_bytes = self._offered_bytes, None
        if length is not None:
            if len(rest) >= length and self._is_taken(rest[:length]):
                self._head_arrived()
                return
            super().begin()
        super()._hold(rest)

    def _is_taken(self, body: bytes) -> bool:
        transport = self.transport
        # An answer to an earlier request may still be on its way out.
        if transport.is_closing() or transport.get_write_buffer_size() > 0:
            return False
        assert self._shortcut is not None, "a body is only waited for where there is one"
        scope = cast("dict[str, Any]", self.scope)
        scope["method"], scope["path"] = "POST", self.url.decode("ascii")
        return self._shortcut.take(scope, body, self.let_go)


class WholeTakingProtocol(TakingProtocol):
    """TakingProtocol for a server with a shortcut."""

    request_protocol = WholeRequestProtocol
