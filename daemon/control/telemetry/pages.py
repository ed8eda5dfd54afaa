"""/health, /ready and /metrics: the daemon's state over HTTP."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from config import VERSION
from config.library import PLANE, level_of
from daemon.control.telemetry.server import PageResponse, json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.registry import Collector

    from daemon.control.telemetry.server import Page
    from daemon.control.telemetry.stream_counts import Accounts
    from daemon.control.wiring import Planes


class UpstreamStatus(NamedTuple):
    """The state of an upstream server."""

    name: str
    reachable: bool | None  # None: not known yet
    breaker: str  # closed, half_open or open; half_open also when a retry is due
    is_default: bool  # the default backend uses it

    @property
    def is_usable(self) -> bool:
        """Whether a new stream may use it. Unknown counts as usable."""
        return self.reachable is not False and self.breaker != "open"


class Condition:
    """State that the pages show beside the counters."""

    def __init__(self, planes: Planes, backend_names: list[str], streams_max: int) -> None:
        """The planes are running; the service sets when streams are accepted, and when no longer."""
        self.planes = planes
        self.backend_names = backend_names
        self.streams_max = streams_max
        self.is_started = False
        self.is_draining = False
        self.upstreams: Callable[[], Iterable[UpstreamStatus]] = tuple  # empty until relaying sets it

    def reason_not_ready(self, upstreams: Iterable[UpstreamStatus]) -> str:
        """Why a new handoff would be refused, as far as is known. Empty when it would be accepted."""
        if not self.is_started:
            return "starting"
        if self.is_draining:
            return "draining"
        # One usable upstream is enough; upstreams that only a handoff can name do not count.
        of_default = [upstream for upstream in upstreams if upstream.is_default]
        if of_default and not any(upstream.is_usable for upstream in of_default):
            return "no upstream of the default backend is available"
        return ""


def health_page(accounts: Accounts) -> Page:
    """Healthy as long as this function runs: the control plane makes progress. A dead data plane ends the process."""

    def health(_accept: str) -> PageResponse:
        uptime_s = (time.monotonic_ns() - accounts.start_ns) // 1_000_000_000
        fields = {
            "status": "healthy",
            "timestamp": int(time.time()),
            "version": VERSION,
            "uptime_seconds": uptime_s,
        }
        return json_response(HTTPStatus.OK, fields)

    return health


def ready_page(accounts: Accounts, condition: Condition) -> Page:
    """200 when new streams are accepted, otherwise 503; both give the reason."""
    planes = condition.planes

    def ready(_accept: str) -> PageResponse:
        backends: dict[str, dict[str, int]] = {}
        for name in condition.backend_names:
            counts = accounts.backends[name]
            backends[name] = {
                "active": counts.active,
                "started": counts.started,
                "completed": counts.completed,
                "failed": counts.failed,
            }
        upstreams = list(condition.upstreams())
        reason = condition.reason_not_ready(upstreams)
        fields: dict[str, object] = {
            # Clients of model servers look for these. The only worker is the data plane, which serves all streams.
            "model_ready": not reason,
            "queue_size": planes.queue_length(),
            "max_queue_size": planes.queue_length_max(),
            "device": "cpu",
            "workers": [
                {"worker_id": "worker_0", "is_ready": planes.is_accepting, "processed_requests": accounts.completed}
            ],
            "ready": not reason,
            "reason": reason,
            "draining": condition.is_draining,
            "accepting": planes.is_accepting,
            "kernel": planes.data_plane.kernel,
            "kernel_reason": planes.data_plane.kernel_reason,
            "streams": accounts.active,
            "streams_max": condition.streams_max,
            "queue_length": planes.queue_length(),
            "backends": backends,
            "upstreams": {each.name: {"reachable": each.reachable, "breaker": each.breaker} for each in upstreams},
        }
        return json_response(HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK, fields)

    return ready


def metrics_page(
    accounts: Accounts, condition: Condition, *, thread_pool: bool, collectors: Sequence[Collector] = ()
) -> Page:
    """Prometheus metrics. The library is imported only here, so disabled metrics cost no memory.

    `collectors` are those of optional parts, such as relaying.
    """
    from daemon.control.telemetry.metrics import DaemonCollector, MetricsPage  # noqa: PLC0415

    planes = condition.planes
    information = {
        "version": VERSION,
        "kernel": planes.data_plane.kernel,
        "level": level_of(PLANE),
        "sqpoll": str(int(planes.data_plane.features.get("sqpoll", False))),
        "thread_pool": str(int(thread_pool)),
    }
    own = DaemonCollector(planes.plane, accounts, information, condition.streams_max, planes.queue_length)
    return MetricsPage(own, *collectors)
