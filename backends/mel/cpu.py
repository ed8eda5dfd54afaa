"""The engine on the CPU: on the thread that calls, without the GIL, and with no thread or allocation of its own.

What is computed and how stands in `backends.mel.batch`.
"""

from __future__ import annotations

import threading

import numpy as np

from backends.mel import batch
from backends.mel.engine import Frames, Samples, check_call
from backends.mel.spec import FFT_SAMPLES, INT16_SCALE, MEL_BINS, hann_window
from backends.mel.vectors import LANES

FRAMES_PER_CALL_MAX = 256
CACHE_LINE_BYTES = 64


class _Scratch(threading.local):
    """One thread's memory for a call: made once, 75 KB."""

    def __init__(self) -> None:
        # From a cache line's beginning on, so that the vectors of the transform are each in one.
        memory = np.zeros(batch.SCRATCH_NUMBERS + CACHE_LINE_BYTES // 8)
        first = -memory.ctypes.data % CACHE_LINE_BYTES // memory.itemsize
        self.numbers = memory[first : first + batch.SCRATCH_NUMBERS]
        few_frames = np.zeros(LANES * max(MEL_BINS), np.float32)
        few_samples = np.zeros(batch.BATCH_SAMPLES, np.float32), np.zeros(batch.BATCH_SAMPLES, np.int16)
        self.few = {samples.dtype: (samples, few_frames) for samples in few_samples}


class CpuEngine:
    """A `backends.mel.engine.MelEngine` on the thread that calls. Its results are those of one kind of CPU."""

    def __init__(self, bin_count: int) -> None:
        """80 or 128 bins, else ValueError. Compiles, which takes 2 s where the cache is cold, so that no call does."""
        self.bin_count = bin_count
        self.frame_count_max = FRAMES_PER_CALL_MAX
        self._tables = batch.make_tables(bin_count)
        # A power of two as the scale: int16 gives what the same samples in float32 give, to the bit.
        window = hann_window().copy()  # compiled for arrays that are not read-only
        self._windows = {np.dtype(np.float32): window, np.dtype(np.int16): window * INT16_SCALE}
        self._scratch = _Scratch()
        frames = np.zeros((1, bin_count), np.float32)
        self._compute(np.zeros(FFT_SAMPLES, np.float32), frames)
        self._compute(np.zeros(FFT_SAMPLES, np.int16), frames)

    def compute(self, samples: Samples, frames: Frames) -> None:
        """As `MelEngine.compute` says; raises nothing."""
        check_call(samples, frames, self.bin_count, self.frame_count_max)
        self._compute(samples, frames)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _compute(self, samples: Samples, frames: Frames) -> None:
        if not samples.flags.behaved:  # read-only or unaligned: a type of its own to Numba, which would compile again
            samples = samples.copy()
        kind = samples.dtype
        scratch = self._scratch
        batch.compute(
            samples,
            frames.reshape(-1),
            self.bin_count,
            self._windows[kind],
            self._tables,
            scratch.numbers,
            scratch.few[kind],
        )


def warm() -> None:
    """Compile what every engine uses, or load it from the cache."""
    CpuEngine(MEL_BINS[0])
