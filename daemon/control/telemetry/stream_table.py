"""The table of live streams that SIGUSR1 logs, from a snapshot that the data plane takes between two turns."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from daemon.plane.state import FREE, STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from daemon.control.wiring import Planes

# Type checkers do not know record arrays: these are records of daemon/plane/table.py's STREAM.
StreamRecords = Any

ROWS_MAX = 200
HEADING = (
    f"{'slot':>7} {'generation':>10} {'state':<12} {'age s':>9} {'first byte s':>12} {'bytes':>12} {'messages':>9}"
    "  backend"
)

logger = logging.getLogger(__name__)


def log_streams(planes: Planes) -> None:
    """Log all live streams, once the data plane has copied its table."""
    planes.copy_table(functools.partial(_log, planes))


def _log(planes: Planes) -> None:
    for line in lines(planes.plane.snapshot, time.monotonic_ns(), planes.admission.backend_of):
        logger.info("%s", line)


def lines(snapshot: StreamRecords, now_ns: int, backend_of: Callable[[int], str]) -> Iterator[str]:
    """A summary by state, then one line per stream, oldest first, at most ROWS_MAX.

    Args:
        snapshot: the plane's copy of its stream records.
        now_ns: CLOCK_MONOTONIC.
        backend_of: the name of a slot's backend, or "-".
    """
    states: NDArray[np.int32] = snapshot["state"]
    slots = np.flatnonzero(states != FREE)
    by_state = Counter(STATES[int(state)] for state in states[slots])
    yield f"{len(slots)} streams" + "".join(f", {count} {name}" for name, count in sorted(by_state.items()))
    if len(slots) == 0:
        return
    oldest_first = slots[np.argsort(snapshot["accepted_ns"][slots], kind="stable")]
    yield HEADING
    for slot in oldest_first[:ROWS_MAX].tolist():
        yield _row(slot, snapshot[slot], now_ns, backend_of(slot))
    if len(slots) > ROWS_MAX:
        yield f"... and {len(slots) - ROWS_MAX} younger streams"


def _row(slot: int, stream: StreamRecords, now_ns: int, backend: str) -> str:
    accepted_ns, first_byte_ns = int(stream["accepted_ns"]), int(stream["first_byte_ns"])
    age_s = (now_ns - accepted_ns) / 1e9
    first_byte = f"{(first_byte_ns - accepted_ns) / 1e9:.3f}" if first_byte_ns else "-"
    return (
        f"{slot:>7} {int(stream['generation']):>10} {STATES[int(stream['state'])]:<12} {age_s:>9.3f} {first_byte:>12}"
        f" {int(stream['sent_bytes']):>12} {int(stream['message_count']):>9}  {backend}"
    )
