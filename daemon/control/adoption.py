"""Sockets of this process that are to be streamed on as if they had been handed over: requests of the HTTP front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.plane import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.interface import Request


class Adoption:
    """One socket, its request, and how its response and its upload are framed. Made by the HTTP front."""

    __slots__ = ("backend", "body_bytes", "ended", "flags", "head", "prefix", "request")

    def __init__(
        self,
        backend: str,
        request: Request,
        head: bytes,
        *,
        chunked: bool = False,
        ended: Callable[[int], None] | None = None,
    ) -> None:
        """`head` is the whole response head; `ended` is called with the reason, once, when the stream is over."""
        self.backend = backend
        self.request = request
        self.head = head
        self.ended = ended
        self.flags = m.CHUNKED if chunked else 0
        self.body_bytes = 0
        self.prefix = b""

    def expect_body(self, body_bytes: int | None, prefix: bytes, *, expects_100: bool) -> None:
        """An upload follows on the socket: so many bytes, or (None) in chunks; `prefix` of it was already read."""
        self.flags |= m.BODY_CHUNKED if body_bytes is None else m.BODY_LENGTH
        self.body_bytes = body_bytes or 0
        self.prefix = prefix
        if prefix:
            self.flags |= m.BODY_PREFIX
        if expects_100 and not prefix:
            self.flags |= m.CONTINUE_100

    @property
    def has_body(self) -> bool:
        """Whether an upload follows."""
        return bool(self.flags & (m.BODY_LENGTH | m.BODY_CHUNKED))
