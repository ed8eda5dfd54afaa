"""What the histograms say: percentiles of each metric, within 0.1 % of the exact ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scripts.bench.scanning import BUCKET_COUNT, HALF, LINEAR_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def bucket_middle(index: int) -> float:
    """The middle of the values that share a bucket."""
    if index < 1 << LINEAR_BITS:
        return float(index)
    shift = index // HALF - 1
    lowest = (index - shift * HALF) << shift
    return lowest + ((1 << shift) - 1) / 2


_MIDDLES = np.array([bucket_middle(index) for index in range(BUCKET_COUNT)])


def percentiles_ns(histogram: NDArray[np.int64], least: int, most: int) -> dict[str, float]:
    """Count, min, p50 ... p99.9 and max of one histogram row. Without values, only the count (0).

    A percentile p is the least value that at least p % of all values do not exceed (no interpolation).
    """
    count = int(histogram.sum())
    if count == 0:
        return {"count": 0}
    cumulative = np.cumsum(histogram)
    found: dict[str, float] = {"count": count, "min": float(least)}
    for percentile in PERCENTILES:
        rank = max(1, int(np.ceil(count * percentile / 100 - 1e-9)))
        middle = float(_MIDDLES[int(np.searchsorted(cumulative, rank))])
        found[f"p{percentile:g}"] = min(max(middle, least), most)
    found["max"] = float(most)
    return found


def distribution(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Values in ns that occurred, and the share of all values at or below each: a curve to plot.

    Eight buckets make one point: a picture shows no more, and the JSON stays small.
    """
    occupied = np.flatnonzero(histogram)
    shares = np.cumsum(histogram[occupied]) / max(1, int(histogram.sum()))
    last_of_eight = np.flatnonzero(np.diff(occupied // 8, append=-1))
    return _MIDDLES[occupied[last_of_eight]].tolist(), shares[last_of_eight].tolist()
