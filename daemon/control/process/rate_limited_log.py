"""Log lines that a flood of the same event must not turn into a flood of lines. Main thread."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

INTERVAL_S = 10.0


class _Kept:
    """One code's events since its last line."""

    __slots__ = ("count", "due_s", "exception", "message", "told")

    def __init__(self) -> None:
        self.count = 0
        self.due_s = 0.0  # when there may be another line
        self.message = ""
        self.told: dict[str, object] = {}
        self.exception: BaseException | None = None


class RateLimitedLog:
    """Logs an event by its code: the first at once, then at most one line in ten seconds, with how many there were.

    Events that found no line are told of when the ten seconds are over (`tell_due`), or at the daemon's end.
    """

    __slots__ = ("__weakref__", "_interval_s", "_kept", "_logger")

    def __init__(self, logger: logging.Logger, interval_s: float = INTERVAL_S) -> None:
        """Lines go to `logger`. Codes are few: they come from our own source, and from the configuration."""
        self._logger = logger
        self._interval_s = interval_s
        self._kept: dict[str, _Kept] = {}
        _logs.add(self)

    @property
    def code_count(self) -> int:
        """Codes that had an event lately."""
        return len(self._kept)

    def warn(self, message: str, code: str, exception: BaseException | None = None, /, **told: object) -> None:
        """One more event. `message` is a fixed text; what varies is `told` of the last event that a line is about.

        An `exception` is logged with its traceback.
        """
        kept = self._kept.get(code)
        if kept is None:
            kept = self._kept[code] = _Kept()
        kept.count += 1
        kept.message, kept.told, kept.exception = message, told, exception
        now_s = time.monotonic()
        if now_s >= kept.due_s:
            self._tell(code, kept, now_s)

    def tell_due(self, *, at_end: bool = False) -> None:
        """A line for every code that may have one again and has events without; `at_end`, for every code that has."""
        now_s = time.monotonic()
        for code, kept in list(self._kept.items()):
            if now_s < kept.due_s and not at_end:
                continue
            if kept.count > 0:
                self._tell(code, kept, now_s)
            else:
                del self._kept[code]

    def _tell(self, code: str, kept: _Kept, now_s: float) -> None:
        count, kept.count = kept.count, 0
        kept.due_s = now_s + self._interval_s
        error, kept.exception = kept.exception, None  # which would keep its frames
        self._logger.warning("%s", kept.message, exc_info=error, extra={"reason": code, **kept.told, "count": count})


_logs: weakref.WeakSet[RateLimitedLog] = weakref.WeakSet()


def tell_all() -> None:
    """The daemon ends: what has had no line gets one."""
    for log in list(_logs):
        log.tell_due(at_end=True)


async def tell_in_time() -> None:
    """Tell of what had no line when it may have one, for ever."""
    while True:
        await asyncio.sleep(INTERVAL_S)
        for log in list(_logs):
            log.tell_due()
