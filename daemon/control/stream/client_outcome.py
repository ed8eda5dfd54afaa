"""What the client of a non-streaming response received, for the accounting of the underlying stream. Main thread.

Only this process reads such a stream: its client may get 502 where the plane recorded 200, because the stream was cut
after it had begun. So accounting waits until the response has been assembled, or has failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Told:
    """One client's outcome. `tell` must be called once, however the response ends."""

    __slots__ = ("_then", "error", "is_known", "status")

    def __init__(self) -> None:
        """Not known yet."""
        self.status = 0  # HTTP status; 0: the client disconnected, or the daemon ended, before a response
        self.error = ""  # `code: message`; empty if nothing went wrong
        self.is_known = False
        self._then: Callable[[Told], None] | None = None

    def tell(self, status: int, error: str = "") -> None:
        """Set the outcome."""
        assert not self.is_known, "the outcome is set twice"
        self.status, self.error, self.is_known = status, error, True
        if self._then is not None:
            self._then(self)

    def when_known(self, then: Callable[[Told], None]) -> None:
        """Call `then` once the outcome is known, which may be now."""
        assert self._then is None, "a callback is already registered"
        self._then = then
        if self.is_known:
            then(self)
