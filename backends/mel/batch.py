"""Frames in compiled code: 8 at a time (4 without AVX-512), one in each lane of a vector.

`backends.mel.cpu` calls `compute_float32` or `compute_int16`, on any thread and without the GIL. A batch of frames goes
through these steps, each a function below, all of them in 60 KB of scratch memory:

1. `_load_hops` turns the samples so that a vector holds the same sample of each frame. A hop's 160 samples are turned
   once, not each frame's 400: sample n of frame i is sample n % 160 of hop i + n // 160, one or two lanes further.
2. `_first_pass` (with the window), `_second_pass` and `_third_pass` are a complex Fourier transform of 200 = 8 * 5 * 5
   numbers, after T. G. Stockham's order; the second works in place, and the third ends in the powers of the real one.
3. `_mel_bin` sums a triangle of the mel filter bank, 3 to 5 powers of the 201 on average.
4. `_store_bins` takes logarithms and turns the result back, so that a frame's bins are neighbours.

Up to the logarithm all is float64. In float32 it takes half the time, but then a bin that is 7 decades below its
neighbours is made of their rounding errors: Whisper's range is 8 decades, and the first frame of a clip, being its own
mirror image, often has such bins. Nothing is allocated for a frame, and lanes never meet: a frame is the same in
whichever lane, to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel import transform
from backends.mel.spec import (
    FFT_SAMPLES,
    HOP_SAMPLES,
    MEL_BINS,
    POWER_MIN,
    SPECTRUM_BINS,
    mel_filters,
)
from backends.mel.vectors import LANES, array_accessor, transposed, weighted_sum, written
from config.compilation import compiled, types

if TYPE_CHECKING:
    import numpy.typing as npt

    from backends.mel.vectors import Index, Memory, Vector

_COMPLEX = FFT_SAMPLES // 2
_PAIR = 2 * LANES  # real parts, then imaginary parts
_HOP_ROW = LANES + 2  # a batch of n frames spans n + 1 hops and half of another
BATCH_SAMPLES = FFT_SAMPLES + HOP_SAMPLES * (LANES - 1)

# Where things are in the scratch memory, in float64: samples [160, LANES + 2], the complex transform [200, 2, LANES],
# powers [201, LANES], mel power [128, LANES].
_SPECTRUM_AT = HOP_SAMPLES * _HOP_ROW
_POWERS_AT = _SPECTRUM_AT + _COMPLEX * _PAIR
_MELS_AT = _POWERS_AT + SPECTRUM_BINS * LANES
SCRATCH_NUMBERS = _MELS_AT + max(MEL_BINS) * LANES

# Where the factors of the passes are, in pairs: [25, 7], [5, 4], [201].
_FACTORS_SECOND = 25 * 7
_FACTORS_SPLIT = _FACTORS_SECOND + 5 * 4
FACTOR_NUMBERS = 2 * (_FACTORS_SPLIT + SPECTRUM_BINS)


def _load_number(scratch: Memory, index: Index | int) -> tuple[Vector, Vector]:
    return scratch.load(index), scratch.load(index + LANES)


def _store_number(scratch: Memory, index: Index, number: tuple[Vector, Vector]) -> None:
    scratch.store(index, number[0])
    scratch.store(index + LANES, number[1])


def _load_factor(factors: Memory, pair: Index) -> tuple[Vector, Vector]:
    return factors.load_same(pair * 2), factors.load_same(pair * 2 + 1)


@written
def _load_hops(samples: Memory, start: Index, scratch: Memory, first: Index) -> None:
    """Samples from `first` on, LANES of them, of as many hops from `start` on, become rows of scratch."""
    hops = [samples.load_samples(start + first + HOP_SAMPLES * hop) for hop in range(LANES)]
    for row, vector in enumerate(transposed(hops)):
        scratch.store(first * _HOP_ROW + row * _HOP_ROW, vector.widened())


@written
def _first_pass(scratch: Memory, places: Memory, window: Memory, factors: Memory, p: Index) -> None:
    """Window, and transform of numbers p + 25 k, k = 0..7, for a p of 0..24; `places` says where samples are.

    Result j, times exp(-2 pi i p j / 200), becomes number 8 p + j.
    """

    def windowed(sample: Index) -> Vector:
        return scratch.load(places.load_index(sample)) * window.load_same(sample)

    numbers = [(windowed(p * 2 + 50 * k), windowed(p * 2 + 50 * k + 1)) for k in range(8)]
    for j, (real, imaginary) in enumerate(transform.dft8(numbers)):
        factor = _load_factor(factors, p * 7 + (j - 1)) if j > 0 else None
        number = transform.multiply(real, imaginary, *factor) if factor else (real, imaginary)
        _store_number(scratch, p * (8 * _PAIR) + (_SPECTRUM_AT + j * _PAIR), number)


@written
def _second_pass(scratch: Memory, factors: Memory, p: Index, q: Index) -> None:
    """Transform of numbers q + 8 (p + 5 k), k = 0..4, for a p of 0..4 and a q of 0..7.

    Result j, times exp(-2 pi i p j / 25), takes the place of number q + 8 (p + 5 j).
    """
    first = q * _PAIR + p * (8 * _PAIR) + _SPECTRUM_AT
    numbers = [_load_number(scratch, first + 40 * _PAIR * k) for k in range(5)]
    for j, (real, imaginary) in enumerate(transform.dft5(numbers)):
        factor = _load_factor(factors, p * 4 + (_FACTORS_SECOND + j - 1)) if j > 0 else None
        number = transform.multiply(real, imaginary, *factor) if factor else (real, imaginary)
        _store_number(scratch, first + 40 * _PAIR * j, number)


def _bins(scratch: Memory, q: Index) -> list[tuple[Vector, Vector]]:
    """Bins q + 40 j, j = 0..4, of the complex transform; what they are made of stands where the second pass put it."""
    remainder, quotient = q.remainder_and_quotient(3)
    first = remainder * _PAIR + quotient * (40 * _PAIR) + _SPECTRUM_AT
    return transform.dft5([_load_number(scratch, first + 8 * _PAIR * k) for k in range(5)])


def _store_powers(
    scratch: Memory, factors: Memory, bin_index: Index, low: tuple[Vector, Vector], high: tuple[Vector, Vector]
) -> None:
    """Powers of bins `bin_index` and 200 - `bin_index` of the real transform."""
    powers = transform.split_powers(low, high, _load_factor(factors, bin_index + _FACTORS_SPLIT))
    scratch.store(bin_index * LANES + _POWERS_AT, powers[0])
    scratch.store(bin_index * -LANES + (_POWERS_AT + _COMPLEX * LANES), powers[1])


@written
def _third_pass(scratch: Memory, factors: Memory, q: Index) -> None:
    """Powers of bins q + 40 j and 200 - q - 40 j, j = 0..4, for a q of 1..19."""
    low, high = _bins(scratch, q), _bins(scratch, q * -1 + 40)
    for j in range(5):
        _store_powers(scratch, factors, q + 40 * j, low[j], high[4 - j])


@written
def _third_pass_rest(scratch: Memory, factors: Memory, zero: Index) -> None:
    """Powers of bins 20 j that are left, whose mirror images are among themselves. Bins 0 and 200 count for nothing."""
    ends, middle = _bins(scratch, zero), _bins(scratch, zero + 20)
    for j in (1, 2):
        _store_powers(scratch, factors, zero + 40 * j, ends[j], ends[5 - j])
    for j in (0, 1):
        _store_powers(scratch, factors, zero + (20 + 40 * j), middle[j], middle[4 - j])
    scratch.store(_POWERS_AT + 100 * LANES, transform.power(*middle[2]) * 4.0)


@written
def _mel_bin(scratch: Memory, weights: Memory, weight_first: Index, first: Index, count: Index, mel: Index) -> None:
    """Mel power: `count` powers from bin `first` on, each times its weight."""
    power = weighted_sum(scratch, first * LANES + _POWERS_AT, weights, weight_first, count)
    scratch.store(mel * LANES + _MELS_AT, power)


@written
def _store_bins(scratch: Memory, frames: Memory, frame_at: Index, mel: Index, bin_count: Index) -> None:
    """Logarithms of mel bins `mel` on, LANES of them, for as many frames, the first of which is at `frame_at`."""
    powers = [scratch.load(mel * LANES + (_MELS_AT + row * LANES)).at_least(POWER_MIN) for row in range(LANES)]
    place = frame_at + mel
    for vector in transposed([transform.log10(*power.narrowed().exponent_and_fraction()) for power in powers]):
        frames.store(place, vector)
        place = place + bin_count


@compiled
def _load_batch(samples: Any, start: int, scratch: Any) -> None:
    """All samples of a batch, from sample `start` on."""
    for first in range(0, HOP_SAMPLES, LANES):
        _load_hops(samples, start, scratch, first)
    start += HOP_SAMPLES * LANES
    for sample in range(HOP_SAMPLES):
        scratch[sample * _HOP_ROW + LANES] = samples[start + sample]
    start += HOP_SAMPLES
    for sample in range(FFT_SAMPLES % HOP_SAMPLES):
        scratch[sample * _HOP_ROW + LANES + 1] = samples[start + sample]


@compiled
def _compute_batch(scratch: Any, tables: Any, window: Any, frames: Any, frame_at: int, bin_count: int) -> None:
    """A batch, of the samples that `_load_batch` has put into scratch; the first goes to `frame_at` of `frames`."""
    places, factors, weights, filters = tables
    for p in range(25):
        _first_pass(scratch, places, window, factors, p)
    for p in range(5):
        for q in range(8):
            _second_pass(scratch, factors, p, q)
    for q in range(1, 20):
        _third_pass(scratch, factors, q)
    _third_pass_rest(scratch, factors, 0)
    for mel in range(bin_count):
        _mel_bin(scratch, weights, filters[3 * mel], filters[3 * mel + 1], filters[3 * mel + 2], mel)
    for mel in range(0, bin_count, LANES):
        _store_bins(scratch, frames, frame_at, mel, bin_count)


@compiled
def compute(samples: Any, frames: Any, bin_count: int, window: Any, tables: Any, scratch: Any, few: Any) -> None:
    """All frames: `samples` as `MelEngine.compute` has them, `frames` with its rows in one.

    The last batch is the last LANES frames, some of them for the second time. Fewer than LANES go through the arrays
    `few`, in which the other lanes have what was there.
    """
    frame_count = frames.size // bin_count
    few_samples, few_frames = few
    if frame_count < LANES:
        for sample in range(samples.size):
            few_samples[sample] = samples[sample]
        _load_batch(few_samples, 0, scratch)
        _compute_batch(scratch, tables, window, few_frames, 0, bin_count)
        for index in range(frames.size):
            frames[index] = few_frames[index]
        return
    done = 0
    while done < frame_count:
        first = min(done, frame_count - LANES)
        _load_batch(samples, first * HOP_SAMPLES, scratch)
        _compute_batch(scratch, tables, window, frames, first * bin_count, bin_count)
        done = first + LANES


_float32s = array_accessor(types.float32)
_float64s = array_accessor(types.float64)
_int16s = array_accessor(types.int16)
_int64s = array_accessor(types.int64)


@compiled
def _tables_at(places: int, factors: int, weights: int, weight_count: int, filters: int, bin_count: int) -> Any:
    return (
        _int64s(places, FFT_SAMPLES),
        _float64s(factors, FACTOR_NUMBERS),
        _float64s(weights, weight_count),
        _int64s(filters, 3 * bin_count),
    )


@compiled
def compute_float32(
    samples: int, sample_count: int, frames: int, frame_numbers: int, bin_count: int, window: int,
    places: int, factors: int, weights: int, weight_count: int, filters: int,
    scratch: int, few_samples: int, few_frames: int,
) -> None:  # fmt: skip
    """`compute` of arrays by their addresses, with float32 samples. Tables are in `make_tables`' order."""
    tables = _tables_at(places, factors, weights, weight_count, filters, bin_count)
    few = _float32s(few_samples, BATCH_SAMPLES), _float32s(few_frames, LANES * bin_count)
    numbers, given = _float64s(scratch, SCRATCH_NUMBERS), _float32s(samples, sample_count)
    compute(given, _float32s(frames, frame_numbers), bin_count, _float64s(window, FFT_SAMPLES), tables, numbers, few)


