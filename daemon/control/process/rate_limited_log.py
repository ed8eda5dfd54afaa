"""Rate limiting for log lines about events that can occur in floods. Main thread."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

INTERVAL_S = 10.0


class _Kept:
    """The events of one code since its last line."""

    __slots__ = ("count", "due_s", "exception", "fields", "message")

    def __init__(self) -> None:
        self.count = 0
        self.due_s = 0.0  # when the next line is permitted
        self.message = ""
        self.fields: dict[str, object] = {}
        self.exception: BaseException | None = None


class RateLimitedLog:
    """Logs events by code: the first at once, then at most one line in ten seconds, with the number of events.

    Suppressed events are logged when the ten seconds are over (`log_due`), or when the daemon ends.
    """

    __slots__ = ("__weakref__", "_interval_s", "_kept", "_logger")

    def __init__(self, logger: logging.Logger, interval_s: float = INTERVAL_S) -> None:
        """Lines go to `logger`. There are few codes: they come from the source and the configuration."""
        self._logger = logger
        self._interval_s = interval_s
        self._kept: dict[str, _Kept] = {}
        _logs.add(self)

    @property
    def code_count(self) -> int:
        """Codes that had an event recently."""
        return len(self._kept)

    def warn(self, message: str, code: str, exception: BaseException | None = None, /, **fields: object) -> None:
        """Record an event. `message` is a fixed text; `fields` are those of the last event that a line covers.

        An `exception` is logged with its traceback.
        """
        kept = self._kept.get(code)
        if kept is None:
            kept = self._kept[code] = _Kept()
        kept.count += 1
        kept.message, kept.fields, kept.exception = message, fields, exception
        now_s = time.monotonic()
        if now_s >= kept.due_s:
            self._log(code, kept, now_s)

    def log_due(self, *, at_end: bool = False) -> None:
        """Log each code that has suppressed events and whose interval is over, or, `at_end`, each code that has any."""
        now_s = time.monotonic()
        for code, kept in list(self._kept.items()):
            if now_s < kept.due_s and not at_end:
                continue
            if kept.count > 0:
                self._log(code, kept, now_s)
            else:
                del self._kept[code]

    def _log(self, code: str, kept: _Kept, now_s: float) -> None:
        count, kept.count = kept.count, 0
        kept.due_s = now_s + self._interval_s
        error, kept.exception = kept.exception, None  # drop the reference, which would keep its frames alive
        self._logger.warning("%s", kept.message, exc_info=error, extra={"reason": code, **kept.fields, "count": count})


_logs: weakref.WeakSet[RateLimitedLog] = weakref.WeakSet()


def log_all() -> None:
    """Log all suppressed events; called when the daemon ends."""
    for log in list(_logs):
        log.log_due(at_end=True)


async def log_as_due() -> None:
    """Log suppressed events as their intervals end, for ever."""
    while True:
        await asyncio.sleep(INTERVAL_S)
        for log in list(_logs):
            log.log_due()
