"""What the loop keeps of its kernel interface, as one record: addresses and descriptors of whichever is in use.

Filled on the data-plane thread before the loop begins, and written by that kernel's `enter` alone from then on.
"""

from __future__ import annotations

from daemon.plane.records import record, record_accessor

KERNEL = record(
    "kind:i8 scratch:i8 timespec:i8 "
    # the ring's: its descriptor and the addresses of the words it shares
    "fd:i8 sqpoll:i8 sq_head:i8 sq_tail:i8 sq_flags:i8 cq_head:i8 cq_tail:i8 argument:i8 "
    # epoll's: the descriptor; what epoll_wait fills and epoll_ctl reads; whether it waits by milliseconds only
    "epoll_fd:i8 events:i8 change:i8 coarse:i8 polled_ns:i8 "
    # one interest per descriptor; operations that wait, how many there may be, were ever used, and the first free one
    "interests:i8 interest_count:i8 operations:i8 operation_count:i8 operations_touched:i8 operation_free:i8 "
    # first operation of each hash of a tag
    "buckets:i8 bucket_mask:i8 "
    # provided buffers that were taken
    "provided_head:i8",
    256,
)
kernel_at = record_accessor(KERNEL)
TIMESPEC = record("seconds:i8 nanoseconds:i8", 16)  # struct __kernel_timespec
KERNEL_IO_URING = 1
KERNEL_EPOLL = 2
