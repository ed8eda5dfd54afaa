"""What relaying counts: how streams ended, what failed, tokens, and how long clients waited. Plain Python, main thread.

Called a few times per stream, never per token, and read at a scrape (daemon/control/telemetry/relay_metrics.py);
nothing here knows Prometheus. Bounds of the histograms are those of OpenTelemetry's conventions for generative AI.

Labels are bounded: a model has a label of its own once an upstream has answered for it, and only the first 64 of an
upstream have one, the rest are `other`. So a client cannot use labels up with names of models that nobody serves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from backends.openai.ledger import LedgerRow
    from backends.relay import FailureKind, Outcome

MODELS_MAX = 64  # per upstream
MODEL_CHARACTERS_MAX = 128
OTHER = "other"
NO_UPSTREAM = "none"  # the stream ended before one could be asked

# gen_ai.server.time_to_first_token, gen_ai.server.time_per_output_token, gen_ai.server.request.duration and
# gen_ai.client.token.usage, as the conventions give them.
FIRST_TOKEN_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION_BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
USAGE_BOUNDS_TOKENS = tuple(4.0**power for power in range(14))
# Ours: from a cancellation that nobody notices to a drain of half a minute.
CANCEL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

COMPLETE = "complete"
CLIENT_GONE = "client_gone"
# Ends for which it is not the last attempt that failed: it was still running, so `attempt_failed` was not told of it.
_ENDS_OF_RUNNING_ATTEMPTS = frozenset(
    {COMPLETE, CLIENT_GONE, "write_timeout", "send_error", "stream_timeout", "shutdown"}
)


class Histogram:
    """Counts of values by bucket, not added up; bucket i holds what is at most `bounds[i]`, the last one the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Empty."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Models(NamedTuple):
    """Which model was asked for and which one answered, as labels; `answered` is empty where none did."""

    asked: str
    answered: str


class ModelAccounts:
    """Streams of one upstream with one pair of models."""

    __slots__ = ("durations", "ended", "first_token", "per_token", "usage")

    def __init__(self) -> None:
        """None yet."""
        self.ended: Counter[str] = Counter()  # by reason
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
        self.per_token = Histogram(TOKEN_BOUNDS_S)
        self.durations: dict[str, Histogram] = {}  # by the kind of error, empty for a complete stream
        self.usage: dict[tuple[str, bool], Histogram] = {}  # by input or output, and whether it is an estimate


class UpstreamAccounts:
    """Everything about one upstream."""

    __slots__ = (
        "_labels",
        "attempts_unfailed",
        "breaker_changes",
        "breaker_state",
        "cancel",
        "cancellations",
        "failures",
        "malformed_events",
        "models",
        "retries",
        "stale_connections",
    )

    def __init__(self) -> None:
        """Nothing has happened."""
        self.models: dict[Models, ModelAccounts] = {}
        self.failures: Counter[tuple[str, str]] = Counter()  # by model asked and kind
        self.retries = 0
        self.attempts_unfailed = 0
        self.cancellations = 0
        self.cancel = Histogram(CANCEL_BOUNDS_S)
        self.malformed_events = 0
        self.stale_connections = 0
        self.breaker_state = "closed"
        self.breaker_changes: Counter[str] = Counter()  # by the state it changed to
        self._labels: set[str] = set()

    @property
    def attempts(self) -> int:
        """Attempts that are over: those that failed, and those of streams that ended otherwise."""
        return self.failures.total() + self.attempts_unfailed

    def label(self, model: str, *, is_served: bool) -> str:
        """The model's label. Only one that is served gets a new one, as long as there is room."""
        if not model or model in self._labels:
            return model
        if is_served and len(self._labels) < MODELS_MAX and len(model) <= MODEL_CHARACTERS_MAX:
            self._labels.add(model)
            return model
        return OTHER

    def of_models(self, asked: str, answered: str, *, is_served: bool) -> ModelAccounts:
        """The accounts of these two models, which are bounded like their labels."""
        models = Models(self.label(asked, is_served=is_served), self.label(answered, is_served=is_served))
        found = self.models.get(models)
        if found is not None:
            return found
        if models.answered and len(self.models) >= 2 * MODELS_MAX:  # 64 labels could still make 4,096 pairs
            models = Models(models.asked, OTHER)
        return self.models.setdefault(models, ModelAccounts())


