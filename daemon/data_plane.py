"""The data plane's thread, and the control plane's handle to it.

The thread enters the compiled loop (`daemon.loop.run`) once, without the GIL, and leaves it at shutdown or when its
kernel interface fails. It blocks all signals.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from config.library import PLANE, native
from daemon import thread
from daemon.epoll import memory as epoll_memory
from daemon.plane.kernel_record import KERNEL, KERNEL_EPOLL, KERNEL_IO_URING, TIMESPEC
from daemon.ring.enter import ARGUMENT
from daemon.ring.memory import Buffers, KernelError, Ring, close_ring, kernel_version, open_ring

if TYPE_CHECKING:
    from config.settings import Settings
    from daemon.plane.table import Plane

COMMAND_PIPE_BYTES = 1 << 20
EVENT_PIPE_BYTES = 1 << 18
F_SETPIPE_SZ = 1031


@dataclass
class KernelReport:
    """What this machine's kernel offers, which interface is used, and why."""

    version: tuple[int, int]
    chosen: str
    reason: str
    io_uring_available: bool
    features: dict[str, bool] = field(default_factory=dict[str, bool])


def _open_kernel(settings: Settings, buffers: Buffers | None = None) -> tuple[Ring | None, KernelReport]:
    """The ring, or None for epoll, by the settings and the kernel's abilities. Called on the thread that uses it."""
    configured = settings.server.kernel
    version = kernel_version()
    if configured == "epoll":
        return None, KernelReport(version, "epoll", "selected by the configuration", io_uring_available=False)
    performance = settings.performance
    try:
        ring = open_ring(
            performance.submission_entries,
            sqpoll=performance.sqpoll,
            no_sqarray=performance.no_sqarray,
            buffers=buffers,
        )
    except KernelError as error:
        if configured == "io_uring":
            raise
        return None, KernelReport(version, "epoll", f"io_uring cannot be used: {error}", io_uring_available=False)
    reason = "selected by the configuration" if configured == "io_uring" else "available"
    return ring, KernelReport(version, "io_uring", reason, io_uring_available=True, features=dict(ring.features))


def probe(settings: Settings) -> KernelReport:
    """Try the kernel as the data plane would, and release it. KernelError when a required io_uring is missing."""
    ring, report = _open_kernel(settings)
    if ring is not None:
        close_ring(ring)
    return report


class DataPlane:
    """The data plane's thread and its channels. Made, started and joined by the main thread."""

    def __init__(self, settings: Settings, plane: Plane, listener_fd: int, channel_count: int) -> None:
        self.plane = plane
        self.kernel = ""
        self.kernel_reason = ""
        self.features: dict[str, bool] = {}
        self.error: str | None = None
        self.thread_id = 0
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._settings = settings
        self._failure: KernelError | None = None
        self._ready = threading.Event()
        self._kept: list[Any] = []
        self._kernel = np.zeros(1, KERNEL)
        self._run = native(PLANE, "daemon.loop.run")
        self._thread = threading.Thread(target=self._main, name="data-plane", daemon=True)
        shared = plane.globals[0]
        shared.listener_fd = listener_fd
        shared.command_fd, self.command_fd = _pipe(COMMAND_PIPE_BYTES)
        os.set_blocking(self.command_fd, False)
        self.event_fds: list[int] = []
        for channel in range(channel_count):
            read_end, plane.channels[channel].fd = _pipe(EVENT_PIPE_BYTES)
            os.set_blocking(read_end, False)
            self.event_fds.append(read_end)
        shared.channel_count = channel_count

    def start(self) -> None:
        """Start the thread; returns after the plane's first turn. KernelError when no interface can be set up."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        turns = self.plane.counters
        while turns[0] == 0 and self._thread.is_alive():
            self._thread.join(0.001)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; False when it is still running."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.thread_id = threading.get_native_id()
        thread.set_name("data-plane")
        ring: Ring | None = None
        try:
            buffers = Buffers(self.plane.provided.ctypes.data, len(self.plane.provided))
            ring, report = _open_kernel(self._settings, buffers)
            self.kernel, self.kernel_reason, self.features = report.chosen, report.reason, report.features
            self.features["short_slices"] = thread.ask_for_short_slices()
            self._attach(ring)
            self._ready.set()
            code = self._run(self.plane.globals.ctypes.data, self._kernel.ctypes.data)
            if code < 0:
                self.error = f"{self.kernel}: {os.strerror(-code)}"
        except KernelError as error:
            self._failure = error
        except AssertionError as error:
            self.error = f"an assertion of the data plane failed: {str(error) or 'no message'}"
        finally:
            if ring is not None:
                close_ring(ring)
            os.eventfd_write(self.ended_fd, 1)
            self._ready.set()

    def _attach(self, ring: Ring | None) -> None:
        """Set the kernel's record and the plane's queues to the memory they share."""
        record = self._kernel[0]
        shared = self.plane.globals[0]
        scratch, argument, timespec = np.zeros(2, np.int64), np.zeros(1, ARGUMENT), np.zeros(1, TIMESPEC)
        self._kept += [scratch, argument, timespec]
        record.scratch, record.argument, record.timespec = (a.ctypes.data for a in (scratch, argument, timespec))
        blocking = ring is not None
        os.set_blocking(int(shared.command_fd), blocking)
        for channel in range(int(shared.channel_count)):
            os.set_blocking(int(self.plane.channels[channel].fd), blocking)
        if ring is None:
            record.kind = KERNEL_EPOLL
            self._kept.append(epoll_memory.attach(record, self.plane))
            return
        submission, completion = ring.structure.sq, ring.structure.cq
        record.kind = KERNEL_IO_URING
        record.fd = ring.fd
        record.sqpoll = ring.features.get("sqpoll", False)
        record.sq_head, record.sq_tail, record.sq_flags = submission.head, submission.tail, submission.flags
        record.cq_head, record.cq_tail = completion.head, completion.tail
        shared.submissions, shared.completions = submission.sqes, completion.cqes
        shared.submission_mask, shared.completion_mask = submission.ring_entries - 1, completion.ring_entries - 1
        shared.zero_copy = ring.features.get("send_zero_copy", False) and shared.zero_copy_bytes_min > 0


def _pipe(size_bytes: int) -> tuple[int, int]:
    """A pipe of this capacity, or of the largest that the system allows."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    # Beyond the user's pipe limit the default of 64 KiB works, with more data queued in the sender.
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(write_end, F_SETPIPE_SZ, size_bytes)
    return read_end, write_end
