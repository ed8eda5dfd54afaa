"""The upstreams of one process, and which of them is asked next. Main thread; time and randomness come from outside.

The lowest priority number that can take a stream gets it, and among equals the one with the fewest streams for its
weight. An upstream cannot while its breaker is open, while it is full, and as long as it asked to be left alone.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from backends.openai.breaker import Breaker, Permit, State
from backends.openai.errors import RequestError
from backends.openai.retries import whole_seconds
from backends.relay import RelayError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Iterable, Sequence

    from backends.openai.options import UpstreamOptions
    from backends.relay import Origin

PARKED_S_MAX = 600.0  # who asks for more is asked again all the same, in case the wish was a mistake
BUSY_RETRY_AFTER_S = 1
_NAMES_SHOWN_MAX = 16

logger = logging.getLogger(__name__)


class Running:
    """One attempt that is on: what an upstream counts as active."""

    __slots__ = ("_is_over", "options", "permit", "upstream")

    def __init__(self, upstream: UpstreamState, permit: Permit) -> None:
        """Made by `UpstreamState.begin`; the options are those that it began with."""
        self.upstream = upstream
        self.options = upstream.options
        self.permit = permit
        self._is_over = False

    def answered(self) -> None:
        """The first token came."""
        self.upstream.refuses_key = False
        self.upstream.breaker.answered(self.permit)

    def succeeded(self) -> None:
        """It is over, and the upstream did what it should."""
        self._end()
        self.upstream.breaker.succeeded(self.permit)

    def failed(self, now_s: float) -> None:
        """It is over, and the upstream failed."""
        self._end()
        self.upstream.breaker.failed(self.permit, now_s)

    def abandoned(self) -> None:
        """It is over, and nobody knows how it would have gone."""
        self._end()
        self.upstream.breaker.abandoned(self.permit)

    def _end(self) -> None:
        assert not self._is_over, "an attempt ends once"
        self._is_over = True
        self.upstream.active_count -= 1


class UpstreamState:
    """One upstream as it is now."""

    __slots__ = ("_clock", "active_count", "breaker", "is_rate_limited", "options", "parked_until_s", "refuses_key")

    def __init__(
        self, options: UpstreamOptions, changed: Callable[[str, str], None], clock: Callable[[], float]
    ) -> None:
        """`changed` is told the upstream's name and its breaker's new state; `clock` is for who looks at it."""

        def breaker_changed(state: State) -> None:
            level = logging.INFO if state is State.CLOSED else logging.WARNING
            logger.log(
                level, "the breaker of an upstream has changed", extra={"upstream": options.name, "state": state.value}
            )
            changed(options.name, state.value)

        self.options = options
        self._clock = clock
        self.breaker = Breaker(options.breaker, breaker_changed)
        self.active_count = 0
        self.parked_until_s = 0.0
        self.is_rate_limited = False  # it is parked because of a 429
        self.refuses_key = False  # the last that it said of the key; logged when it begins

    # ---- what others may read

    @property
    def name(self) -> str:
        """In metrics, logs and the ledger."""
        return self.options.name

    @property
    def origin(self) -> Origin:
        """Where it is."""
        return self.options.origin

    @property
    def breaker_state(self) -> str:
        """closed, open, or half_open: also one that the next stream may try.

        Otherwise /ready would say open for as long as no stream comes, and none would come for as long as it says so.
        """
        state = self.breaker.state
        if state is State.OPEN and self.breaker.allows(self._clock()):
            state = State.HALF_OPEN
        return state.value

    @property
    def models(self) -> tuple[str, ...]:
        """What may be asked for; empty = anything."""
        return tuple(self.options.models)

    # ---- for the choice

    def serves(self, model: str) -> bool:
        """Whether it has this model."""
        return not self.options.models or model in self.options.models

    def is_full(self) -> bool:
        """Whether it has as many streams as are allowed."""
        return 0 < self.options.streams_max <= self.active_count

    def can(self, now_s: float) -> bool:
        """Whether it can take another stream."""
        return now_s >= self.parked_until_s and not self.is_full() and self.breaker.allows(now_s)

    def load(self) -> float:
        """Streams, for its weight."""
        return self.active_count / self.options.weight

    # ---- attempts

    def wait_s(self, now_s: float) -> float:
        """How long it wants to be left alone."""
        return max(0.0, self.parked_until_s - now_s)

    def begin(self, now_s: float) -> Running:
        """An attempt begins."""
        permit = self.breaker.begin(now_s)
        self.active_count += 1
        return Running(self, permit)

    def park(self, until_s: float, *, is_rate_limited: bool) -> None:
        """It asked to be left alone until then."""
        if until_s > self.parked_until_s:
            self.parked_until_s = until_s
            self.is_rate_limited = is_rate_limited


class Upstreams:
    """All of them."""

    def __init__(
        self,
        options: Sequence[UpstreamOptions],
        randomness: random.Random,
        changed: Callable[[str, str], None],
        clock: Callable[[], float],
    ) -> None:
        """At least one."""
        self._randomness = randomness
        self._changed = changed
        self._clock = clock
        self.states: tuple[UpstreamState, ...] = ()
        self._serves_all = False  # every upstream has any model
        self.configure(options)

    def configure(self, options: Sequence[UpstreamOptions]) -> None:
        """The configuration, as it is now. Who is asked at the same address as before keeps its history."""
        assert options, "there is always one"
        before = {state.name: state for state in self.states}
        self.states = tuple(self._configured(one, before.get(one.name)) for one in options)
        self._serves_all = not any(one.models for one in options)

    def _configured(self, options: UpstreamOptions, before: UpstreamState | None) -> UpstreamState:
        if before is None or _place(before.options) != _place(options):
            return UpstreamState(options, self._changed, self._clock)
        # An origin stands for connections that are open: it stays the same object as long as it says the same.
        if asdict(before.options.origin) == asdict(options.origin):
            options = replace(options, origin=before.options.origin)
        before.options = options
        before.breaker.configure(options.breaker)
        return before

    def candidates(self, model: str, name: str) -> tuple[UpstreamState, ...]:
        """Who serves the model, of all, or of the one that is named. Raises RequestError where nobody does."""
        known = self.states
        if self._serves_all and not name:
            return known
        if name:
            known = tuple(state for state in known if state.name == name)
            if not known:
                names = _listed(state.name for state in self.states)
                raise RequestError(
                    "unknown_upstream", f"field `upstream`: known upstreams are {names}", param="upstream"
                )
        found = tuple(state for state in known if state.serves(model))
        if not found:
            models = _listed(dict.fromkeys(model for state in known for model in state.models))
            message = f"field `model`: no upstream serves it: known are {models}"
            raise RequestError("model_not_found", message, param="model")
        return found

    def choose(
        self, candidates: Sequence[UpstreamState], excluded: Collection[UpstreamState], now_s: float
    ) -> UpstreamState | None:
        """Who is asked, or None where nobody can be."""
        if len(candidates) == 1 and not excluded:
            return candidates[0] if candidates[0].can(now_s) else None
        able = [state for state in candidates if state not in excluded and state.can(now_s)]
        if len(able) <= 1:
            return able[0] if able else None
        first = min(state.options.priority for state in able)
        able = [state for state in able if state.options.priority == first]
        least = min(state.load() for state in able)
        equals = [state for state in able if state.load() == least]
        if len(equals) == 1:
            return equals[0]
        # By weight too, or upstreams that are idle most of the time would share alike.
        weights = [state.options.weight for state in equals]
        return self._randomness.choices(equals, weights)[0]

    @staticmethod
    def refusal(candidates: Sequence[UpstreamState], now_s: float) -> RelayError:
        """Why nobody can be asked, and when to come back."""
        if any(state.is_full() for state in candidates):
            return RelayError(
                *(503, "upstream_busy", "every upstream that can be asked has as many streams as are allowed"),
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        waits = [max(state.wait_s(now_s), state.breaker.wait_s(now_s)) for state in candidates]
        retry_after_s = whole_seconds(min(waits))
        if all(state.wait_s(now_s) > 0 and state.is_rate_limited for state in candidates):
            message = "the upstream asked for fewer requests"
            return RelayError(429, "upstream_rate_limited", message, retry_after_s=retry_after_s)
        message = "no upstream can be asked now, because the last streams failed there"
        return RelayError(503, "upstream_unavailable", message, retry_after_s=retry_after_s)


def _place(options: UpstreamOptions) -> tuple[object, ...]:
    origin = options.origin
    return origin.scheme, origin.host, origin.port, origin.socket_path


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    shown = ", ".join(found[:_NAMES_SHOWN_MAX])
    return f"{shown}, ..." if len(found) > _NAMES_SHOWN_MAX else shown
