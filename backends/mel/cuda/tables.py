"""The tables of the CUDA kernels, computed in float64 and kept in float32. Imports NumPy and `spec` alone."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backends.mel import spec

if TYPE_CHECKING:
    import numpy.typing as npt

COLUMNS = 20
LAST_BIN = 199  # the powers of bins 0 and 200 are not computed
COLUMN_WORDS = 18  # 9 twiddles


def column_table() -> npt.NDArray[np.float32]:
    """For each column c of the FFT, float32 [20, 18]: exp(-2 pi i c k / 400) for rows k 1 to 9."""
    table = np.zeros((COLUMNS, COLUMN_WORDS), np.float32)
    for column in range(COLUMNS):
        angles = -2 * np.pi * column * np.arange(1, 10) / spec.FFT_SAMPLES
        table[column, 0::2] = np.cos(angles)
        table[column, 1::2] = np.sin(angles)
    return table


def unpack_table() -> npt.NDArray[np.float32]:
    """exp(-2 pi i k / 40) for k 0 to 9, float32 [10, 2]: takes a real transform of 40 out of a complex one of 20."""
    angles = -2 * np.pi * np.arange(10) / 40
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class Turn(NamedTuple):
    """A turn of the mel filters: each warp of a block takes one, and all of them have as many pairs of weights."""

    first: int  # number of the turn's first pair in the weights
    pairs: int
    filters: int  # fewer than warps in the last turn


class Filters(NamedTuple):
    """The mel filters without most of their zeros, in the order in which the warps of a block take them.

    `weights`: float32 [.., 2], pairs for neighbouring bins, by turn, then by warp. `places`: int32 [turns, 16], the
    word of the powers where the filter of a turn and warp begins. In an even turn warp w takes filter turn * warps + w.
    """

    turns: tuple[Turn, ...]
    weights: npt.NDArray[np.float32]
    places: npt.NDArray[np.int32]


@cache
def filters(bin_count: int, warps: int, lanes: int) -> Filters:
    """Filters of `bin_count` mel bins for a block of `warps`; none weighs bin 0 or bin 200.

    Wider filters belong to higher bins: every second turn is dealt out backwards, so that warps end together.
    """
    supports = [np.flatnonzero(row) for row in spec.mel_filters(bin_count)]
    ends = [(int(bins[0]), int(bins[-1])) if len(bins) else (1, 1) for bins in supports]
    assert all(1 <= low <= high <= LAST_BIN for low, high in ends), "the kernel has the powers of bins 1 to 199"
    turns: list[Turn] = []
    weights = np.zeros((0, 2), np.float32)
    places = np.zeros((-(-bin_count // warps), 16), np.int32)
    for number in range(len(places)):
        mels = range(number * warps, min((number + 1) * warps, bin_count))
        pairs = max((high - low) // 2 + 1 for low, high in ends[mels.start : mels.stop])
        turns.append(Turn(len(weights), pairs, len(mels)))
        block = np.zeros((warps, 2 * pairs), np.float32)
        for place, mel in enumerate(mels):
            warp = place if number % 2 == 0 else warps - 1 - place
            low = min(ends[mel][0], LAST_BIN + 1 - 2 * pairs)
            block[warp] = spec.mel_filters(bin_count)[mel, low : low + 2 * pairs]
            places[number, warp] = (low - 1) * lanes
        weights = np.concatenate([weights, block.reshape(-1, 2)])
    return Filters(tuple(turns), weights, places)
