"""What the routes need of the daemon, and what they are given: the seam between the API and the planes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.responses import Response

    from backends.interface import Request
    from daemon.control.stream.client_outcome import Told


class Ticket(Protocol):
    """A stream that has been let in and counts as open. It must be used once: by `respond` or by `read`."""

    @property
    def backend(self) -> str:
        """Which backend makes it."""
        ...


class Front(Protocol):
    """Opens streams for HTTP requests. Main thread."""

    def admit(self, backend: str, request: Request, *, user: str = "", has_upload: bool = False) -> Ticket:
        """Let a stream in. Raises ApiError: a full house, a user's limit, a request that the backend refuses.

        `user` is who is limited: a key's name, or an address. `has_upload`: the request's body has not been read, and
        goes to the backend as it arrives.
        """
        ...

    def respond(self, ticket: Ticket, headers: Mapping[str, str], content_type: str = "text/event-stream") -> Response:
        """The response that streams it: takes the client's socket, or forwards where that cannot be taken (TLS)."""
        ...

    def read(self, ticket: Ticket, told: Told) -> AsyncIterator[bytes]:
        """The stream's body, read here: for answers that are put together first, whose clients are `told` something.

        Raises ApiError where the stream is refused or fails before its first byte, and StreamCut where it ends
        without its true end. Closing the iterator ends the stream.
        """
        ...


class StreamCut(Exception):  # noqa: N818  (the condition's name)
    """A stream ended without its true end, after some of it had come."""
