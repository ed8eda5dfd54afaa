"""/health, /ready and /metrics: what the daemon says of itself over HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from config import VERSION
from daemon.control.monitoring import Answer, json_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.control.accounts import Accounts
    from daemon.control.monitoring import Page


@dataclass
class Condition:
    """What /ready reports beside the accounts; the service keeps it up to date."""

    streams_max: int
    queue_length: Callable[[], int]
    backend_names: list[str] = field(default_factory=list[str])
    kernel: str = ""
    kernel_reason: str = ""
    is_started: bool = False
    is_draining: bool = False
    is_accepting: bool = True  # false while the plane is short of descriptors or slots

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

    def ready(_accept: str) -> Answer:
        backends: dict[str, dict[str, int]] = {}
        for name in condition.backend_names:
            counts = accounts.backend(name)
            backends[name] = {
                "active": counts.active,
                "started": counts.started,
                "completed": counts.completed,
                "failed": counts.failed,
            }
        fields = {
            "ready": condition.is_ready,
            "draining": condition.is_draining,
            "accepting": condition.is_accepting,
            "kernel": condition.kernel,
            "kernel_reason": condition.kernel_reason,
            "streams": accounts.active,
            "streams_max": condition.streams_max,
            "queue_length": condition.queue_length(),
            "backends": backends,
        }
        return json_answer(HTTPStatus.OK if condition.is_ready else HTTPStatus.SERVICE_UNAVAILABLE, fields)

    return ready
