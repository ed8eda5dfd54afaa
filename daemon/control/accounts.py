"""The control plane's own counts: how streams began and ended, and what was refused. Plain integers, main thread.

What is counted per token or per byte is counted by the data plane (daemon/plane/counters.py). Both are read at a scrape
and for the summary of --benchmark; nothing here knows Prometheus.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.plane import counters
from daemon.plane.state import (
    COMPLETE,
    DESCRIPTOR_REFUSED,
    HANDOFF_EMPTY,
    HANDOFF_ERROR,
    HANDOFF_NO_DESCRIPTOR,
    HANDOFF_TIMEOUT,
    REASONS,
)

if TYPE_CHECKING:
    from daemon.plane.table import Plane

# What never reaches admission, or is turned away there without an answer.
_REJECTED_BY_PLANE = {HANDOFF_TIMEOUT, HANDOFF_EMPTY, HANDOFF_NO_DESCRIPTOR, HANDOFF_ERROR, DESCRIPTOR_REFUSED}


@dataclass
class BackendCounts:
    """Streams of one backend."""

    started: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def active(self) -> int:
        """Streams that have started and not ended."""
        return self.started - self.completed - self.failed


@dataclass
class Accounts:
    """Counts since the start; implements what streams tell their observer."""

    started: int = 0
    completed: int = 0
    failed: int = 0
    reloads: int = 0
    reloads_failed: int = 0
    active_peak: int = 0
    ended: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    rejected: Counter[str] = field(default_factory=Counter[str])
    backends: dict[str, BackendCounts] = field(default_factory=dict[str, BackendCounts])
    start_ns: int = field(default_factory=time.monotonic_ns)

    @property
    def active(self) -> int:
        """Streams that have started and not ended."""
        return self.started - self.completed - self.failed

    def backend(self, name: str) -> BackendCounts:
        """The counts of one backend."""
        return self.backends.setdefault(name, BackendCounts())

    def stream_started(self, backend: str) -> None:
        """Admission has let a stream in."""
        self.started += 1
        self.active_peak = max(self.active_peak, self.active)
        self.backend(backend).started += 1

    def stream_ended(self, backend: str | None, reason: int) -> None:
        """A slot is free again; `backend` is None when its stream never started."""
        self.ended[REASONS[reason]] += 1
        if backend is None:
            # A refusal has been counted under its own name, and its slot may end for any reason.
            if reason in _REJECTED_BY_PLANE:
                self.rejected[REASONS[reason]] += 1
            return
        counts = self.backend(backend)
        if reason == COMPLETE:
            self.completed += 1
            counts.completed += 1
        else:
            self.failed += 1
            counts.failed += 1

    def handoff_rejected(self, reason: str) -> None:
        """A handoff got a refusal in place of a stream."""
        self.rejected[reason] += 1


def summary(accounts: Accounts, plane: Plane) -> str:
    """What --benchmark prints at exit."""
    seconds = (time.monotonic_ns() - accounts.start_ns) / 1e9
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    messages = int(plane.counters[counters.MESSAGES_SENT])
    lines = (
        ("Peak streams", f"{accounts.active_peak}"),
        ("Started", f"{accounts.started}"),
        ("Completed", f"{accounts.completed}"),
        ("Failed", f"{accounts.failed}"),
        ("Rejected handoffs", f"{accounts.rejected.total()}"),
        ("Bytes sent", f"{int(plane.counters[counters.BYTES_SENT])}"),
        ("Messages sent", f"{messages}"),
        ("Duration", f"{seconds:.3f} s"),
        ("CPU time", f"{cpu_seconds:.3f} s (user {usage.ru_utime:.3f}, system {usage.ru_stime:.3f})"),
        ("CPU per message", f"{cpu_seconds / messages * 1e6:.2f} us" if messages else "-"),
        ("Peak memory", f"{usage.ru_maxrss / 1024:.1f} MiB"),
    )
    width = max(len(name) for name, _ in lines)
    return "\n".join(["Summary", *(f"  {name:<{width}}  {value}" for name, value in lines)])
