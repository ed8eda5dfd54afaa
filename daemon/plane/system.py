"""The C library's functions that compiled code calls, each with a Python twin for interpreted runs.

All of them are for the loop and its two kernels, on the data-plane thread. Results are the kernel's: not negative, or
the negative errno.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

from config.compilation import foreign, overload, types
from daemon.plane.records import record, record_accessor

_INT32 = record("value:i4", 4)
TIMESPEC = record("seconds:i8 nanoseconds:i8", 16)
_int32_at = record_accessor(_INT32)
_timespec_at = record_accessor(TIMESPEC)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_syscall6 = foreign("syscall", types.int64, *([types.int64] * 7))
_clock_gettime = foreign("clock_gettime", types.int32, types.int32, types.intp)
_errno_location = foreign("__errno_location", types.intp)

CLOCK_MONOTONIC = 1


def system_call(number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    """Any system call by number; its result, or the negative errno."""
    result = int(_libc.syscall(*(ctypes.c_long(int(value)) for value in (number, a, b, c, d, e, f))))
    return -ctypes.get_errno() if result == -1 else result


@overload(system_call)
def _system_call(number: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    def call(number: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        result = _syscall6(number, a, b, c, d, e, f)
        if result == -1:
            return -int(_int32_at(_errno_location()).value)
        return result

    return call


def monotonic_ns(scratch_address: int) -> int:
    """CLOCK_MONOTONIC in nanoseconds; `scratch_address` points to 16 bytes for the answer."""
    assert scratch_address != 0
    return time.monotonic_ns()


@overload(monotonic_ns)
def _monotonic_ns(scratch_address: Any) -> Any:
    def clock(scratch_address: Any) -> Any:
        _clock_gettime(CLOCK_MONOTONIC, scratch_address)
        now = _timespec_at(scratch_address)
        return now.seconds * 1_000_000_000 + now.nanoseconds

    return clock
