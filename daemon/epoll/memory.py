"""Set up the epoll kernel: its descriptor, an interest for every descriptor there can be, and room for what waits."""

from __future__ import annotations

import os
import resource
import select
from typing import TYPE_CHECKING, Any

import numpy as np

from daemon.epoll.calls import EVENT, SYS_EPOLL_PWAIT2
from daemon.epoll.enter import EVENTS_MAX
from daemon.epoll.waiting import BUCKET, INTEREST, OPERATION
from daemon.plane.kernel_record import TIMESPEC
from daemon.plane.records import lazy_records
from daemon.plane.system import system_call
from daemon.plane.table import CHANNEL_COUNT_MAX

if TYPE_CHECKING:
    from daemon.plane.table import Plane

DESCRIPTORS_MAX = 1 << 22  # where the limit is none, or absurd; a descriptor beyond cannot be waited for
WAITING_PER_SLOT = 6  # polls of client and peer, sends and receives or their polls, of the client and of an upstream
WAITING_PER_CHANNEL = 2


def attach(kernel: Any, plane: Plane) -> list[Any]:
    """Make epoll's descriptor and memory, and enter them in the kernel's record; what is returned must be kept.

    Memory is for the hard limit of descriptors, since the soft one may be raised later; pages are taken as they are
    touched. The listener is put into non-blocking mode: a peer that is gone again must not stop the plane.
    """
    shared = plane.globals[0]
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    interest_count = min(hard_limit, DESCRIPTORS_MAX) if hard_limit > 0 else DESCRIPTORS_MAX
    operation_count = int(shared.slot_count) * WAITING_PER_SLOT + CHANNEL_COUNT_MAX * WAITING_PER_CHANNEL
    bucket_count = 1 << (operation_count - 1).bit_length()
    epoll = select.epoll()
    interests = lazy_records(INTEREST, interest_count)
    operations = lazy_records(OPERATION, operation_count + 1)
    buckets = lazy_records(BUCKET, bucket_count)
    events, change, timespec = np.zeros(EVENTS_MAX, EVENT), np.zeros(1, EVENT), np.zeros(1, TIMESPEC)
    kernel.epoll_fd = epoll.fileno()
    kernel.interests, kernel.interest_count = interests.ctypes.data, interest_count
    kernel.operations, kernel.operation_count = operations.ctypes.data, operation_count
    kernel.operations_touched = kernel.operation_free = 0
    kernel.buckets, kernel.bucket_mask = buckets.ctypes.data, bucket_count - 1
    kernel.events, kernel.change, kernel.timespec = (a.ctypes.data for a in (events, change, timespec))
    # Linux 5.11; older ones, and some seccomp profiles, have only milliseconds.
    kernel.coarse = system_call(SYS_EPOLL_PWAIT2, kernel.epoll_fd, kernel.events, 1, kernel.timespec, 0, 0) < 0
    if shared.listener_fd >= 0:
        os.set_blocking(int(shared.listener_fd), False)
    return [epoll, interests, operations, buckets, events, change, timespec]
