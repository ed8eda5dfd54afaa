"""What a thread may ask of the scheduler for itself, without privileges. Called on the thread concerned."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

from daemon.plane.system import system_call

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_PR_SET_NAME = 15
SLICE_NS = 100_000  # the shortest the scheduler grants


class _Attributes(ctypes.Structure):
    """struct sched_attr, as of its first version."""

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
    """The name that top -H and a debugger show; 15 characters at most. Python does so by itself from 3.14 on."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    ctypes.CDLL(None).prctl(_PR_SET_NAME, buffer, 0, 0, 0)


def ask_for_short_slices() -> bool:
    """Be run soon after waking, rather than late and long: a hint to the fair scheduler (Linux 6.12).

    Where threads outnumber cores, a token then waits for a tenth of a millisecond and not for three. False where the
    kernel does not take the hint: tokens are as late there as the scheduler's own slices make them.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    attributes = _Attributes(size=ctypes.sizeof(_Attributes), policy=0, runtime_ns=SLICE_NS)
    attributes.nice = os.getpriority(os.PRIO_PROCESS, 0)
    address = ctypes.addressof(attributes)
    return system_call(number, 0, address, 0, 0, 0, 0) == 0
