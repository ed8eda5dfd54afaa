"""Prometheus metrics of relayed streams, read at a scrape from counters of the backend and the data plane.

Names, labels and buckets follow OpenTelemetry's conventions for generative AI where they exist, in Prometheus'
spelling; the rest is `streaming_daemon_upstream_*`. Every family is exported from the first scrape on, and every
configured upstream has its counters at 0. Imported only when metrics are enabled.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from backends.openai.accounts import (
    DURATION_BOUNDS_S,
    FIRST_TOKEN_BOUNDS_S,
    TOKEN_BOUNDS_S,
    USAGE_BOUNDS_TOKENS,
    Histogram,
)
from daemon.control.telemetry.metrics import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client import Metric

    from backends.openai.accounts import RelayAccounts, UpstreamAccounts
    from daemon.plane.table import Plane

UPSTREAM = PREFIX + "upstream_"
INTER_TOKEN_BUCKETS_S = TOKEN_BOUNDS_S
BREAKER_STATES = ("closed", "half_open", "open")
# The conventions' name for any server that speaks OpenAI's protocol, whatever the model.
PROVIDER = "openai"
OPERATION = "chat"
_COMMON = ("gen_ai_operation_name", "gen_ai_provider_name", "upstream", "gen_ai_request_model", "gen_ai_response_model")


class UpstreamView(Protocol):
    """What a scrape reads from a configured upstream."""

    @property
    def name(self) -> str:
        """As in the configuration."""
        ...

    @property
    def breaker_state(self) -> str:
        """`closed`, `open` or `half_open`; `half_open` also when an open breaker's time is over."""
        ...

    @property
    def active_count(self) -> int:
        """Streams that have requested or receive data from it."""
        ...


class _Family(NamedTuple):
    """A histogram from the conventions."""

    name: str
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]


_FIRST_TOKEN = _Family(
    "gen_ai_server_time_to_first_token_seconds",
    "From the accept of a handoff to the first token.",
    _COMMON,
    FIRST_TOKEN_BOUNDS_S,
)
_PER_TOKEN = _Family(
    "gen_ai_server_time_per_output_token_seconds",
    "Time per token after the first, one sample per complete stream.",
    _COMMON,
    TOKEN_BOUNDS_S,
)
_DURATION = _Family(
    "gen_ai_server_request_duration_seconds",
    "From the accept of a handoff to the end of its stream.",
    (*_COMMON, "error_type"),
    DURATION_BOUNDS_S,
)
_USAGE = _Family(
    "gen_ai_client_token_usage",
    "Tokens used by a stream.",
    (*_COMMON, "gen_ai_token_type", "estimated"),
    USAGE_BOUNDS_TOKENS,
)


