"""Streams on sockets of this process: requests of the HTTP front, admitted first and opened on a socket later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.plane import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.interface import Backend, Format, Paced, Request
    from daemon.control.stream.relayed import Relayed

HEAD_BYTES_MAX = 2048  # of a response head made by the HTTP front


class Entry:
    """An admitted stream, which counts as open. Made by `Admission.admit`.

    Pass it to an Adoption, or to `Admission.abandon`, exactly once.
    """

    __slots__ = (
        "backend",
        "content_type",
        "has_body",
        "name",
        "opened",
        "relayed",
        "request",
        "style",
        "user",
    )

    def __init__(self, name: str, backend: Backend, request: Request) -> None:
        """`opened` or `relayed` says who produces it; a worker does when both are None."""
        self.name = name
        self.backend = backend
        self.request = request
        self.opened: tuple[int, Paced] | None = None  # a script's number, and its parameters
        self.relayed: Relayed | None = None
        self.style: Format = backend.format
        self.content_type = "text/event-stream"
        self.user: int | str | None = None
        self.has_body = False


class Adoption:
    """A stream on one socket: how its response and its upload are framed."""

    __slots__ = ("body_bytes", "ended", "entry", "flags", "head", "lines", "prefix")

    def __init__(
        self,
        entry: Entry,
        head: bytes,
        *,
        chunked: bool = False,
        lines: bytes = b"",
        ended: Callable[[int], None] | None = None,
    ) -> None:
        """`head` is the full response head; `lines` are header lines for an error response that replaces it.

        `ended` is called once, with the reason, when the stream has ended.
        """
        assert len(head) <= HEAD_BYTES_MAX, "the response head exceeds HEAD_BYTES_MAX"
        self.entry = entry
        self.head = head
        self.lines = lines
        self.ended = ended
        self.flags = m.CHUNKED if chunked else 0
        self.body_bytes = 0
        self.prefix = b""

    def expect_body(self, body_bytes: int | None, prefix: bytes, *, expects_100: bool) -> None:
        """An upload follows on the socket, of `body_bytes` bytes or chunked (None); `prefix` of it was already read."""
        assert self.entry.has_body, "the upload was not admitted"
        self.flags |= m.BODY_CHUNKED if body_bytes is None else m.BODY_LENGTH
        self.body_bytes = body_bytes or 0
        self.prefix = prefix
        if prefix:
            self.flags |= m.BODY_PREFIX
        if expects_100 and not prefix:
            self.flags |= m.CONTINUE_100
