"""Request counters of the HTTP front, exported to Prometheus. Main thread; imports nothing of the front."""

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
    """Requests by route, method and status. Labels are routes, not request paths, which bounds the series."""

    def __init__(self) -> None:
        """Counters that can be made before the front exists."""
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self.connection_count: Callable[[], int] = int  # 0 until the server sets it

    def on_response(self, scope: Mapping[str, Any] | None, status: int) -> None:
        """A response begins; `scope` is None when the request could not be parsed."""
        route, method = "other", "other"
        if scope is not None:
            route = getattr(scope.get("route"), "path", route)
            method = scope["method"] if scope["method"] in _METHODS else method
        self._requests[route, method, status] += 1

    def collect(self) -> Iterator[Metric]:
        """Called at a scrape."""
        requests = CounterMetricFamily(
            PREFIX + "requests",
            "Requests over HTTP by route, method and status; including those whose socket the data plane took.",
            labels=("route", "method", "status"),
        )
        for (route, method, status), count in self._requests.items():
            requests.add_metric((route, method, str(status)), count)
        yield requests
        yield GaugeMetricFamily(
            PREFIX + "connections", "Connections of the HTTP front, excluding streams.", self.connection_count()
        )
