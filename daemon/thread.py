"""Scheduler hints for the calling thread that need no privileges."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

from daemon.plane.system import system_call

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_PR_SET_NAME = 15
SLICE_NS = 100_000  # the shortest slice the scheduler grants


class _Attributes(ctypes.Structure):
    """The first version of struct sched_attr."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    ]


def set_name(name: str) -> None:
    """Set the name shown by top -H and debuggers; at most 15 characters. Python 3.14 does this by itself."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    ctypes.CDLL(None).prctl(_PR_SET_NAME, buffer, 0, 0, 0)


def ask_for_short_slices() -> bool:
    """Request short time slices, so that the thread runs soon after waking: a hint to the fair scheduler (Linux 6.12).

    Where threads outnumber cores, a token then waits a tenth of a millisecond instead of three. False when the kernel
    does not accept the hint: tokens are then as late as the scheduler's default slices make them.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    attributes = _Attributes(size=ctypes.sizeof(_Attributes), policy=0, runtime_ns=SLICE_NS)
    attributes.nice = os.getpriority(os.PRIO_PROCESS, 0)
    address = ctypes.addressof(attributes)
    return system_call(number, 0, address, 0, 0, 0, 0) == 0
