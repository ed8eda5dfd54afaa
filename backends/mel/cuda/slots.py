"""A slot: buffers for one launch on its way through a device, on a stream of its own. A device's thread alone.

While one slot's samples are copied in, another's are computed and a third's frames are copied out. Samples and table of
chunks lie behind one another, so that one copy takes both in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel import spec
from backends.mel.cuda.device import ArrayArgument, KernelKey
from backends.mel.cuda.layout import (
    CHUNK_BYTES,
    CHUNK_FIELDS,
    FRAME_BYTES,
    SAMPLE_BYTES,
    FrameType,
    SampleType,
    chunk_row,
    clamp_grid,
    clip_row,
    log_mel_grid,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from backends.mel.cuda.device import Device, Launch
    from backends.mel.cuda.jobs import CudaJob

CHUNKS_MAX = 1024  # in one launch
TABLE_BYTES = CHUNKS_MAX * CHUNK_BYTES
# Staging is what ordinary arrays are copied through: 65 s of float32 samples, or 131 s of int16.
STAGING_BYTES = 4 * 1024 * 1024
CLIPS_STAGED_MAX = 2
# Clips in page-locked memory go past the staging: eight of float32.
CLIPS_MAX = 8
SAMPLES_BYTES_MAX = CLIPS_MAX * spec.WINDOW_SAMPLES * 4
FRAMES_MAX = 32 * 1024
_ALIGN = 8  # samples: chunks begin at 16 or 32 bytes

_SAMPLE_TYPES: tuple[SampleType, ...] = ("int16", "float32")
_FRAME_TYPES: tuple[FrameType, ...] = ("float32", "float16")
_SCALES: dict[SampleType, float] = {"int16": spec.INT16_SCALE, "float32": 1.0}


def padded(samples: int) -> int:
    """Samples that a chunk takes of a slot."""
    return -(-samples // _ALIGN) * _ALIGN


class Load:
    """How much of a slot is taken while jobs are chosen for a launch."""

    __slots__ = ("_chunks", "_frames", "_samples", "_types")

    def __init__(self) -> None:
        """Nothing is taken."""
        self._chunks = self._frames = self._samples = 0
        self._types: tuple[SampleType, FrameType] | None = None

    def add(self, job: CudaJob) -> bool:
        """Take room for a job; false if it must wait for another launch. An empty slot takes any."""
        samples = self._samples + padded(job.samples.shape[-1]) * job.chunk_count
        frames = self._frames + job.frame_count
        chunks = self._chunks + job.chunk_count
        sample_type, frame_type = types = job.types
        if self._types is not None and (
            job.pinned
            or types != self._types
            or chunks > CHUNKS_MAX
            or frames > FRAMES_MAX
            or samples * SAMPLE_BYTES[sample_type] > STAGING_BYTES
            or frames * job.frames.shape[-1] * FRAME_BYTES[frame_type] > STAGING_BYTES
        ):
            return False
        self._samples, self._frames, self._chunks = samples, frames, chunks
        self._types = types
        if job.pinned:
            self._chunks = CHUNKS_MAX  # alone
        return True


class Slot:
    """Buffers, a stream and an event of one device."""

    def __init__(self, device: Device, bin_count: int) -> None:
        """Raises DeviceError when there is no memory left."""
        self._device = device
        self._bin_count = bin_count
        self._staged_in = device.pinned(TABLE_BYTES + STAGING_BYTES)
        self._staged_out = device.pinned(STAGING_BYTES)
        self._memory_in = device.memory(TABLE_BYTES + SAMPLES_BYTES_MAX)
        self._memory_out = device.memory(FRAMES_MAX * bin_count * 4)
        self._extremes = device.memory(FRAMES_MAX * 8)
        self._stream = device.stream()
        self._done = device.event()
        self._table: npt.NDArray[np.int32] = self._staged_in[:TABLE_BYTES].view(np.int32).reshape(-1, CHUNK_FIELDS)
        self._views: dict[np.dtype[Any], npt.NDArray[Any]] = {
            np.dtype(name): self._staged_in[TABLE_BYTES:].view(name) for name in _SAMPLE_TYPES
        }
        self._results: dict[np.dtype[Any], npt.NDArray[Any]] = {
            np.dtype(name): self._staged_out.view(name) for name in _FRAME_TYPES
        }
        self._launches: dict[tuple[SampleType, FrameType], tuple[Launch, Launch]] = {}
        self._rows: list[tuple[int, ...]] = []  # of the table, as the device has it
        self.jobs: list[CudaJob] = []

    def warm(self) -> None:
        """Compile every variant now, so that no stream waits for one."""
        for sample_type in _SAMPLE_TYPES:
            for frame_type in _FRAME_TYPES:
                self._prepared(sample_type, frame_type)

    def start(self, jobs: list[CudaJob]) -> None:
        """Put copies and launches for jobs that one `Load` took on the stream; returns at once."""
        assert not self.jobs, "the slot is busy"
        assert jobs, "nothing to do"
        self.jobs = jobs
        sample_type, frame_type = jobs[0].types
        frame_count = self._copy_in(jobs, SAMPLE_BYTES[sample_type])
        chunk_count = sum(job.chunk_count for job in jobs)
        frame_count_max = max(job.frame_count // job.chunk_count for job in jobs)
        log_mel, clamp = self._prepared(sample_type, frame_type)
        log_mel(log_mel_grid(frame_count_max, chunk_count), self._stream)
        if any(job.clips for job in jobs):
            clamp(clamp_grid(chunk_count), self._stream)
        if jobs[0].pinned:
            self._device.copy_out(jobs[0].frames, self._memory_out, 0, self._stream)
        else:
            byte_count = frame_count * self._bin_count * FRAME_BYTES[frame_type]
            self._device.copy_out(self._staged_out[:byte_count], self._memory_out, 0, self._stream)
        self._done.record(self._stream)

    def finish(self) -> list[CudaJob]:
        """Wait for the frames, hand them to their jobs, and be free. The jobs are not finished yet."""
        self._done.wait()
        jobs, self.jobs = self.jobs, []
        if not jobs[0].pinned:
            results = self._results[jobs[0].frames.dtype]
            offset = 0
            for job in jobs:
                end = offset + job.frames.size
                job.frames.ravel()[:] = results[offset:end]  # contiguous: a view
                offset = end
        return jobs

    def _copy_in(self, jobs: list[CudaJob], sample_bytes: int) -> int:
        """Fill the table, bring it and the samples to the device; returns the number of frames."""
        rows: list[tuple[int, ...]] = []
        frame_offset = sample_offset = 0
        staged = self._views[jobs[0].samples.dtype]
        for job in jobs:
            length = job.samples.shape[-1]
            step = length if job.pinned else padded(length)
            if not job.clips:
                if not job.pinned:
                    staged[sample_offset : sample_offset + length] = job.samples
                rows.append(chunk_row(sample_offset, job.frame_count, frame_offset))
            elif not job.pinned:
                staged[sample_offset : sample_offset + job.chunk_count * step].reshape(-1, step)[:, :length] = (
                    job.samples
                )
            if job.clips:
                rows.extend(
                    clip_row(sample_offset + clip * step, length, frame_offset + clip * spec.WINDOW_FRAMES)
                    for clip in range(job.chunk_count)
                )
            sample_offset += job.chunk_count * step
            frame_offset += job.frame_count
        known, self._rows = self._rows == rows, rows
        if not known:
            self._table[: len(rows)] = rows
        if jobs[0].pinned:
            # Clips after clips have the same table; a copy more, however small, is a gap on the bus.
            if not known:
                self._device.copy_in(self._memory_in, 0, self._staged_in[: len(rows) * CHUNK_BYTES], self._stream)
            self._device.copy_in(self._memory_in, TABLE_BYTES, jobs[0].samples, self._stream)
        else:
            byte_count = TABLE_BYTES + sample_offset * sample_bytes
            self._device.copy_in(self._memory_in, 0, self._staged_in[:byte_count], self._stream)
        return frame_offset

    def _prepared(self, sample_type: SampleType, frame_type: FrameType) -> tuple[Launch, Launch]:
        """Launches over this slot's buffers, packed once."""
        found = self._launches.get((sample_type, frame_type))
        if found is None:
            count = SAMPLES_BYTES_MAX // SAMPLE_BYTES[sample_type]
            samples = ArrayArgument(self._memory_in, TABLE_BYTES, sample_type, (count,))
            chunks = ArrayArgument(self._memory_in, 0, "int32", (CHUNKS_MAX, CHUNK_FIELDS))
            frames = ArrayArgument(self._memory_out, 0, frame_type, (FRAMES_MAX * self._bin_count,))
            extremes = ArrayArgument(self._extremes, 0, "float32", (2, FRAMES_MAX))
            log_mel = KernelKey("log_mel", self._bin_count, sample_type, frame_type)
            clamp = KernelKey("clamp", self._bin_count, "float32", frame_type)  # reads no samples
            found = (
                self._device.prepare(log_mel, (samples, chunks, frames, extremes, _SCALES[sample_type])),
                self._device.prepare(clamp, (chunks, frames, extremes)),
            )
            self._launches[sample_type, frame_type] = found
        return found
