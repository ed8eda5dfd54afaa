"""What the HTTP front counts of its requests, and how Prometheus gets it. Main thread; it imports none of the front."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import Metric

PREFIX = "streaming_daemon_http_"
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})


class HttpAccounts(Collector):
    """Requests by route, method and status. Routes make the series, not whatever clients ask for."""

    def __init__(self) -> None:
        """Before the front is there."""
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self.connection_count: Callable[[], int] = int  # 0, until the server says

    def answered(self, scope: Mapping[str, Any] | None, status: int) -> None:
        """A response begins; without a scope the request could not be parsed."""
        route, method = "other", "other"
        if scope is not None:
            route = getattr(scope.get("route"), "path", route)
            method = scope["method"] if scope["method"] in _METHODS else method
        self._requests[route, method, status] += 1

    def collect(self) -> Iterator[Metric]:
        """At a scrape."""
        requests = CounterMetricFamily(
            PREFIX + "requests",
            "Requests over HTTP by route, method and status; those whose socket was taken among them.",
            labels=("route", "method", "status"),
        )
        for (route, method, status), count in self._requests.items():
            requests.add_metric((route, method, str(status)), count)
        yield requests
        yield GaugeMetricFamily(
            PREFIX + "connections", "Connections of the HTTP front, streams not counted.", self.connection_count()
        )