class RelayAccounts:
    """Counts since the start. Upstreams come from the configuration, so they are few."""

    __slots__ = ("upstreams",)

    def __init__(self) -> None:
        """No upstream has been asked."""
        self.upstreams: dict[str, UpstreamAccounts] = {}

    def of(self, upstream: str) -> UpstreamAccounts:
        """The accounts of one upstream."""
        name = upstream or NO_UPSTREAM
        found = self.upstreams.get(name)
        if found is None:
            found = self.upstreams[name] = UpstreamAccounts()
        return found

    # ---- what the backend tells

    def attempt_failed(self, upstream: str, model: str, kind: FailureKind) -> None:
        """One attempt to get an answer, or to go on with one, failed."""
        accounts = self.of(upstream)
        accounts.failures[accounts.label(model, is_served=False), kind.value] += 1

    def retried(self, upstream: str) -> None:
        """Another attempt follows a failed one; `upstream` is the one that is asked now."""
        self.of(upstream).retries += 1

    def breaker_changed(self, upstream: str, state: str) -> None:
        """The breaker is `closed`, `open` or `half_open` now."""
        accounts = self.of(upstream)
        accounts.breaker_state = state
        accounts.breaker_changes[state] += 1

    def stream_ended(self, upstream: str, model: str, row: LedgerRow, outcome: Outcome) -> None:
        """A stream is over. `upstream` is the last one that was asked, `model` what it was asked for."""
        accounts = self.of(upstream)
        accounts.malformed_events += outcome.malformed_events
        accounts.stale_connections += outcome.stale_retries
        if upstream and outcome.reason in _ENDS_OF_RUNNING_ATTEMPTS:
            accounts.attempts_unfailed += 1
        if outcome.reason == CLIENT_GONE or outcome.cancel_s is not None:
            accounts.cancellations += 1
        if outcome.cancel_s is not None:
            accounts.cancel.observe(outcome.cancel_s)
        is_served = outcome.first_token_s is not None
        _account(accounts.of_models(model, row.model_answered, is_served=is_served), row, outcome)

    def cancelled(self, upstream: str, seconds: float) -> None:
        """So long after its client had left, an upstream was let go of; its stream's end has been told before."""
        self.of(upstream).cancel.observe(seconds)


def _account(accounts: ModelAccounts, row: LedgerRow, outcome: Outcome) -> None:
    reason = COMPLETE if outcome.is_complete else outcome.reason
    accounts.ended[reason] += 1
    error = "" if outcome.is_complete else reason
    duration = accounts.durations.get(error)
    if duration is None:
        duration = accounts.durations[error] = Histogram(DURATION_BOUNDS_S)
    duration.observe(outcome.duration_s)
    if outcome.first_token_s is not None:
        accounts.first_token.observe(outcome.first_token_s)
        per_token_s = _time_per_output_token(row, outcome, outcome.first_token_s)
        if per_token_s is not None:
            accounts.per_token.observe(per_token_s)
    for direction, tokens in (("input", row.prompt_tokens), ("output", row.completion_tokens)):
        if tokens is None:
            continue
        usage = accounts.usage.get((direction, row.estimated))
        if usage is None:
            usage = accounts.usage[direction, row.estimated] = Histogram(USAGE_BOUNDS_TOKENS)
        usage.observe(tokens)


def _time_per_output_token(row: LedgerRow, outcome: Outcome, first_token_s: float) -> float | None:
    """The conventions': after the first token, of streams that went well. None where there were not two tokens."""
    tokens = outcome.token_count if row.completion_tokens is None else row.completion_tokens
    if not outcome.is_complete or tokens < 2:
        return None
    last_s = outcome.duration_s if outcome.last_token_s is None else outcome.last_token_s
    return max(0.0, last_s - first_token_s) / (tokens - 1)
