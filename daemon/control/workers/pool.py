"""The thread pool: a bounded queue of streams that wait for a worker (llm_queued), and the threads that serve them.

Jobs are handed out on the main thread; daemon/control/workers/thread.py runs them. Threads are started on demand. The
lock guards only the queue.
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
    """Threads that run backends. All methods except `take` are for the main thread."""

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
        self._reserved = 0  # admitted, but OPEN not yet sent
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
        """Reserve a place in the queue for a job passed to `enqueue` later. False when the queue is full."""
        with self._lock:
            # An idle or not yet started worker takes the job at once: no place is needed.
            spare = len(self._idle) + len(self._event_fds) - len(self._workers)
            if self.queued_count >= self.queue_count_max + spare:
                return False
            self._reserved += 1
            return True

    def give_back(self) -> None:
        """Cancel a reservation."""
        with self._lock:
            self._reserved -= 1

    def enqueue(self, job: Job) -> None:
        """Hand out a job whose place was reserved; its OPEN has been sent."""
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
        """The stream has been stopped, or is about to be: drop a queued job, interrupt a running one."""
        job.cancelled = True
        with self._lock:
            if self._queue.pop(job, job) is None:
                job.settled = True
            worker = job.worker
        if worker is not None and not job.settled:
            worker.wake()

    def end(self, job: Job) -> None:
        """ENDED has arrived: nothing refers to the job's bytes any more, whether or not its worker knows."""
        job.ended = True
        if not job.settled:
            self.cancel(job)

    def take(self, worker: WorkerThread) -> Job | None:
        """The next job; None when the pool stops. Called by worker threads."""
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
        """End all threads, dropping their streams. False when a backend does not return in time."""
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
        """Start a thread. On failure the queue is left to the existing threads and to the next attempt."""
        channel = len(self._workers) + 1
        event_fd = self._event_fds[channel - 1]
        try:
            worker = WorkerThread(
                self, channel, event_fd, self._command_fd, self._output_block_bytes, self._credit_bytes
            )
        except OSError as error:
            self._rare.warn(
                f"out of file descriptors for another worker, streams wait in the queue: {error}", "no_worker"
            )
            return
        try:
            worker.thread.start()
        except RuntimeError as error:
            worker.close()
            self._rare.warn(f"cannot start another worker thread, streams wait in the queue: {error}", "no_worker")
            return
        self._workers.append(worker)
