"""The few things compiled code does with raw memory: copy and clear bytes, and access words the kernel shares.

Every helper has a Python body, which is its specification and what runs when the plane is interpreted, and a
compiled twin. Addresses are plain integers. Data-plane thread, or tests.
"""

from __future__ import annotations

import ctypes
from typing import Any

from config.compilation import foreign, intrinsic, ir, overload, types

_memmove = foreign("memmove", types.intp, types.intp, types.intp, types.intp)
_memset = foreign("memset", types.intp, types.intp, types.intc, types.intp)


def copy_bytes(destination: int, source: int, count: int) -> None:
    """Copy `count` bytes between two addresses; they may overlap."""
    ctypes.memmove(int(destination), int(source), int(count))


@overload(copy_bytes, inline="always")
def _copy_bytes(destination: Any, source: Any, count: Any) -> Any:
    def copy(destination: Any, source: Any, count: Any) -> Any:
        _memmove(destination, source, count)

    return copy


def clear_bytes(destination: int, count: int) -> None:
    """Set `count` bytes to zero."""
    ctypes.memset(int(destination), 0, int(count))


@overload(clear_bytes, inline="always")
def _clear_bytes(destination: Any, count: Any) -> Any:
    def clear(destination: Any, count: Any) -> Any:
        _memset(destination, 0, count)

    return clear


def load_acquire(address: int) -> int:
    """Read an unsigned 32-bit word that the kernel writes; later reads are not moved before it."""
    return int(ctypes.c_uint32.from_address(int(address)).value)


@intrinsic
def _load_acquire(_context: Any, address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        return builder.zext(builder.load_atomic(pointer, "acquire", 4), ir.IntType(64))

    return types.int64(types.intp), generate


@overload(load_acquire, inline="always")
def _load_acquire_compiled(address: Any) -> Any:
    def load(address: Any) -> Any:
        return _load_acquire(address)

    return load


def store_release(address: int, value: int) -> None:
    """Write an unsigned 32-bit word that the kernel reads; earlier writes are not moved after it."""
    ctypes.c_uint32.from_address(int(address)).value = int(value) & 0xFFFFFFFF


@intrinsic
def _store_release(_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        builder.store_atomic(builder.trunc(arguments[1], ir.IntType(32)), pointer, "release", 4)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@overload(store_release, inline="always")
def _store_release_compiled(address: Any, value: Any) -> Any:
    def store(address: Any, value: Any) -> Any:
        _store_release(address, value)

    return store


def full_fence() -> None:
    """Order every earlier read and write before every later one. SQPOLL's wake-up check needs it."""


@intrinsic
def _full_fence(_context: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@overload(full_fence, inline="always")
def _full_fence_compiled() -> Any:
    def fence() -> Any:
        _full_fence()

    return fence
