"""How long chunks are waited for, so that those of many streams go in one launch. Pure: times in, times out.

A launch costs a device's thread some 60 us whatever is in it, so batching pays only when launches follow each other
closely. The window is 0 while the device is idle most of the time, grows to its limit as the device's thread becomes
busy, and always leaves a chunk the time that a launch takes within its latency budget.
"""

from __future__ import annotations

_BUSY_NONE = 0.25  # below this share of time in launches, nothing is waited for
_BUSY_FULL = 0.75
_WEIGHT = 0.2  # of the newest launch in the averages
_IDLE_NS = 50_000_000  # a pause after which the past says nothing


class Window:
    """The window of one device."""

    def __init__(self, window_ns_max: int, latency_budget_ns: int) -> None:
        """`latency_budget_ns` bounds window and launch together."""
        assert window_ns_max >= 0, "a window has no negative length"
        assert latency_budget_ns > 0, "no launch is that fast"
        self._window_ns_max = window_ns_max
        self._latency_budget_ns = latency_budget_ns
        self._launch_ns = 0.0
        self._busy = 0.0
        self._ended_ns = 0

    def observe(self, started_ns: int, ended_ns: int) -> None:
        """A launch took from `started_ns`, when its jobs were taken, to `ended_ns`, when they were finished."""
        took_ns = ended_ns - started_ns
        since_ns = max(1, ended_ns - self._ended_ns)
        if since_ns > _IDLE_NS:
            self._busy = 0.0
        self._busy += _WEIGHT * (min(1.0, took_ns / since_ns) - self._busy)
        self._launch_ns += _WEIGHT * (took_ns - self._launch_ns)
        self._ended_ns = ended_ns

    def length_ns(self, now_ns: int) -> int:
        """How long to wait, from a chunk's arrival on, for others."""
        if now_ns - self._ended_ns > _IDLE_NS:
            return 0
        share = min(1.0, max(0.0, (self._busy - _BUSY_NONE) / (_BUSY_FULL - _BUSY_NONE)))
        left_ns = max(0.0, self._latency_budget_ns - self._launch_ns)
        return int(min(share * self._window_ns_max, left_ns))
