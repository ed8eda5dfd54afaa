"""A kernel interface alone: submissions written by hand, one enter, and the completions that it posted.

Both kernels stand behind it, so that one suite says what the plane may expect of either.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from config.settings import Settings
from daemon.epoll import memory as epoll_memory
from daemon.epoll.enter import epoll_enter
from daemon.plane.entries import COMPLETION_MORE, COMPLETION_NOTIFICATION, OFFSET_CURRENT
from daemon.plane.kernel_record import KERNEL, KERNEL_EPOLL, KERNEL_IO_URING, TIMESPEC
from daemon.plane.table import FOREVER_NS, allocate
from daemon.ring.enter import ARGUMENT, ring_enter
from daemon.ring.memory import close_ring, open_ring

if TYPE_CHECKING:
    from collections.abc import Generator

    from daemon.ring.memory import Ring

SUBMISSION_COUNT = 64
_FLAGS = COMPLETION_MORE | COMPLETION_NOTIFICATION  # others are hints that the plane does not look at
Array = npt.NDArray[Any]
Completion = tuple[int, int, int]  # tag, result, flags


def small_settings() -> Settings:
    settings = Settings()
    performance = msgspec.structs.replace(settings.performance, submission_entries=SUBMISSION_COUNT)
    server = msgspec.structs.replace(settings.server, max_connections=64)
    return msgspec.structs.replace(settings, performance=performance, server=server)


class Kernel:
    """A small plane and one kernel interface under it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.plane = allocate(small_settings())
        self.shared: Any = self.plane.globals[0]
        self.record: Any = np.zeros(1, KERNEL)[0]
        self.ring: Ring | None = None
        self._submissions: Any = self.plane.submissions
        self._completions: Any = self.plane.completions
        self._argument, self._timespec = np.zeros(1, ARGUMENT), np.zeros(1, TIMESPEC)
        if name == "epoll":
            self.record.kind = KERNEL_EPOLL
            self._kept = epoll_memory.attach(self.record, self.plane)
        else:
            self._attach_ring(open_ring(SUBMISSION_COUNT))

    def _attach_ring(self, ring: Ring) -> None:
        self.ring = ring
        submission, completion = ring.structure.sq, ring.structure.cq
        record, shared = self.record, self.shared
        record.kind, record.fd = KERNEL_IO_URING, ring.fd
        record.sq_head, record.sq_tail, record.sq_flags = submission.head, submission.tail, submission.flags
        record.cq_head, record.cq_tail = completion.head, completion.tail
        record.argument, record.timespec = self._argument.ctypes.data, self._timespec.ctypes.data
        shared.submissions, shared.completions = submission.sqes, completion.cqes
        shared.submission_mask, shared.completion_mask = submission.ring_entries - 1, completion.ring_entries - 1
        self._submissions = _view(submission.sqes, self.plane.submissions.dtype, submission.ring_entries)
        self._completions = _view(completion.cqes, self.plane.completions.dtype, completion.ring_entries)

    def set_modes(self, *fds: int) -> None:
        """Pipes and listeners in the mode in which the loop gives them to this kernel."""
        for fd in fds:
            os.set_blocking(fd, self.name != "epoll")

    def close(self) -> None:
        if self.ring is not None:
            close_ring(self.ring)
        else:
            self._kept[0].close()

    def submit(self, opcode: int, fd: int, tag: int, **fields: int) -> None:
        """Fill the next submission; it is served by the next enter."""
        shared = self.shared
        assert shared.submission_pending <= shared.submission_mask
        index = int(shared.submission_base + shared.submission_pending) & int(shared.submission_mask)
        entry: Any = self._submissions[index : index + 1]
        entry[:] = 0
        values = {"opcode": opcode, "fd": fd, "tag": tag, **fields}
        if fields.get("offset") == -1:
            values["offset"] = OFFSET_CURRENT
        for name, value in values.items():
            entry[name] = value
        shared.submission_pending += 1

    def enter_only(self, wait_ms: float = 0) -> int:
        """One enter, its completions left where they are."""
        shared = self.shared
        shared.now_ns = time.monotonic_ns()
        shared.wait_until_ns = FOREVER_NS if wait_ms < 0 else shared.now_ns + int(wait_ms * 1e6)
        enter = epoll_enter if self.name == "epoll" else ring_enter
        return int(enter(shared, self.record))

    def consume(self) -> list[Completion]:
        """Take the completions as a turn does."""
        shared = self.shared
        mask = int(shared.completion_mask)
        found: list[Completion] = []
        for index in range(int(shared.completion_count)):
            entry: Any = self._completions[(int(shared.completion_base) + index) & mask]
            found.append((int(entry["tag"]), int(entry["result"]), int(entry["flags"]) & _FLAGS))
        shared.completion_base += shared.completion_count
        shared.completion_count = 0
        return found

    def enter(self, wait_ms: float = 0) -> list[Completion]:
        """One enter and its completions."""
        assert self.enter_only(wait_ms) == 0
        return self.consume()

    def settle(self, quiet_ms: float = 15) -> list[Completion]:
        """Enter until nothing more comes."""
        found = self.enter()
        while True:
            more = self.enter(quiet_ms)
            if not more and not self.shared.submission_pending:
                return found
            found += more

    def expect(self, wait_ms: float = 2000) -> Completion:
        """Exactly one completion, waited for."""
        end = time.monotonic() + wait_ms / 1000
        found = self.enter()
        while not found and time.monotonic() < end:
            found = self.enter(50)
        assert len(found) == 1
        return found[0]


def _view(address: int, dtype: np.dtype[Any], count: int) -> Array:
    memory: Any = (ctypes.c_char * (dtype.itemsize * count)).from_address(address)
    return np.frombuffer(memory, dtype=dtype)


@contextlib.contextmanager
def opened(name: str) -> Generator[Kernel]:
    kernel = Kernel(name)
    try:
        yield kernel
    finally:
        kernel.close()


def address_of(memory: Array) -> int:
    """Where a NumPy array's bytes lie."""
    return int(memory.ctypes.data)


def fill(fd: int) -> int:
    """Write until no more fits; how many bytes did. Leaves the descriptor's mode as it was."""
    was_blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    total = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            total += os.write(fd, b"x" * 4096)
    os.set_blocking(fd, was_blocking)
    return total
