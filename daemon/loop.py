"""The compiled loop: read the clock, take a turn, enter the kernel.

`run` is the whole of it, and the entry point of the built library. The data plane's thread enters it once
(`daemon.data_plane`); it returns at shutdown, or with the errno of a kernel interface that failed.
"""

from __future__ import annotations

from config.compilation import compiled
from daemon.epoll.enter import epoll_enter
from daemon.plane.kernel_record import KERNEL_IO_URING, kernel_at
from daemon.plane.system import monotonic_ns
from daemon.plane.table import globals_at
from daemon.plane.turn import STOPPED, turn
from daemon.ring.enter import ring_enter


@compiled
def run(plane_address: int, kernel_address: int) -> int:
    """The data plane, until it is asked to stop (0) or its kernel interface fails (negative errno).

    The addresses are those of a `table.GLOBALS` and of a `kernel_record.KERNEL`.
    """
    plane, kernel = globals_at(plane_address), kernel_at(kernel_address)
    while True:
        plane.now_ns = monotonic_ns(kernel.scratch)
        if turn(plane) == STOPPED:
            return 0
        code = ring_enter(plane, kernel) if kernel.kind == KERNEL_IO_URING else epoll_enter(plane, kernel)
        if code < 0:
            return code
