"""What the client of an answer in one piece was told, for the account of the stream it was made of. Main thread.

Such a stream has a response of its own, which only this process reads: its client may get 502 where the plane said 200,
because what had begun well was cut. So the account waits until the answer has been put together, or has failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Told:
    """One client's answer. It must be told once, however it ends."""

    __slots__ = ("_then", "error", "is_known", "status")

    def __init__(self) -> None:
        """Not known yet."""
        self.status = 0  # of HTTP; 0: the client left, or the daemon ended, before there was one
        self.error = ""  # as `code: message`; empty where nothing went wrong
        self.is_known = False
        self._then: Callable[[Told], None] | None = None

    def tell(self, status: int, error: str = "") -> None:
        """This is what the client gets."""
        assert not self.is_known, "a client is told one thing"
        self.status, self.error, self.is_known = status, error, True
        if self._then is not None:
            self._then(self)

    def when_known(self, then: Callable[[Told], None]) -> None:
        """Call this once it is known, which may be now."""
        assert self._then is None, "one account waits"
        self._then = then
        if self.is_known:
            then(self)
