"""Frames on GPUs: streams placed on devices, a device that fails taken out, the CPU where there is none. Any thread.

`CudaEngine` is an `AsynchronousMelEngine`. A stream that wants to stay on one device asks for a `Place`, which is one
too. Each device has a thread, which batches what arrives together (`worker`, `window`, `slots`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backends.mel import spec
from backends.mel.cuda.device import DeviceError
from backends.mel.cuda.jobs import Array, CudaJob, check_clips
from backends.mel.cuda.loads import Loads
from backends.mel.cuda.slots import CLIPS_MAX, CLIPS_STAGED_MAX
from backends.mel.cuda.worker import CudaLimits, CudaWorker
from backends.mel.engine import EngineError, check_call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.mel.cuda.device import Device
    from backends.mel.engine import Frames, MelEngine, Pending, Samples

_log = logging.getLogger(__name__)


@dataclass
class EngineCounters:
    """What no device counts."""

    devices_lost: int = 0
    jobs_on_cpu: int = 0


class Place:
    """A stream's place on a device: the engine's least loaded one, kept until it fails."""

    def __init__(self, engine: CudaEngine) -> None:
        """Made by `CudaEngine.place`."""
        self._engine = engine
        self._worker: CudaWorker | None = engine.attach()

    @property
    def bin_count(self) -> int:
        """80 or 128."""
        return self._engine.bin_count

    @property
    def frame_count_max(self) -> int:
        """The most frames of one call."""
        return self._engine.frame_count_max

    def compute(self, samples: Samples, frames: Frames, *, pinned: bool = False) -> None:
        """As `MelEngine.compute`; on this thread where the device is idle. `pinned` as `submit` has it."""
        check_call(samples, frames, self.bin_count, self.frame_count_max)
        job = CudaJob(samples, frames, pinned=pinned)
        if self._worker is None or not self._worker.compute_here(job):
            self._submit(job)
        job.wait()

    def submit(
        self,
        samples: Samples,
        frames: Frames,
        *,
        pinned: bool = False,
        callback: Callable[[CudaJob], None] | None = None,
    ) -> Pending:
        """As `AsynchronousMelEngine.submit`; `callback` is called on the device's thread and must not block.

        `pinned`: both arrays are page-locked, as `Device.pinned` gives, and are copied from and to directly.
        """
        check_call(samples, frames, self.bin_count, self.frame_count_max)
        job = CudaJob(samples, frames, pinned=pinned, callback=callback)
        self._submit(job)
        return job

    def _submit(self, job: CudaJob) -> None:
        while self._worker is not None and not self._worker.submit(job):
            self._engine.detach(self._worker)
            self._worker = self._engine.attach()
        if self._worker is None:
            self._engine.compute_on_cpu(job)

    def close(self) -> None:
        """Leave the device to others."""
        if self._worker is not None:
            self._engine.detach(self._worker)
            self._worker = None


class CudaEngine:
    """All GPUs that could be opened, and what computes where there is none."""

    def __init__(
        self,
        openers: Sequence[Callable[[], Device]],
        fallback: MelEngine,
        limits: CudaLimits | None = None,
        loads: Loads | None = None,
    ) -> None:
        """`openers` open one device each, on the thread that calls them. `fallback` has the same number of bins.

        A device that does not open is said in the log and not used; without any, `fallback` does all the work.
        `loads` counts the streams of all engines that share it; without one the engine counts its own.
        """
        self.counters = EngineCounters()
        self._limits = limits or CudaLimits()
        self._fallback = fallback
        self._loads = loads or Loads()
        self._lock = self._loads.lock
        self._workers: list[CudaWorker] = []
        self._closed: list[CudaWorker] = []
        for open_device in openers:
            self._open(open_device)
        if not self._workers:
            _log.warning("no GPU: mel frames are computed on the CPU")

    def _open(self, open_device: Callable[[], Device]) -> None:
        try:
            worker = CudaWorker(open_device, self._fallback.bin_count, self._limits, self._on_lost)
        except EngineError as error:
            _log.warning("a GPU is not used: %s", error)
        else:
            self._workers.append(worker)
            _log.info("mel frames on %s", worker.name)

    @property
    def bin_count(self) -> int:
        """80 or 128."""
        return self._fallback.bin_count

    @property
    def frame_count_max(self) -> int:
        """The most frames of one call."""
        return self._limits.frames_in_call_max

    @property
    def workers(self) -> list[CudaWorker]:
        """Devices in use, for their names, counters and queues."""
        return list(self._workers)

    def place(self) -> Place:
        """A place for a stream."""
        return Place(self)

    def compute(self, samples: Samples, frames: Frames) -> None:
        """As `MelEngine.compute`, on the device with the shortest queue; on this thread where it is idle."""
        check_call(samples, frames, self.bin_count, self.frame_count_max)
        job = CudaJob(samples, frames)
        worker = self._shortest()
        if worker is None or not worker.compute_here(job):
            self._dispatch(job)
        job.wait()

    def submit(self, samples: Samples, frames: Frames) -> Pending:
        """As `AsynchronousMelEngine.submit`, on the device with the shortest queue."""
        check_call(samples, frames, self.bin_count, self.frame_count_max)
        job = CudaJob(samples, frames)
        self._dispatch(job)
        return job

    def submit_clips(self, samples: Array, features: Array, *, pinned: bool = False) -> list[CudaJob]:
        """Features of clips with Whisper's normalisation; returns jobs to wait for.

        `samples`: int16 or float32 [clips, up to 480000]; each is a clip of its own, with zeros to 30 s.
        `features`: float32 or float16 [clips, 3000, bin_count]. `pinned`: both are page-locked, as `Device.pinned`
        gives, and are copied from and to directly.
        """
        check_clips(samples, features, self.bin_count)
        step = CLIPS_MAX if pinned else CLIPS_STAGED_MAX
        jobs = [
            CudaJob(samples[first : first + step], features[first : first + step], pinned=pinned)
            for first in range(0, len(samples), step)
        ]
        for job in jobs:
            self._dispatch(job)
            time.sleep(0)  # lets the device's thread have the interpreter, or it would start only after the last job
        return jobs

    def close(self) -> None:
        """Finish what is queued and give the devices back. The fallback is its owner's to close."""
        for worker in [*self._workers, *self._closed]:
            worker.close()
        self._workers.clear()

    def attach(self) -> CudaWorker | None:
        """The device with the fewest streams and the shortest queue, with one stream more. For `Place`."""
        with self._lock:
            if not self._workers:
                return None
            streams = self._loads.streams
            worker = min(self._workers, key=lambda other: (streams[other.name], other.waiting))
            worker.streams += 1
            streams[worker.name] += 1
            return worker

    def detach(self, worker: CudaWorker) -> None:
        """A stream less. For `Place`."""
        with self._lock:
            worker.streams -= 1
            self._loads.streams[worker.name] -= 1

    def compute_on_cpu(self, job: CudaJob) -> None:
        """Do a job here and now, for want of a device."""
        self.counters.jobs_on_cpu += 1
        try:
            if job.clips:
                for samples, features in zip(job.samples, job.frames, strict=True):
                    self._clip_on_cpu(samples, features)
            else:
                self._chunk_on_cpu(job.samples, job.frames)
        except EngineError as error:
            job.finish(error)
        else:
            job.finish()

    def _chunk_on_cpu(self, samples: Array, frames: Array) -> None:
        """Raw frames by the fallback, in as many calls as it needs."""
        step = self._fallback.frame_count_max
        for first in range(0, len(frames), step):
            part = frames[first : first + step]
            start = first * spec.HOP_SAMPLES
            end = start + spec.FFT_SAMPLES + spec.HOP_SAMPLES * (len(part) - 1)
            self._fallback.compute(samples[start:end], part)

    def _clip_on_cpu(self, samples: Array, features: Array) -> None:
        """Whisper's features of one clip of at most 30 s, by the fallback."""
        clip = np.zeros(spec.WINDOW_SAMPLES, samples.dtype)
        clip[: len(samples)] = samples
        raw = np.empty(features.shape, np.float32)
        padded = np.pad(clip, spec.PAD_SAMPLES, mode="reflect")
        # The last of 3001 frames is dropped.
        self._chunk_on_cpu(padded[: spec.FFT_SAMPLES + spec.HOP_SAMPLES * (len(raw) - 1)], raw)
        np.maximum(raw, raw.max() - np.float32(spec.RANGE_DECADES), out=raw)
        features[:] = (raw + np.float32(spec.OFFSET)) / np.float32(spec.DIVISOR)

    def _dispatch(self, job: CudaJob) -> None:
        while True:
            worker = self._shortest()
            if worker is None:
                self.compute_on_cpu(job)
                return
            if worker.submit(job):
                return

    def _shortest(self) -> CudaWorker | None:
        """The device with the shortest queue."""
        with self._lock:
            return min(self._workers, key=lambda other: other.waiting, default=None)

    def _on_lost(self, worker: CudaWorker, jobs: list[CudaJob], error: EngineError) -> None:
        """Take a device out and find another place for its jobs; on the device's thread."""
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
                self._closed.append(worker)
            self.counters.devices_lost += 1
            left = len(self._workers)
        where = f"{left} other GPUs" if left else "the CPU"
        _log.error("%s failed (%s): its streams and %d chunks move to %s", worker.name, error, len(jobs), where)
        for job in jobs:
            self._move(job)

    def _move(self, job: CudaJob) -> None:
        try:
            self._dispatch(job)
        except EngineError as refused:
            job.finish(refused)


def open_cuda_engine(fallback: MelEngine, limits: CudaLimits | None = None, loads: Loads | None = None) -> CudaEngine:
    """An engine over all GPUs of this machine; over none where PyCUDA or a driver is missing, which is said."""
    try:
        from backends.mel.cuda import pycuda_device  # noqa: PLC0415  (needs the extra `gpu`)

        count = pycuda_device.device_count()
    except (ImportError, DeviceError) as error:
        _log.warning("GPUs are not used: %s", error)
        return CudaEngine([], fallback, limits, loads)
    openers = [lambda ordinal=ordinal: pycuda_device.open_device(ordinal) for ordinal in range(count)]
    return CudaEngine(openers, fallback, limits, loads)
