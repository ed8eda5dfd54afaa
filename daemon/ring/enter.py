"""Enter the kernel once: publish submissions, wait for completions until a time, and see what has come.

With DEFER_TASKRUN completions are posted only in here, on this thread. With SQPOLL the kernel's own thread takes the
submissions, and is woken only when it says that it sleeps. Data-plane thread only.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled
from daemon.plane.counters import COMPLETION_OVERFLOWS
from daemon.plane.kernel_record import TIMESPEC
from daemon.plane.memory import full_fence, load_acquire, store_release
from daemon.plane.records import record, record_accessor
from daemon.plane.system import system_call
from daemon.plane.table import FOREVER_NS, count

SYS_IO_URING_ENTER = 426
GETEVENTS = 1
SQ_WAKEUP = 2
EXT_ARG = 8
SQ_NEED_WAKEUP = 1
SQ_CQ_OVERFLOW = 2
EINTR, EAGAIN, EBUSY, ETIME = 4, 11, 16, 62

ARGUMENT = record("sigmask:i8 sigmask_bytes:i4 min_wait_us:i4 timespec:i8", 24)  # struct io_uring_getevents_arg
_argument_at = record_accessor(ARGUMENT)
_timespec_at = record_accessor(TIMESPEC)


@compiled
def ring_enter(plane: Any, kernel: Any) -> int:
    """Submit, wait, reap. 0, or the negative errno of a ring that can no longer be used."""
    store_release(kernel.cq_head, plane.completion_base)
    store_release(kernel.sq_tail, plane.submission_base + plane.submission_pending)
    flags = GETEVENTS | EXT_ARG
    to_submit = int(plane.submission_pending)
    if kernel.sqpoll:
        full_fence()
        if load_acquire(kernel.sq_flags) & SQ_NEED_WAKEUP:
            flags |= SQ_WAKEUP
    wait_for = 0
    timespec_address = 0
    present = (load_acquire(kernel.cq_tail) - plane.completion_base) & 0xFFFFFFFF
    if present == 0 and plane.wait_until_ns > plane.now_ns:
        wait_for = 1
        if plane.wait_until_ns < FOREVER_NS:
            timespec = _timespec_at(kernel.timespec)
            wait_ns = plane.wait_until_ns - plane.now_ns
            timespec.seconds = wait_ns // 1_000_000_000
            timespec.nanoseconds = wait_ns % 1_000_000_000
            timespec_address = kernel.timespec
    _argument_at(kernel.argument).timespec = timespec_address
    result = system_call(SYS_IO_URING_ENTER, kernel.fd, to_submit, wait_for, flags, kernel.argument, 24)
    taken = (load_acquire(kernel.sq_head) - plane.submission_base) & 0xFFFFFFFF
    assert taken <= plane.submission_pending
    plane.submission_base += taken
    plane.submission_pending -= taken
    plane.completion_count = (load_acquire(kernel.cq_tail) - plane.completion_base) & 0xFFFFFFFF
    if load_acquire(kernel.sq_flags) & SQ_CQ_OVERFLOW:
        count(plane, COMPLETION_OVERFLOWS, 1)
    if result >= 0 or result == -EINTR or result == -EAGAIN or result == -EBUSY or result == -ETIME:
        return 0
    return result
