"""The control plane's counters: started and ended streams, and refusals. Plain integers, main thread.

Per-token and per-byte counters are the data plane's (daemon/plane/counters.py). Both are read at a scrape and for the
summary of --benchmark; nothing here depends on Prometheus.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from typing import TYPE_CHECKING

from daemon.control.process.supervision import KINDS
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

# Reasons of handoffs that never reach admission, or are closed there without a response.
_REJECTED_BY_PLANE = {HANDOFF_TIMEOUT, HANDOFF_EMPTY, HANDOFF_NO_DESCRIPTOR, HANDOFF_ERROR, DESCRIPTOR_REFUSED}


class BackendCounts:
    """Counters of one backend."""

    __slots__ = ("completed", "failed", "started")

    def __init__(self) -> None:
        """None yet."""
        self.started = 0
        self.completed = 0
        self.failed = 0

    @property
    def active(self) -> int:
        """Streams that have started and not ended."""
        return self.started - self.completed - self.failed


class _Backends(dict[str, BackendCounts]):
    def __missing__(self, name: str) -> BackendCounts:
        counts = self[name] = BackendCounts()
        return counts


class Accounts:
    """Counts since the start. The methods for streams are on admission's hot path."""

    __slots__ = (
        "_ended",
        "active",
        "active_peak",
        "backends",
        "contained",
        "rejected",
        "reloads",
        "reloads_failed",
        "start_ns",
    )

    def __init__(self) -> None:
        """All counters at 0, with every reason present, so that a scrape exports it."""
        self.active = 0
        self.active_peak = 0
        self.backends = _Backends()
        self.rejected: Counter[str] = Counter()
        self.contained = dict.fromkeys(KINDS, 0)
        self.reloads = 0
        self.reloads_failed = 0
        self.start_ns = time.monotonic_ns()
        self._ended = [0] * len(REASONS)

    # ---- updates

    def stream_started(self, backend: str) -> None:
        """Admission has accepted a stream."""
        self.backends[backend].started += 1
        self.active += 1
        if self.active > self.active_peak:  # noqa: PLR1730  (max is a call, three times the price)
            self.active_peak = self.active

    def stream_ended(self, backend: str | None, reason: int) -> None:
        """A slot is free; `backend` is None when its stream never started."""
        self._ended[reason] += 1
        if backend is not None:
            self.active -= 1
            if reason == COMPLETE:
                self.backends[backend].completed += 1
            else:
                self.backends[backend].failed += 1
        elif reason in _REJECTED_BY_PLANE:
            # A refusal has been counted under its own code, and its slot may end for any reason.
            self.rejected[REASONS[reason]] += 1

    def handoff_rejected(self, reason: str) -> None:
        """A handoff was refused."""
        self.rejected[reason] += 1

    # ---- readers

    @property
    def started(self) -> int:
        """Streams that have started."""
        return sum(counts.started for counts in self.backends.values())

    @property
    def completed(self) -> int:
        """Streams that ended normally."""
        return sum(counts.completed for counts in self.backends.values())

    @property
    def failed(self) -> int:
        """Streams that ended abnormally."""
        return sum(counts.failed for counts in self.backends.values())

    @property
    def ended(self) -> dict[str, int]:
        """Freed slots by reason."""
        return dict(zip(REASONS, self._ended, strict=True))


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
