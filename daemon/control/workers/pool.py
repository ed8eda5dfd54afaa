"""The thread pool: a bounded queue of streams that wait for a worker (llm_queued), and the threads that take them.

Jobs are given out on the main thread; daemon/control/workers/thread.py is what a thread does with one. Threads are
started when they are first needed. The lock guards the queue alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from daemon.control.process.rate_limited_log import RateLimitedLog
from daemon.control.workers.thread import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.control.stream.job import Job

logger = logging.getLogger(__name__)


class WorkerPool:
    """Threads that run backends. All methods but `take` are the main thread's."""

    def __init__(
        self,
        event_fds: Sequence[int],
        command_fd: int,
        *,
        queue_count_max: int,
        output_block_bytes: int,
        credit_bytes: int,
    ) -> None:
        """One worker for each of `event_fds`, the read ends of the plane's channels 1, 2, ..."""
        self._event_fds = tuple(event_fds)
        self._command_fd = command_fd
        self._output_block_bytes = output_block_bytes
        self._credit_bytes = credit_bytes
        self.queue_count_max = queue_count_max
        self._lock = threading.Lock()
        self._queue: OrderedDict[Job, None] = OrderedDict()
        self._reserved = 0  # admitted, but their OPEN is not in the pipe yet
        self._idle: list[WorkerThread] = []
        self._workers: list[WorkerThread] = []
        self.stopping = False
        self._rare = RateLimitedLog(logger)

    @property
    def queued_count(self) -> int:
        """Streams that wait for a worker."""
        return len(self._queue) + self._reserved

    @property
    def thread_count(self) -> int:
        """Threads that have been started."""
        return len(self._workers)

    def reserve(self) -> bool:
        """Keep a place in the queue for a job that will be given to `enqueue`. False when it is full."""
        with self._lock:
            # A worker that is idle, or not yet started, takes one at once: it needs no place.
            spare = len(self._idle) + len(self._event_fds) - len(self._workers)
            if self.queued_count >= self.queue_count_max + spare:
                return False
            self._reserved += 1
            return True

    def give_back(self) -> None:
        """A place that was reserved is not needed."""
        with self._lock:
            self._reserved -= 1

    def enqueue(self, job: Job) -> None:
        """Give out a job whose place was reserved, now that its OPEN is on its way."""
        with self._lock:
            self._reserved -= 1
            if job.cancelled or self.stopping:
                job.settled = True
                return
            self._queue[job] = None
            worker = self._idle.pop() if self._idle else None
        if worker is not None:
            worker.wake()
        elif len(self._workers) < len(self._event_fds):
            self._start_worker()

    def cancel(self, job: Job) -> None:
        """The stream has been stopped, or is about to be: forget a queued job, interrupt one that runs."""
        job.cancelled = True
        with self._lock:
            if self._queue.pop(job, job) is None:
                job.settled = True
            worker = job.worker
        if worker is not None and not job.settled:
            worker.wake()

    def end(self, job: Job) -> None:
        """ENDED has come: nothing refers to the job's bytes any more, whether or not its worker heard of that."""
        job.ended = True
        if not job.settled:
            self.cancel(job)

    def take(self, worker: WorkerThread) -> Job | None:
        """The next job; None when the pool stops. Called by the workers' threads."""
        while True:
            with self._lock:
                if self.stopping:
                    return None
                if self._queue:
                    job, _ = self._queue.popitem(last=False)
                    job.worker = worker
                    return job
                self._idle.append(worker)
            worker.wait_idle()
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)

    def stop(self, timeout_s: float) -> bool:
        """End all threads; streams they still feed are not finished. False when a backend does not let go in time."""
        with self._lock:
            self.stopping = True
            for job in self._queue:
                job.settled = True
            self._queue.clear()
        for worker in self._workers:
            worker.wake()
        deadline_s = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.thread.join(max(0.0, deadline_s - time.monotonic()))
        ended = not any(worker.thread.is_alive() for worker in self._workers)
        if ended:
            for worker in self._workers:
                worker.close()
            self._workers.clear()
        return ended

    def _start_worker(self) -> None:
        """One more thread. Where it cannot be had the queue is left to those there are, and to the next attempt."""
        channel = len(self._workers) + 1
        event_fd = self._event_fds[channel - 1]
        try:
            worker = WorkerThread(
                self, channel, event_fd, self._command_fd, self._output_block_bytes, self._credit_bytes
            )
        except OSError as error:
            self._rare.warn(f"no descriptors for another worker, streams wait in the queue: {error}", "no_worker")
            return
        try:
            worker.thread.start()
        except RuntimeError as error:
            worker.close()
            self._rare.warn(f"no other worker thread, streams wait in the queue: {error}", "no_worker")
            return
        self._workers.append(worker)