class RelayCollector(Collector):
    """Exports all metrics of relayed streams."""

    def __init__(
        self,
        accounts: RelayAccounts,
        upstreams: Callable[[], Iterable[UpstreamView]],
        inter_token: Callable[[], Iterable[tuple[str, str, Sequence[int], float]]],
        rows_dropped: Callable[[], int] = int,
    ) -> None:
        """`rows_dropped` returns the ledger's count.

        `inter_token` yields upstream, model, counts by bucket (one more than there are bounds, not cumulative) and the
        sum in seconds.
        """
        self._accounts = accounts
        self._upstreams = upstreams
        self._inter_token = inter_token
        self._rows_dropped = rows_dropped

    def collect(self) -> Iterator[Metric]:
        """A scrape; the control plane's own values in it are from one instant."""
        views = list(self._upstreams())
        for view in views:
            self._accounts.of(view.name)  # registers the upstream, so that its counters are exported at 0
        yield from self._conventions()
        yield from self._gauges(views)
        yield from self._counters()
        yield from self._histograms()
        yield CounterMetricFamily(PREFIX + "ledger_rows_dropped", "Ledger rows dropped.", value=self._rows_dropped())

    def _conventions(self) -> Iterator[Metric]:
        families = {family: _histogram(family) for family in (_FIRST_TOKEN, _PER_TOKEN, _DURATION, _USAGE)}
        for upstream, accounts in self._accounts.upstreams.items():
            for models, counts in accounts.models.items():
                labels = [OPERATION, PROVIDER, upstream, *models]
                _add(families[_FIRST_TOKEN], labels, counts.first_token)
                _add(families[_PER_TOKEN], labels, counts.per_token)
                for error, duration in counts.durations.items():
                    _add(families[_DURATION], [*labels, error], duration)
                for (direction, is_estimated), usage in counts.usage.items():
                    _add(families[_USAGE], [*labels, direction, str(is_estimated).lower()], usage)
        yield from families.values()

    def _gauges(self, views: list[UpstreamView]) -> Iterator[Metric]:
        active = GaugeMetricFamily(
            UPSTREAM + "streams_active", "Streams that wait for or receive data from an upstream.", labels=["upstream"]
        )
        breaker = GaugeMetricFamily(
            UPSTREAM + "breaker_state", "1 for the current state of a circuit breaker.", labels=["upstream", "state"]
        )
        for view in views:
            active.add_metric([view.name], view.active_count)
            state_now = view.breaker_state
            for state in BREAKER_STATES:
                breaker.add_metric([view.name, state], float(state == state_now))
        yield active
        yield breaker

    def _counters(self) -> Iterator[Metric]:
        upstreams = self._accounts.upstreams
        for name, text, value_of in _UPSTREAM_COUNTERS:
            family = CounterMetricFamily(UPSTREAM + name, text, labels=["upstream"])
            for upstream, accounts in upstreams.items():
                family.add_metric([upstream], value_of(accounts))
            yield family
        failures = CounterMetricFamily(
            UPSTREAM + "attempt_failures", "Failed attempts by kind of failure.", labels=["upstream", "kind"]
        )
        changes = CounterMetricFamily(
            UPSTREAM + "breaker_changes", "Transitions of a circuit breaker by new state.", labels=["upstream", "state"]
        )
        ended = CounterMetricFamily(
            UPSTREAM + "streams_ended",
            "Relayed streams by the reason they ended.",
            labels=["upstream", "gen_ai_request_model", "reason"],
        )
        for upstream, accounts in upstreams.items():
            kinds: Counter[str] = Counter()
            for (_, kind), count in accounts.failures.items():
                kinds[kind] += count
            _add_counts(failures, [upstream], kinds)
            _add_counts(
                changes, [upstream], Counter({state: accounts.breaker_changes[state] for state in BREAKER_STATES})
            )
            for model, reasons in _ends_by_model(accounts).items():
                _add_counts(ended, [upstream, model], reasons)
        yield failures
        yield changes
        yield ended

    def _histograms(self) -> Iterator[Metric]:
        cancel = HistogramMetricFamily(
            UPSTREAM + "cancel_seconds",
            "From a client's disconnect to the close of its upstream connection.",
            labels=["upstream"],
        )
        for upstream, accounts in self._accounts.upstreams.items():
            _add(cancel, [upstream], accounts.cancel)
        yield cancel
        between = HistogramMetricFamily(
            UPSTREAM + "inter_token_seconds",
            "Between two tokens of a stream, for all gaps of all streams.",
            labels=["upstream", "gen_ai_request_model"],
        )
        for upstream, model, counts, sum_s in self._inter_token():
            assert len(counts) == len(INTER_TOKEN_BUCKETS_S) + 1
            between.add_metric([upstream, model], _cumulative(INTER_TOKEN_BUCKETS_S, counts), sum_s)
        yield between


def inter_token_of(plane: Plane, names: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, list[int], float]]:
    """The data plane's histograms, for `RelayCollector`. `names[n]` are upstream and model of series n."""
    for (upstream, model), words in zip(names, plane.gaps.tolist(), strict=False):
        yield upstream, model, words[: len(INTER_TOKEN_BUCKETS_S) + 1], words[-1] / 1e9


def _attempts(accounts: UpstreamAccounts) -> int:
    return accounts.attempts


def _retries(accounts: UpstreamAccounts) -> int:
    return accounts.retries


def _cancellations(accounts: UpstreamAccounts) -> int:
    return accounts.cancellations


def _malformed_events(accounts: UpstreamAccounts) -> int:
    return accounts.malformed_events


def _stale_connections(accounts: UpstreamAccounts) -> int:
    return accounts.stale_connections


_UPSTREAM_COUNTERS = (
    ("attempts", "Finished attempts, failed or not.", _attempts),
    ("retries", "Retries after a failed attempt, by the upstream of the retry.", _retries),
    ("cancellations", "Streams whose client disconnected.", _cancellations),
    ("malformed_events", "Events that were not JSON and were skipped.", _malformed_events),
    ("stale_connections", "Reused connections found dead and replaced.", _stale_connections),
)


def _ends_by_model(accounts: UpstreamAccounts) -> dict[str, Counter[str]]:
    ends: dict[str, Counter[str]] = {}
    for models, counts in accounts.models.items():
        ends.setdefault(models.asked, Counter()).update(counts.ended)
    return ends


def _histogram(family: _Family) -> HistogramMetricFamily:
    return HistogramMetricFamily(family.name, family.text, labels=family.labels)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    family.add_metric(labels, _cumulative(histogram.bounds, histogram.counts), histogram.total)


def _add_counts(family: CounterMetricFamily, labels: list[str], counts: Counter[str]) -> None:
    for last, count in counts.items():
        family.add_metric([*labels, last], count)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets in Prometheus' form: upper bounds as text, cumulative counts."""
    totals = list(accumulate(counts))
    names = [*(repr(float(bound)) for bound in bounds), "+Inf"]
    return [(name, float(total)) for name, total in zip(names, totals, strict=True)]
