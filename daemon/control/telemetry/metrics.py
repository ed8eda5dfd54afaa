"""Prometheus metrics, read from the planes' counters at each scrape: no cost between scrapes.

prometheus-client formats them; it is imported only when metrics are enabled.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from daemon.control.telemetry.server import PageResponse
from daemon.plane import counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

    from daemon.control.telemetry.stream_counts import Accounts
    from daemon.plane.table import Plane

PREFIX = "streaming_daemon_"
# Bucket k of the plane ends at 2**k us. Exported: 16 us to 2**32 us (72 minutes).
BUCKET_FIRST, BUCKET_LAST = 4, 32

HISTOGRAM_HELP = {
    "handoff": "From the accept of a handoff to the decision what to stream.",
    "first_byte": "From the accept of a handoff to the first byte taken by the client's socket.",
    "message_interval": "Between two sends of one stream.",
    "stream_duration": "From the accept of a handoff to the end of its stream.",
    "queue_wait": "From admission until a worker has taken the stream.",
}
PLANE_COUNTERS = (
    (counters.BYTES_SENT, "bytes", "Bytes sent to clients."),
    (counters.MESSAGES_SENT, "messages", "Messages sent to clients."),
    (counters.KEEP_ALIVES, "keep_alives", "Keep-alive comments sent while a source was silent."),
    (counters.ACCEPTED, "accepted", "Connections accepted from the handoff socket."),
    (counters.ACCEPT_PAUSES, "accept_pauses", "Times accepting stopped because descriptors or slots ran out."),
    (
        counters.STALE_COMPLETIONS,
        "stale_completions",
        "Completions that arrived too late and were dropped.",
    ),
    (counters.SENDS_BLOCKED, "sends_blocked", "Sends that waited because a client's socket buffer was full."),
    (counters.TURNS, "turns", "Turns of the data plane's loop."),
    (counters.BODY_BYTES, "body_bytes", "Bytes of uploads received."),
    (counters.CONNECTIONS_OPENED, "upstream_connections_opened", "Upstream connections opened by the data plane."),
    (counters.CONNECTIONS_REUSED, "upstream_connections_reused", "Upstream requests sent on a reused connection."),
    (counters.UPSTREAM_BYTES, "upstream_bytes", "Bytes received from upstreams."),
    (counters.TOKENS, "tokens", "Upstream events with content."),
)


class DaemonCollector(Collector):
    """Exports all of the daemon's counters."""

    def __init__(
        self,
        plane: Plane,
        accounts: Accounts,
        information: Mapping[str, str],
        streams_max: int,
        queue_length: Callable[[], int],
    ) -> None:
        """`information` becomes the labels of streaming_daemon_info."""
        self._plane = plane
        self._accounts = accounts
        self._information = dict(information)
        self._streams_max = streams_max
        self._queue_length = queue_length

    def collect(self) -> Iterator[Metric]:
        """A scrape; values are read one after another, so they are not from the same instant."""
        yield from self._gauges()
        yield from self._control_counters()
        values = self._plane.counters.tolist()
        for index, name, text in PLANE_COUNTERS:
            yield CounterMetricFamily(PREFIX + name, text, value=values[index])
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        accounts = self._accounts
        for name, text, value in (
            ("connections_active", "Open streams.", accounts.active),
            ("connections_peak", "Highest number of open streams since the start.", accounts.active_peak),
            ("connections_max", "Limit on open streams.", self._streams_max),
            ("queue_length", "Streams waiting for a worker.", self._queue_length()),
            ("slots_used", "Slots in use: streams, and handoffs being received or refused.",
             int(self._plane.counters[counters.SLOTS_USED])),
            ("upstream_connections_idle", "Idle upstream connections kept for reuse.",
             int(self._plane.counters[counters.CONNECTIONS_IDLE])),
        ):  # fmt: skip
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        info = GaugeMetricFamily(PREFIX + "info", "Version of this daemon.", labels=list(self._information))
        info.add_metric(list(self._information.values()), 1)
        yield info

    def _control_counters(self) -> Iterator[Metric]:
        accounts = self._accounts
        requests = {"started": accounts.started, "completed": accounts.completed, "failed": accounts.failed}
        yield _labelled("requests", "Streams by outcome.", "status", requests)
        yield _labelled("streams_ended", "Freed slots by the reason the stream ended.", "reason", accounts.ended)
        yield _labelled("handoffs_rejected", "Refused handoffs by reason.", "reason", accounts.rejected)
        yield _labelled(
            "contained_exceptions",
            "Exceptions in the code of one connection or request, contained there.",
            "kind",
            accounts.contained,
        )
        reloads = {"ok": accounts.reloads, "failed": accounts.reloads_failed}
        yield _labelled("config_reloads", "Reloads of the configuration.", "result", reloads)
        backends = CounterMetricFamily(
            PREFIX + "backend_requests", "Streams by backend and outcome.", labels=["backend", "status"]
        )
        for name, counts in accounts.backends.items():
            backends.add_metric([name, "started"], counts.started)
            backends.add_metric([name, "completed"], counts.completed)
            backends.add_metric([name, "failed"], counts.failed)
        yield backends

    def _histograms(self) -> Iterator[Metric]:
        sums_ns = self._plane.histogram_sums.tolist()
        for index, name in enumerate(counters.HISTOGRAMS):
            buckets = cumulative_buckets(self._plane.histograms[index].tolist())
            yield HistogramMetricFamily(
                f"{PREFIX}{name}_seconds", HISTOGRAM_HELP[name], buckets=buckets, sum_value=sums_ns[index] / 1e9
            )


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def cumulative_buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Convert the plane's buckets (k: below 2**k us) to Prometheus': upper bounds in seconds, cumulative counts."""
    buckets: list[tuple[str, float]] = []
    total = sum(counts[:BUCKET_FIRST])
    for bucket in range(BUCKET_FIRST, BUCKET_LAST + 1):
        total += counts[bucket]
        buckets.append((repr(2**bucket / 1e6), total))
    buckets.append(("+Inf", total + sum(counts[BUCKET_LAST + 1 :])))
    return buckets


class MetricsPage:
    """The page /metrics: metrics of the daemon, the process and the interpreter."""

    def __init__(self, collector: DaemonCollector, *others: Collector) -> None:
        """Use a registry of our own: the library's global one may be shared with a backend.

        `others` are collectors of optional parts.
        """
        self._registry = CollectorRegistry(auto_describe=False)
        for each in (collector, *others):
            self._registry.register(each)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def __call__(self, accept: str) -> PageResponse:
        """Text or OpenMetrics, by the scraper's Accept header."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # raised by the library for an invalid version
            encode, content_type = choose_encoder("")
        return PageResponse(HTTPStatus.OK, encode(self._registry), content_type)
