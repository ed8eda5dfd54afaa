"""The engine on the CPU: on the thread that calls, without the GIL, and with no thread or allocation of its own.

What is computed and how stands in `backends.mel.batch`.
"""

from __future__ import annotations

import threading

import numpy as np

from backends.mel import batch
from backends.mel.engine import Frames, Samples, check_call
from backends.mel.spec import INT16_SCALE, MEL_BINS, hann_window
from backends.mel.vectors import LANES
from config.library import MEL, native

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
        self._kept = memory, few_frames, few_samples
        self.address = self.numbers.ctypes.data
        self.few = {
            samples.dtype: (samples.ctypes.data, few_frames.ctypes.data) for samples in few_samples
        }  # addresses of what a call with fewer than LANES frames is padded in


class CpuEngine:
    """A `backends.mel.engine.MelEngine` on the thread that calls. Its results are those of one kind of CPU."""

    def __init__(self, bin_count: int) -> None:
        """80 or 128 bins, else ValueError. LibraryError where the built library cannot be used."""
        self.bin_count = bin_count
        self.frame_count_max = FRAMES_PER_CALL_MAX
        self._tables = batch.make_tables(bin_count)
        places, factors, weights, filters = self._tables
        self._table_arguments = (
            *(table.ctypes.data for table in (places, factors, weights)), len(weights), filters.ctypes.data
        )  # fmt: skip
        # A power of two as the scale: int16 gives what the same samples in float32 give, to the bit.
        window = hann_window().copy()  # contiguous, and of its own
        self._windows = {np.dtype(np.float32): window, np.dtype(np.int16): window * INT16_SCALE}
        self._window_addresses = {kind: scaled.ctypes.data for kind, scaled in self._windows.items()}
        self._entries = {
            np.dtype(np.float32): native(MEL, "backends.mel.batch.compute_float32"),
            np.dtype(np.int16): native(MEL, "backends.mel.batch.compute_int16"),
        }
        self._scratch = _Scratch()

    def compute(self, samples: Samples, frames: Frames) -> None:
        """As `MelEngine.compute` says; raises nothing."""
        check_call(samples, frames, self.bin_count, self.frame_count_max)
        self._compute(samples, frames)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _compute(self, samples: Samples, frames: Frames) -> None:
        if not samples.flags.aligned:  # vectors are loaded from where a sample can be
            samples = samples.copy()
        kind = samples.dtype
        scratch = self._scratch
        self._entries[kind](
            samples.ctypes.data,
            samples.size,
            frames.ctypes.data,
            frames.size,
            self.bin_count,
            self._window_addresses[kind],
            *self._table_arguments,
            scratch.address,
            *scratch.few[kind],
        )
