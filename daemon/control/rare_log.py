"""Log lines that a flood of the same event must not turn into a flood of lines."""

from __future__ import annotations

import logging
import time

INTERVAL_S = 10.0


class RareLog:
    """Logs an event by its code: the first at once, then at most one line in ten seconds, with how many there were."""

    __slots__ = ("_counts", "_due_s", "_logger")

    def __init__(self, logger: logging.Logger) -> None:
        """Lines go to `logger`. Codes are few: they come from our own source."""
        self._logger = logger
        self._counts: dict[str, int] = {}
        self._due_s: dict[str, float] = {}

    def warn(self, message: str, code: str, **told: object) -> None:
        """One more event. `message` is a fixed text; what varies is `told` of the event that gets a line."""
        count = self._counts.get(code, 0) + 1
        now_s = time.monotonic()
        if now_s < self._due_s.get(code, 0.0):
            self._counts[code] = count
            return
        self._counts[code] = 0
        self._due_s[code] = now_s + INTERVAL_S
        self._logger.warning("%s", message, extra={"reason": code, **told, "count": count})