@compiled
def compute_int16(
    samples: int, sample_count: int, frames: int, frame_numbers: int, bin_count: int, window: int,
    places: int, factors: int, weights: int, weight_count: int, filters: int,
    scratch: int, few_samples: int, few_frames: int,
) -> None:  # fmt: skip
    """The same with int16 samples."""
    tables = _tables_at(places, factors, weights, weight_count, filters, bin_count)
    few = _int16s(few_samples, BATCH_SAMPLES), _float32s(few_frames, LANES * bin_count)
    numbers, given = _float64s(scratch, SCRATCH_NUMBERS), _int16s(samples, sample_count)
    compute(given, _float32s(frames, frame_numbers), bin_count, _float64s(window, FFT_SAMPLES), tables, numbers, few)


def _make_factors() -> npt.NDArray[np.float64]:
    """Pairs exp(-2 pi i x), x = p j / 200 for p < 25, 0 < j < 8, p j / 25 for p < 5, 0 < j < 5, k / 400, k <= 200."""
    first = np.outer(np.arange(25), np.arange(1, 8)).ravel() / _COMPLEX
    second = np.outer(np.arange(5), np.arange(1, 5)).ravel() / 25
    split = np.arange(SPECTRUM_BINS) / FFT_SAMPLES
    angles = -2 * np.pi * np.concatenate([first, second, split])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).ravel()


def make_tables(bin_count: int) -> tuple[npt.NDArray[Any], ...]:
    """For `_compute_batch`: places of samples, factors, weights, and first weight, first bin and count of each filter.

    Weights are a fourth of the filter bank's, because `transform.split_powers` gives four times the power.
    """
    sample = np.arange(FFT_SAMPLES)
    places = sample % HOP_SAMPLES * _HOP_ROW + sample // HOP_SAMPLES
    weights: list[float] = []
    filters: list[int] = []
    for row in mel_filters(bin_count):
        (bins,) = np.nonzero(row)
        first, count = int(bins[0]), len(bins)
        assert int(bins[-1]) - first == count - 1, "a triangle has no gaps"
        filters += [len(weights), first, count]
        weights += [float(weight) / 4 for weight in row[bins]]
    return places.astype(np.int64), _make_factors(), np.array(weights), np.array(filters, np.int64)
