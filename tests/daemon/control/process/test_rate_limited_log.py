"""A flood is a line at once and one each ten seconds, and no event of it goes uncounted."""

from __future__ import annotations

import asyncio
import logging

import pytest

from daemon.control.process import rate_limited_log
from daemon.control.process.rate_limited_log import INTERVAL_S, RateLimitedLog

logger = logging.getLogger("tests.rare")


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate_limited_log, "time", clock)
    return clock


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object, object]]:
    """What was logged since the last time: message, code and count."""
    ours = [record for record in caplog.records if record.name == logger.name]
    found = [(record.getMessage(), vars(record)["reason"], vars(record)["count"]) for record in ours]
    caplog.clear()
    return found


def test_the_first_has_a_line_and_the_rest_are_counted(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rare = RateLimitedLog(logger)
    for _ in range(5):
        rare.warn("refused", "full")
    rare.warn("refused", "other")
    assert lines(caplog) == [("refused", "full", 1), ("refused", "other", 1)]
    clock.now_s += INTERVAL_S
    rare.warn("refused", "full")
    assert lines(caplog) == [("refused", "full", 5)]


def test_what_had_no_line_is_told_of_when_it_may_have_one(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rare = RateLimitedLog(logger)
    for number in range(4):
        rare.warn("refused", "full", detail=number)
    assert lines(caplog) == [("refused", "full", 1)]
    clock.now_s += INTERVAL_S / 2
    rare.log_due()
    assert lines(caplog) == []
    clock.now_s += INTERVAL_S / 2
    rare.log_due()
    assert vars(caplog.records[0])["detail"] == 3, "it is about the last of them"
    assert lines(caplog) == [("refused", "full", 3)]
    rare.warn("refused", "full")
    assert lines(caplog) == [], "that was this interval's line"
    clock.now_s += 3 * INTERVAL_S
    rare.log_due()
    assert lines(caplog) == [("refused", "full", 1)]
    rare.log_due(at_end=True)
    assert lines(caplog) == []


def test_codes_that_do_not_come_again_are_forgotten(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rare = RateLimitedLog(logger)
    for number in range(100):
        rare.warn("relay failed", f"upstream {number}")
        clock.now_s += INTERVAL_S
        rare.log_due()
    assert rare.code_count <= 1
    assert len(lines(caplog)) == 100


def test_at_the_end_every_log_tells_what_it_kept(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    logs = [RateLimitedLog(logger), RateLimitedLog(logger)]
    for rare in logs:
        for _ in range(3):
            rare.warn("refused", "full")
    caplog.clear()
    clock.now_s += 1
    rate_limited_log.log_all()
    assert lines(caplog) == [("refused", "full", 2)] * 2
    rate_limited_log.log_all()
    assert lines(caplog) == []


class Total(logging.Handler):
    """Adds up how many events the lines tell of."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.count = 0
        self.wanted = wanted
        self.is_reached = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.count += vars(record)["count"]
        if self.count >= self.wanted:
            self.is_reached.set()


def test_the_time_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limited_log, "INTERVAL_S", 0.01)
    rare = RateLimitedLog(logger)

    async def all_told() -> int:
        total = Total(3)
        logger.addHandler(total)
        for _ in range(3):
            rare.warn("refused", "full")
        telling = asyncio.ensure_future(rate_limited_log.log_as_due())
        try:
            await asyncio.wait_for(total.is_reached.wait(), 30)
        finally:
            telling.cancel()
            logger.removeHandler(total)
        return total.count

    assert asyncio.run(all_told()) == 3
