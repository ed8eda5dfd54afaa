"""The CUDA kernels, run by Numba's simulator, against the specification."""

from __future__ import annotations

import os
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest

from backends.mel import reference, spec
from backends.mel.cuda import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from backends.mel.cuda.device import KernelKey

pytestmark = [
    pytest.mark.cudasim,
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") != "1", reason="needs NUMBA_ENABLE_CUDASIM=1"),
]

Array: TypeAlias = "npt.NDArray[Any]"
Untyped: TypeAlias = Any


@cache
def simulated(key: KernelKey) -> Callable[..., None]:
    """A kernel as `FakeDevice` wants it: called with the grid, then with its arguments."""
    from backends.mel.cuda import kernels, toolchain

    if key.name == "clamp":
        return partial(_launch, toolchain.launchable(kernels.clamp(key.bin_count)), layout.CLAMP_BLOCK, 0)
    kernel = toolchain.launchable(kernels.log_mel(key.bin_count))
    return partial(_launch, kernel, layout.LOG_MEL_BLOCK, layout.SHARED_BYTES)


def _launch(
    kernel: Untyped, block: tuple[int, int, int], shared_bytes: int, grid: tuple[int, int], *arguments: object
) -> None:
    kernel[grid, block, 0, shared_bytes](*arguments)


def _key(name: layout.KernelName, bin_count: int) -> KernelKey:
    from backends.mel.cuda.device import KernelKey

    return KernelKey(name, bin_count, "int16", "float32")


def _samples(count: int, seed: int) -> npt.NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-20_000, 20_000, count).astype(np.int16)


def _poisoned(*shape: int, dtype: str = "float32") -> Array:
    return np.full(shape, np.nan, dtype)


def _scaled(samples: Array) -> npt.NDArray[np.float64]:
    return samples.astype(np.float64) * spec.INT16_SCALE


@pytest.mark.parametrize("bin_count", spec.MEL_BINS)
def test_chunks_of_several_streams_are_those_of_the_specification(bin_count: int) -> None:
    counts = (33, 1)  # a whole tile and one frame more; one frame
    audio = [_samples(400 + 160 * (count - 1), seed) for seed, count in enumerate(counts)]
    rows = np.array(
        [layout.chunk_row(0, counts[0], 1), layout.chunk_row(len(audio[0]) + 8, counts[1], 0)],
        np.int32,
    )
    samples = np.concatenate([audio[0], np.full(8, 30_000, np.int16), audio[1]])
    frames, extremes = _poisoned(sum(counts) * bin_count), _poisoned(2, sum(counts))
    log_mel = simulated(_key("log_mel", bin_count))
    log_mel(layout.log_mel_grid(33, 2), samples, rows, frames, extremes, np.float32(spec.INT16_SCALE))
    made = frames.reshape(-1, bin_count)
    np.testing.assert_allclose(made[1:], reference.raw_frames(_scaled(audio[0]), bin_count), atol=2e-5)
    np.testing.assert_allclose(made[:1], reference.raw_frames(_scaled(audio[1]), bin_count), atol=2e-5)
    assert np.isnan(extremes).all(), "raw frames have no use for extremes"


def test_a_frame_is_the_same_to_the_bit_wherever_it_stands_and_in_either_type() -> None:
    audio = _samples(400 + 160 * 33, 7)
    alone = (audio[160 * 33 :].astype(np.float32) * np.float32(spec.INT16_SCALE)).astype(np.float32)
    log_mel = simulated(_key("log_mel", 80))
    frames, one, extremes = _poisoned(34 * 80), _poisoned(80), _poisoned(2, 34)
    rows = np.array([layout.chunk_row(0, 34, 0)], np.int32)
    log_mel((2, 1), audio, rows, frames, extremes, np.float32(spec.INT16_SCALE))
    rows = np.array([layout.chunk_row(0, 1, 0)], np.int32)
    log_mel((1, 1), alone, rows, one, extremes, np.float32(1.0))
    np.testing.assert_array_equal(frames[33 * 80 :], one)


@pytest.mark.parametrize(("bin_count", "frame_type", "within"), [(80, "float32", 1e-5), (128, "float16", 2e-3)])
def test_a_clip_is_padded_normalised_and_clamped(bin_count: int, frame_type: str, within: float) -> None:
    # A clip of 0.3 s, with zeros to 0.4 s instead of 30: 40 frames.
    length, window, count = 4_800, 6_400, 40
    audio = _samples(length, 3)
    audio[length // 2 :] //= 15_000
    row = (0, length, window, -spec.PAD_SAMPLES, count, 0, 1, 0)
    frames, extremes = _poisoned(count * bin_count, dtype=frame_type), _poisoned(2, count)
    rows = np.array([row], np.int32)
    simulated(_key("log_mel", bin_count))((2, 1), audio, rows, frames, extremes, np.float32(spec.INT16_SCALE))
    padded = reference.reflected(np.concatenate([_scaled(audio), np.zeros(window - length)]))
    raw = reference.raw_frames(padded, bin_count)[:count]
    shown = (raw + spec.OFFSET) / spec.DIVISOR
    np.testing.assert_allclose(extremes, [shown.min(axis=1), shown.max(axis=1)], atol=1e-4)
    blocks = -(
        -count * 32 // layout.CLAMP_THREADS
    )  # a frame for each warp; the others of a clip's blocks are idle here
    assert blocks <= layout.clamp_grid(1)[0]
    simulated(_key("clamp", bin_count))((blocks, 1), rows, frames, extremes)
    expected = reference.normalised(raw, np.asarray(raw.max()))
    assert expected.min() > shown.min(), "the clamp has nothing to do"
    np.testing.assert_allclose(frames.reshape(-1, bin_count).astype(np.float64), expected, atol=within)
