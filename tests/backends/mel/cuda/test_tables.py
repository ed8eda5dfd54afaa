"""The CUDA kernels' tables against the specification's."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mel import spec
from backends.mel.cuda import layout, tables


@pytest.mark.parametrize("bin_count", spec.MEL_BINS)
def test_pairs_of_weights_are_the_mel_filters(bin_count: int) -> None:
    filters = tables.filters(bin_count, layout.WARPS, layout.TILE_FRAMES)
    matrix = np.zeros((bin_count, spec.SPECTRUM_BINS), np.float32)
    for number, (first, pairs, count) in enumerate(filters.turns):
        for order in range(count):
            warp = order if number % 2 == 0 else layout.WARPS - 1 - order
            weights = filters.weights[first + warp * pairs : first + (warp + 1) * pairs].ravel()
            low = filters.places[number, warp] // layout.TILE_FRAMES + 1
            assert low + len(weights) - 1 <= tables.LAST_BIN
            matrix[number * layout.WARPS + order, low : low + len(weights)] = weights
    np.testing.assert_array_equal(matrix, spec.mel_filters(bin_count).astype(np.float32))


@pytest.mark.parametrize("bin_count", spec.MEL_BINS)
def test_warps_do_little_more_than_the_filters_need(bin_count: int) -> None:
    filters = tables.filters(bin_count, layout.WARPS, layout.TILE_FRAMES)
    assert 2 * len(filters.weights) < 1.4 * np.count_nonzero(spec.mel_filters(bin_count))


def test_three_blocks_fit_into_the_shared_memory_of_a_multiprocessor() -> None:
    assert 3 * (layout.SHARED_BYTES + 1024) <= 228 * 1024


def test_the_finished_frames_and_their_extremes_fit_over_the_exchange() -> None:
    frames_words = layout.TILE_FRAMES * (max(spec.MEL_BINS) + 1)
    assert frames_words <= 130 * layout.TILE_FRAMES
    assert 130 * layout.TILE_FRAMES + layout.WARPS * 64 <= layout.EXCHANGE_ROWS * layout.TILE_FRAMES
