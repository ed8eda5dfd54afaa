"""Whether another attempt follows a failed one, where it may go, and how long it waits. Pure.

Three bounds keep retries from making an outage worse: the attempts of one stream, a budget over all streams, and a wait
that grows. Nothing is repeated once the client has had content.
"""

from __future__ import annotations

import enum
import math
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from backends.openai.errors import is_of_the_request, said
from backends.relay import Failure, FailureKind

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

RETRY_AFTER_S_MAX = 86_400.0
BUDGET_INTERVAL_S = 60.0


class Verdict(enum.Enum):
    """What a failure says about asking again."""

    FINAL = "final"  # nobody else would do better
    ELSEWHERE = "elsewhere"  # another upstream may
    AGAIN = "again"  # so may the same one, a little later


class Blame(enum.Enum):
    """What a failure says about the upstream."""

    UPSTREAM = "upstream"  # its breaker counts it
    REQUEST = "request"  # the upstream has answered as it should
    NOBODY = "nobody"


STATUSES_AGAIN = frozenset({429, 500, 502, 503, 504})
_VERDICTS = {
    FailureKind.CONNECT: Verdict.AGAIN,
    FailureKind.CONNECT_TIMEOUT: Verdict.AGAIN,
    FailureKind.RESET: Verdict.AGAIN,
    # It was given all the time there is: the same upstream would take it once more.
    FailureKind.HEAD_TIMEOUT: Verdict.ELSEWHERE,
    FailureKind.FIRST_TOKEN_TIMEOUT: Verdict.ELSEWHERE,
    FailureKind.SILENCE_TIMEOUT: Verdict.ELSEWHERE,
    # Wrong settings or another server than was thought: it will answer the same again.
    FailureKind.CERTIFICATE: Verdict.ELSEWHERE,
    FailureKind.HEAD_MALFORMED: Verdict.ELSEWHERE,
    FailureKind.HEAD_TOO_LARGE: Verdict.ELSEWHERE,
    FailureKind.HTTP_VERSION: Verdict.ELSEWHERE,
    FailureKind.REDIRECT: Verdict.ELSEWHERE,
    FailureKind.NOT_A_STREAM: Verdict.ELSEWHERE,
    FailureKind.COMPRESSED: Verdict.ELSEWHERE,
    FailureKind.MALFORMED: Verdict.ELSEWHERE,
    FailureKind.EVENT_TOO_LARGE: Verdict.ELSEWHERE,
    # The upstream began to work on it, and may be asked again without harm: nobody has seen any of it.
    FailureKind.CUT: Verdict.ELSEWHERE,
    FailureKind.ERROR_EVENT: Verdict.ELSEWHERE,
    FailureKind.NO_RESOURCES: Verdict.FINAL,
}


def verdict(failure: Failure) -> Verdict:
    """What to do about a failure, as far as it alone can say."""
    if failure.is_streaming:
        return Verdict.FINAL
    if failure.kind is FailureKind.STATUS:
        if failure.status not in STATUSES_AGAIN:
            return Verdict.FINAL
        # An account without money is refused like one that is too fast, and waiting does not help it.
        is_lasting = failure.status == 429 and said(failure.body, ()).code == "insufficient_quota"
        is_unwanted = (
            failure.headers.get("x-should-retry", "").strip().lower() == "false"
        )  # as OpenAI tells its clients
        return Verdict.ELSEWHERE if is_lasting or is_unwanted else Verdict.AGAIN
    if failure.kind is FailureKind.ERROR_EVENT and is_of_the_request(said(failure.body, ())):
        return Verdict.FINAL
    return _VERDICTS[failure.kind]


def blame(failure: Failure, *, has_retry_after: bool) -> Blame:
    """What the breaker makes of a failure. Who says when to come back is busy, not broken."""
    if failure.kind is FailureKind.NO_RESOURCES:
        return Blame.NOBODY
    if failure.kind is FailureKind.STATUS:
        if failure.status == 429 or (failure.status == 503 and has_retry_after):
            return Blame.NOBODY
        return Blame.REQUEST if 400 <= failure.status < 500 else Blame.UPSTREAM
    if failure.kind is FailureKind.ERROR_EVENT and is_of_the_request(said(failure.body, ())):
        return Blame.REQUEST
    return Blame.UPSTREAM


def retry_after_s(headers: Mapping[str, str], wall_s: float) -> float | None:
    """When the upstream wants to be asked again: seconds from `wall_s` (Unix time) on; None where it does not say."""
    text = headers.get("retry-after-ms", "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return min(int(text) / 1000, RETRY_AFTER_S_MAX)
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), RETRY_AFTER_S_MAX)
    try:
        date = parsedate_to_datetime(text)
        # The forms without a zone mean UTC, where Python would take them for local time.
        seconds = (date if date.tzinfo is not None else date.replace(tzinfo=timezone.utc)).timestamp() - wall_s
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)


def backoff_ms(returns: int, base_ms: int, max_ms: int, randomness: random.Random) -> int:
    """The wait before an upstream is asked for the `returns`-th time again: anything up to a limit that doubles.

    Full jitter (M. Brooker, Exponential Backoff And Jitter, 2015), because streams that failed together must not return
    together.
    """
    assert returns >= 1, "the first attempt does not wait"
    limit_ms = min(base_ms << min(returns - 1, 30), max_ms)
    return randomness.randint(0, limit_ms)


def whole_seconds(seconds: float) -> int:
    """For a Retry-After: never less than is meant, and never 0, which would mean none."""
    return max(1, math.ceil(seconds))


class RetryBudget:
    """How many attempts may be repeated: a share of all streams, and a few a minute beside it.

    The few are for quiet sites, where a share of nothing would let no stream fail over.
    """

    __slots__ = ("_percent", "_reserve", "_time_s", "_tokens")

    def __init__(self, percent: int, reserve: int, now_s: float) -> None:
        """Full at first."""
        self._percent = percent
        self._reserve = reserve
        self._tokens = float(reserve)
        self._time_s = now_s

    def configure(self, percent: int, reserve: int) -> None:
        """Other numbers, from now."""
        self._percent, self._reserve = percent, reserve
        self._tokens = min(self._tokens, self._most)

    @property
    def _most(self) -> float:
        # Room for the share of the last streams even where nothing is reserved.
        return max(float(self._reserve), self._percent / 10)

    def stream_began(self) -> None:
        """One more stream: it adds its share."""
        self._tokens = min(self._tokens + self._percent / 100, self._most)

    def spend(self, now_s: float) -> bool:
        """Take one retry out; False where there is none."""
        passed_s = max(0.0, now_s - self._time_s)
        self._time_s = now_s
        self._tokens = min(self._tokens + self._reserve * passed_s / BUDGET_INTERVAL_S, self._most)
        # A share of 20 % added five times is not quite 1.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True
