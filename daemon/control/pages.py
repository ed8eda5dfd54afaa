"""/health, /ready and /metrics: what the daemon says of itself over HTTP."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from config import VERSION
from daemon.control.monitoring import Answer, json_answer

if TYPE_CHECKING:
    from daemon.control.accounts import Accounts
    from daemon.control.monitoring import Page
    from daemon.control.planes import Planes


class Condition:
    """What the pages show beside the counts."""

    def __init__(self, planes: Planes, backend_names: list[str], streams_max: int) -> None:
        """The planes are running; the service says when it is ready for streams, and when no more."""
        self.planes = planes
        self.backend_names = backend_names
        self.streams_max = streams_max
        self.is_started = False
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether a new handoff would become a stream, as far as can be told."""
        return self.is_started and not self.is_draining


def health_page(accounts: Accounts) -> Page:
    """Healthy as long as this function is called: the control plane turns. A dead data plane ends the process."""

    def health(_accept: str) -> Answer:
        uptime_s = (time.monotonic_ns() - accounts.start_ns) // 1_000_000_000
        return json_answer(HTTPStatus.OK, {"status": "healthy", "version": VERSION, "uptime_seconds": uptime_s})

    return health


def ready_page(accounts: Accounts, condition: Condition) -> Page:
    """200 when new streams are taken, otherwise 503; both say why."""
    planes = condition.planes

    def ready(_accept: str) -> Answer:
        backends: dict[str, dict[str, int]] = {}
        for name in condition.backend_names:
            counts = accounts.backends[name]
            backends[name] = {
                "active": counts.active,
                "started": counts.started,
                "completed": counts.completed,
                "failed": counts.failed,
            }
        fields = {
            "ready": condition.is_ready,
            "draining": condition.is_draining,
            "accepting": planes.is_accepting,
            "kernel": planes.data_plane.kernel,
            "kernel_reason": planes.data_plane.kernel_reason,
            "streams": accounts.active,
            "streams_max": condition.streams_max,
            "queue_length": planes.queue_length(),
            "backends": backends,
        }
        return json_answer(HTTPStatus.OK if condition.is_ready else HTTPStatus.SERVICE_UNAVAILABLE, fields)

    return ready


def metrics_page(accounts: Accounts, condition: Condition, *, thread_pool: bool) -> Page:
    """Prometheus' metrics. The library is imported only here: what is off costs no memory."""
    from daemon.control.metrics import DaemonCollector, MetricsPage  # noqa: PLC0415

    planes = condition.planes
    information = {
        "version": VERSION,
        "kernel": planes.data_plane.kernel,
        "sqpoll": str(int(planes.data_plane.features.get("sqpoll", False))),
        "thread_pool": str(int(thread_pool)),
    }
    return MetricsPage(DaemonCollector(planes.plane, accounts, information, condition.streams_max, planes.queue_length))
