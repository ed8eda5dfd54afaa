"""The thread of one device: takes jobs that came within a window, and keeps its slots in motion.

A device that fails is left at once: what it had not finished goes to whoever `on_lost` hands it to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.mel.cuda.device import DeviceError
from backends.mel.cuda.slots import STAGING_BYTES, Load, Slot
from backends.mel.cuda.window import Window
from backends.mel.engine import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.mel.cuda.device import Device
    from backends.mel.cuda.jobs import CudaJob

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CudaLimits:
    """Bounds of one device's work."""

    window_ms: float = 2.0  # the longest wait for other chunks; 0 to never wait
    latency_budget_ms: float = 10.0  # of waiting and launch together
    slots: int = 6  # on their way at a time: copying in, computing, copying out, and as many waiting for it
    jobs_max: int = 4096  # waiting; more are refused
    jobs_in_launch_max: int = 1024
    # 5 s. A stream's buffer is as long, 160 to 320 KB; longer calls gain little over the 40 us that each costs.
    frames_in_call_max: int = 512


@dataclass
class Counters:
    """What one device has done. Written by its thread alone, read by any."""

    launches: int = 0
    jobs: int = 0
    frames: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    jobs_in_launch_max: int = 0
    jobs_moved: int = 0


class Busy(EngineError):  # noqa: N818  (said to a caller, who may try again)
    """More jobs are waiting than the limit allows."""


