"""One stream's story with its upstreams: whom to ask, whom to ask next, what to say when nobody is left. Main thread.

`first` chooses, `failed` settles an attempt and chooses again or gives up, `ended` settles the last attempt and writes
the stream's row. An attempt is in `_running` from its beginning to its end, and nowhere else.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from backends.openai.errors import of_failure
from backends.openai.ledger import LedgerRow
from backends.openai.request import CHARACTERS_PER_TOKEN
from backends.openai.retries import Blame, Verdict, backoff_ms, blame, retry_after_s, verdict, whole_seconds
from backends.openai.upstreams import PARKED_S_MAX, Upstreams
from backends.relay import Attempt, Failure, FailureKind, Relay, RelayError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from backends.openai.accounts import RelayAccounts
    from backends.openai.ledger import Ledger
    from backends.openai.request import Prepared
    from backends.openai.retries import RetryBudget
    from backends.openai.upstreams import Running, UpstreamState
    from backends.relay import Outcome

ERROR_CHARACTERS_MAX = 200
LABELS_MAX = 64
OTHER = "other"

logger = logging.getLogger(__name__)


class RetryOptions(NamedTuple):
    """How often, and how soon, a stream asks again."""

    attempts_max: int
    backoff_ms: int
    backoff_max_ms: int
    retry_after_max_s: int


@dataclass
class Shared:
    """What all streams of a backend have in common."""

    upstreams: Upstreams
    retries: RetryOptions
    budget: RetryBudget
    accounts: RelayAccounts
    ledger: Ledger
    randomness: random.Random
    clock: Callable[[], float]  # monotonic
    wall_clock: Callable[[], float]  # Unix time
    known_models: frozenset[str]  # that the configuration names
    served_models: set[str] = field(default_factory=set[str])

    def label(self, model: str) -> str:
        """The model as a label: a client may write anything there, so any other has one only once it was served."""
        return model if model in self.known_models or model in self.served_models else OTHER

    def served(self, model: str) -> None:
        """An upstream has this model."""
        if model not in self.known_models and len(self.served_models) < LABELS_MAX:
            self.served_models.add(model)


class OpenAIRelay(Relay):
    """A stream that is relayed."""

    def __init__(self, shared: Shared, prepared: Prepared, user: int | str | None) -> None:
        """Raises RequestError where no upstream serves it."""
        self.format = prepared.format
        self.passes_usage = prepared.passes_usage
        self.request_id = prepared.request_id
        self._shared = shared
        self._user = user
        self._model = prepared.model
        self._prompt_characters = prepared.prompt_characters
        self._candidates = shared.upstreams.candidates(prepared.model, prepared.upstream)
        self._prepared: Prepared | None = prepared  # let go of when nobody can be asked any more
        self._running: Running | None = None
        self._verdicts: dict[UpstreamState, Verdict] = {}  # of those that failed, the last one each
        self._blamed: set[UpstreamState] = set()
        self._attempt_count = 0
        self._return_count = 0
        self._last_name = ""
        self._model_answered = ""
        self._has_answered = False
        self._is_over = False
        self._error: RelayError | None = None
        self._error_status = 0

    # ---- for the daemon

    def first(self) -> Attempt:
        """Whom to ask. Raises RelayError when nobody can be asked."""
        assert self._attempt_count == 0, "a stream begins once"
        shared = self._shared
        shared.budget.stream_began()
        now_s = shared.clock()
        chosen = shared.upstreams.choose(self._candidates, (), now_s)
        if chosen is None:
            self._give_up(shared.upstreams.refusal(self._candidates, now_s), is_streaming=False)
        return self._attempt(chosen, now_s, 0)

    def failed(self, failure: Failure) -> Attempt:
        """Whom to ask next. Raises RelayError with what the client is told."""
        running, self._running = self._running, None
        assert running is not None, "only an attempt that is on can fail"
        shared = self._shared
        now_s = shared.clock()
        wait_s = self._settle(running, failure, now_s)
        self._verdicts[running.upstream] = verdict(failure)
        found = self._next(running.upstream, now_s)
        if found is None:
            error = of_failure(failure, running.options, 0 if wait_s is None else whole_seconds(wait_s))
            self._give_up(error, is_streaming=failure.is_streaming)
        chosen, delay_ms = found
        shared.accounts.retried(chosen.name)
        return self._attempt(chosen, now_s, delay_ms)

    def answered(self, model: str) -> None:
        """The first token came."""
        assert self._running is not None, "only an attempt that is on can be answered"
        self._has_answered = True
        self._model_answered = model
        self._shared.served(self._model)
        self._running.answered()

    def ended(self, outcome: Outcome) -> None:
        """The stream is over."""
        assert not self._is_over, "a stream ends once"
        self._is_over = True
        self._prepared = None
        running, self._running = self._running, None
        if running is not None and (outcome.is_complete or self._has_answered):
            running.succeeded()
        elif running is not None:
            running.abandoned()
        row = self._row(outcome)
        self._shared.accounts.stream_ended(self._last_name, self._model, row, outcome)
        self._shared.ledger.write(row)

    def cancelled(self, seconds: float) -> None:
        """The upstream was let go of, on another thread."""
        self._shared.accounts.cancelled(self._last_name, seconds)

    # ---- whom to ask

    def _attempt(self, upstream: UpstreamState, now_s: float, delay_ms: int) -> Attempt:
        prepared, options = self._prepared, upstream.options
        assert prepared is not None, "nobody is asked once the client has had something"
        sent = options.models.get(prepared.model, prepared.model)
        body = prepared.encoded(sent, options.defaults)
        self._running = upstream.begin(now_s)
        self._has_answered, self._model_answered = False, ""
        self._attempt_count += 1
        self._last_name = upstream.name
        return Attempt(
            origin=options.origin,
            path=options.base_path + prepared.path,
            headers=options.headers + prepared.headers,
            body=body,
            model=self._shared.label(prepared.model),
            delay_ms=delay_ms,
        )

    def _settle(self, running: Running, failure: Failure, now_s: float) -> float | None:
        """What a failed attempt says about its upstream. How long that wants to be left alone, if it says so."""
        shared, upstream = self._shared, running.upstream
        is_status = failure.kind is FailureKind.STATUS
        wait_s = retry_after_s(failure.headers, shared.wall_clock()) if is_status else None
        blamed = blame(failure, has_retry_after=wait_s is not None)
        # One stream's attempts are one failure of their upstream, or a single request could open its breaker.
        if blamed is Blame.UPSTREAM and upstream not in self._blamed:
            self._blamed.add(upstream)
            running.failed(now_s)
        elif blamed is Blame.REQUEST:
            running.succeeded()
        else:
            running.abandoned()
        if wait_s is not None and failure.status in {429, 503}:
            upstream.park(now_s + min(wait_s, PARKED_S_MAX), is_rate_limited=failure.status == 429)
        shared.accounts.attempt_failed(upstream.name, self._model, failure.kind)
        extra = {"upstream": upstream.name, "request_id": self.request_id, "kind": failure.kind.value}
        # A line for each would be a flood in an outage: of that the breaker says what matters.
        logger.debug("attempt failed", extra={**extra, "status": failure.status, "detail": failure.detail})
        if is_status and failure.status in {401, 403} and not upstream.refuses_key:
            upstream.refuses_key = True
            logger.warning(
                "upstream refuses the key, or what it is used for", extra={**extra, "status": failure.status}
            )
        return wait_s

    def _next(self, failed: UpstreamState, now_s: float) -> tuple[UpstreamState, int] | None:
        """Who is asked next, and after how long; None when it is over."""
        shared, retries = self._shared, self._shared.retries
        if self._verdicts[failed] is Verdict.FINAL or self._attempt_count >= retries.attempts_max:
            return None
        # A reload may have taken some of them away.
        candidates = [state for state in self._candidates if state in shared.upstreams.states]
        found = shared.upstreams.choose(candidates, self._verdicts, now_s)
        delay_ms = 0
        if found is None:
            found = self._returnable(candidates, now_s)
            if found is None:
                return None
            wait_s = found.wait_s(now_s)
            delay_ms = int(wait_s * 1000) + self._backoff_ms()
        if not shared.budget.spend(now_s):
            logger.debug("no retry: the budget is spent", extra={"request_id": self.request_id})
            return None
        self._return_count += found in self._verdicts
        return found, delay_ms

    def _returnable(self, candidates: list[UpstreamState], now_s: float) -> UpstreamState | None:
        """The best of those that have failed once and may be asked again: nobody else is left."""
        wait_s_max = self._shared.retries.retry_after_max_s
        able = [
            state
            for state in candidates
            if self._verdicts.get(state) is Verdict.AGAIN
            and not state.is_full()
            and state.breaker.allows(now_s)
            and state.wait_s(now_s) <= wait_s_max
        ]
        return min(able, key=lambda state: (state.wait_s(now_s), state.options.priority, state.load()), default=None)

    def _backoff_ms(self) -> int:
        shared = self._shared
        retries = shared.retries
        return backoff_ms(self._return_count + 1, retries.backoff_ms, retries.backoff_max_ms, shared.randomness)

    def _give_up(self, error: RelayError, *, is_streaming: bool) -> NoReturn:
        self._error = error
        self._error_status = 200 if is_streaming else error.status
        self._prepared = None
        raise error

    # ---- the row

    def _row(self, outcome: Outcome) -> LedgerRow:
        has_begun = self._has_answered or outcome.is_complete or outcome.first_token_s is not None
        prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
        if completion is None:
            completion = outcome.token_count
        if prompt is None:
            # Of a stream that was never answered it is not known that it cost anything.
            prompt = -(-self._prompt_characters // CHARACTERS_PER_TOKEN) if has_begun else 0
        error = self._error
        status = outcome.status
        if status is None:
            status = self._error_status if error is not None else 200 if has_begun or outcome.bytes_sent else 0
        told = outcome.error if error is None else f"{error.code}: {error.message}"
        return LedgerRow(
            time=_rfc3339(self._shared.wall_clock()) if self._shared.ledger.is_on else "",
            request_id=self.request_id,
            user=self._user,
            upstream=self._last_name,
            model_asked=self._model,
            model_answered=self._model_answered,
            prompt_tokens=prompt,
            completion_tokens=completion,
            estimated=outcome.prompt_tokens is None or outcome.completion_tokens is None,
            first_token_ms=None if outcome.first_token_s is None else round(outcome.first_token_s * 1000, 3),
            duration_ms=round(outcome.duration_s * 1000, 3),
            bytes=outcome.bytes_sent,
            retries=max(0, self._attempt_count - 1),
            end_reason=outcome.reason,
            status=status,
            error=told[:ERROR_CHARACTERS_MAX],
        )


def _rfc3339(wall_s: float) -> str:
    whole, milliseconds = divmod(round(wall_s * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"
