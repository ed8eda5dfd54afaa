"""A circuit breaker: an upstream that fails again and again is left alone, then tried with a few streams.

    closed -- `failures` in a row --> open -- `open_s` later, when somebody asks --> half_open
    half_open -- `successes` answers --> closed
    half_open -- one failure --> open

Pure: the time comes with each call. Every attempt holds a Permit, from which a trial knows its own attempts: what
becomes of a stream from before the outage says nothing about the trial. While closed, all counts that happens now.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.openai.options import BreakerOptions


class State(enum.Enum):
    """The values are labels of metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit:
    """One attempt, from `begin` to `failed`, `succeeded` or `abandoned`."""

    __slots__ = ("has_answered", "is_probing", "period")

    def __init__(self, period: int, *, is_probing: bool) -> None:
        """Made by `Breaker.begin`."""
        self.period = period
        self.is_probing = is_probing  # holds one of the places of a trial
        self.has_answered = False


class Breaker:
    """Of one upstream."""

    __slots__ = (
        "_changed",
        "_failure_count",
        "_options",
        "_period",
        "_probe_count",
        "_retry_s",
        "_success_count",
        "state",
    )

    def __init__(self, options: BreakerOptions, changed: Callable[[State], None]) -> None:
        """`changed` is told of each new state."""
        self._options = options
        self._changed = changed
        self.state = State.CLOSED
        self._period = 0
        self._failure_count = 0  # in a row, while closed
        self._success_count = 0  # of the trial
        self._probe_count = 0  # attempts of the trial that have not been answered yet
        self._retry_s = 0.0

    def configure(self, options: BreakerOptions) -> None:
        """Other numbers, from the next result on."""
        self._options = options

    def allows(self, now_s: float) -> bool:
        """Whether an attempt may begin."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            return now_s >= self._retry_s
        return self._probe_count < self._options.probes

    def wait_s(self, now_s: float) -> float:
        """How long it will certainly allow none. Not known of a trial, which ends when its streams are answered."""
        return max(0.0, self._retry_s - now_s) if self.state is State.OPEN else 0.0

    def begin(self, now_s: float) -> Permit:
        """An attempt begins. Only where one is allowed."""
        assert self.allows(now_s), "nobody asked whether it may"
        if self.state is State.OPEN:
            self._change(State.HALF_OPEN)
        is_probing = self.state is State.HALF_OPEN
        self._probe_count += is_probing
        return Permit(self._period, is_probing=is_probing)

    def answered(self, permit: Permit) -> None:
        """The upstream has answered: it works. What becomes of the answer is told later."""
        assert not permit.has_answered, "an attempt is answered once"
        permit.has_answered = True
        if not self._leaves_trial(permit):
            return
        self._success_count += 1
        if self._success_count >= self._options.successes:
            self._change(State.CLOSED)

    def succeeded(self, permit: Permit) -> None:
        """The attempt is over, and the upstream did what it should."""
        if not permit.has_answered:
            self.answered(permit)
        if self.state is State.CLOSED:
            self._failure_count = 0

    def failed(self, permit: Permit, now_s: float) -> None:
        """The attempt is over, and the upstream failed."""
        was_trial = permit.period == self._period and self.state is State.HALF_OPEN
        self._leaves_trial(permit)
        if self.state is State.CLOSED:
            self._failure_count += 1
            if 0 < self._options.failures <= self._failure_count:
                self._open(now_s)
        elif was_trial:
            self._open(now_s)

    def abandoned(self, permit: Permit) -> None:
        """The attempt is over, and says nothing about the upstream: the client left, or we had no room."""
        self._leaves_trial(permit)

    def _leaves_trial(self, permit: Permit) -> bool:
        """Give the place in a trial back; whether it was one of the trial that is on."""
        was_probing, permit.is_probing = permit.is_probing, False
        if not was_probing or permit.period != self._period:
            return False
        self._probe_count -= 1
        assert self._probe_count >= 0, "a place is given back once"
        return True

    def _open(self, now_s: float) -> None:
        self._retry_s = now_s + self._options.open_s
        self._change(State.OPEN)

    def _change(self, state: State) -> None:
        self.state = state
        self._period += 1
        self._failure_count = self._success_count = self._probe_count = 0
        self._changed(state)