class CudaWorker:
    """One device's thread and queue."""

    def __init__(
        self,
        open_device: Callable[[], Device],
        bin_count: int,
        limits: CudaLimits,
        on_lost: Callable[[CudaWorker, list[CudaJob], EngineError], None],
    ) -> None:
        """Opens the device on its thread, with its buffers and CUDA kernels. Raises DeviceError when that fails.

        `on_lost` is called on the device's thread when it fails later, with the jobs that were not finished.
        """
        self.counters = Counters()
        self.name = ""
        self.streams = 0  # placed here; the engine's to count
        self._open_device = open_device
        self._bin_count = bin_count
        self._limits = limits
        self._on_lost = on_lost
        self._window = Window(int(limits.window_ms * 1e6), int(limits.latency_budget_ms * 1e6))
        self._queue: deque[CudaJob] = deque()
        self._queued_bytes = 0
        self._running_jobs = 0
        self._changed = threading.Condition(threading.Lock())
        self._turn = threading.Lock()  # held by the thread that uses the device
        self._device: Device | None = None
        self._slots: list[Slot] = []
        self._closing = False
        self._lost = False
        self._failure: EngineError | None = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mel-cuda", daemon=True)
        self._thread.start()
        self._opened.wait()
        self._check_opened()

    @property
    def waiting(self) -> int:
        """How many jobs are waiting."""
        return len(self._queue)

    def submit(self, job: CudaJob) -> bool:
        """Queue a job; false if the device is lost, so that it must go elsewhere. Raises Busy."""
        with self._changed:
            if self._lost:
                return False
            assert not self._closing, "the engine is closed"
            if len(self._queue) >= self._limits.jobs_max:
                raise Busy(f"{self._limits.jobs_max} chunks are waiting for {self.name}")
            job.submitted_ns = time.monotonic_ns()
            self._queue.append(job)
            self._queued_bytes += job.samples.nbytes
            if len(self._queue) == 1 or self._is_full():
                self._changed.notify()
        return True

    def compute_here(self, job: CudaJob) -> bool:
        """Do a job on the caller's thread, if the device is idle; false if it must be submitted. Wait for it then.

        Saves a lone stream the way to another thread and back, two wake-ups of tens of microseconds each.
        """
        if self._queue or self._lost or self._closing or not self._turn.acquire(blocking=False):
            return False
        try:
            device = self._device
            # Asked again: whoever had the turn may have lost the device, which is still there to be closed.
            if device is None or self._queue or self._lost:
                return False
            started_ns = time.monotonic_ns()
            device.enter()
            try:
                self._slots[0].start([job])
                self._slots[0].finish()
            finally:
                device.leave()
            self._window.observe(started_ns, time.monotonic_ns())
            self._count([job])
        except Exception as error:  # noqa: BLE001  (of whatever kind: the device is given up, and the error is said)
            self._fail(error, [job])  # finds another place for the job
        else:
            job.finish()
        finally:
            self._turn.release()
            if self._queue or self._lost:
                with self._changed:
                    self._changed.notify()
        return True

    def close(self) -> None:
        """Finish what is queued, give the device back, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        device: Device | None = None
        try:
            device = self._open_device()
            self.name = device.name
            self._slots = [Slot(device, self._bin_count) for _ in range(self._limits.slots)]
            self._slots[0].warm()
            self._device = device
            self._opened.set()
            self._serve()
        except Exception as error:  # noqa: BLE001  (of whatever kind: it is said to whoever opens the device)
            self._fail(error, [])
        finally:
            with self._turn:
                self._device = None
                self._slots = []
                if device is not None:
                    self._close_device(device)
            self._opened.set()

    def _check_opened(self) -> None:
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def _close_device(self, device: Device) -> None:
        try:
            device.close()
        except Exception as error:  # noqa: BLE001  (of whatever kind: whoever waits for this thread must go on)
            # A device that is lost cannot be given back either; the driver does so when the process ends.
            _log.log(logging.DEBUG if self._failure else logging.WARNING, "%s is not given back: %s", self.name, error)

    def _fail(self, error: Exception, jobs: list[CudaJob]) -> None:
        """Give the device up, and those jobs and the queue to others; by the thread that has the turn.

        Before it gives the turn back, or another thread would use a device that has failed.
        """
        # A new error: the caught one's frames would hold buffers and jobs for as long as it is kept.
        said = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        self._failure = DeviceError(said)
        if not self._opened.is_set():
            return
        with self._changed:
            assert not self._lost, "a device is lost once"
            self._lost = True
            jobs += self._queue
            self._queue.clear()
            self._queued_bytes = 0
        self.counters.jobs_moved += len(jobs)
        self._on_lost(self, jobs, self._failure)

    def _serve(self) -> None:
        """Work until there is no more to come, or the device fails."""
        while self._wait():
            with self._turn:
                if self._lost:
                    return
                try:
                    self._drain()
                except Exception as error:  # noqa: BLE001  (of whatever kind: see `compute_here`)
                    self._fail(error, [job for slot in self._slots for job in slot.jobs if not job.done()])

    def _wait(self) -> bool:
        """Wait for a job; false at the end."""
        with self._changed:
            while not self._queue and not self._closing and not self._lost:
                self._changed.wait()
            return bool(self._queue)

    def _drain(self) -> None:
        """Keep the slots in motion until nothing is queued and nothing on its way."""
        free = deque(self._slots)
        running: deque[tuple[Slot, int]] = deque()
        while True:
            jobs = self._take(may_wait=not running) if free else []
            if jobs:
                slot = free.popleft()
                started_ns = time.monotonic_ns()
                slot.start(jobs)
                self._running_jobs += len(jobs)
                running.append((slot, started_ns))
            elif running:
                slot, started_ns = running.popleft()
                finished = slot.finish()
                self._running_jobs -= len(finished)
                self._window.observe(started_ns, time.monotonic_ns())
                self._count(finished)
                free.append(slot)
                for job in finished:
                    job.finish()
            else:
                return

    def _take(self, *, may_wait: bool) -> list[CudaJob]:
        """Jobs for one launch; none when nothing is due, or only later and others are on their way."""
        with self._changed:
            while self._queue and not self._closing and not self._is_full():
                now_ns = time.monotonic_ns()
                due_ns = self._queue[0].submitted_ns + self._window.length_ns(now_ns)
                if now_ns >= due_ns:
                    break
                if not may_wait:
                    return []
                self._changed.wait((due_ns - now_ns) / 1e9)
            jobs: list[CudaJob] = []
            load = Load()
            while self._queue and len(jobs) < self._limits.jobs_in_launch_max and load.add(self._queue[0]):
                jobs.append(self._queue.popleft())
                self._queued_bytes -= jobs[-1].samples.nbytes
        return jobs

    def _is_full(self) -> bool:
        """Whether a launch is waiting that no other job could join, or none is to be expected."""
        return (
            self._queue[0].pinned
            or 0 < self.streams <= len(self._queue) + self._running_jobs
            or self._queued_bytes >= STAGING_BYTES
            or len(self._queue) >= self._limits.jobs_in_launch_max
        )

    def _count(self, jobs: list[CudaJob]) -> None:
        counters = self.counters
        counters.launches += 1
        counters.jobs += len(jobs)
        for job in jobs:
            counters.frames += job.frame_count
            counters.bytes_in += job.samples.nbytes
            counters.bytes_out += job.frames.nbytes
        counters.jobs_in_launch_max = max(counters.jobs_in_launch_max, len(jobs))
