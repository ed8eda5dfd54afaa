"""A GPU through PyCUDA: primary context, pools of memory, streams, events, and CUDA kernels.

Imported only where a GPU is asked for: needs the extra `gpu`. `ptx` has the kernels; the driver loads them, and a
launch is one call with arguments that were packed before (Numba's own takes 21 us).
The pools free nothing before the device is closed, so that no buffer is ever allocated while streams are running.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import pycuda.driver as _driver  # type: ignore[import-not-found,import-untyped,unused-ignore]
import pycuda.tools as _tools  # type: ignore[import-not-found,import-untyped,unused-ignore]

from backends.mel.cuda.device import ArrayArgument, Device, DeviceError, KernelKey
from backends.mel.cuda.layout import CLAMP_BLOCK, LOG_MEL_BLOCK, SHARED_BYTES
from backends.mel.cuda.ptx import kernel_ptx

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.mel.cuda.device import Bytes, DeviceEvent, DeviceMemory, DeviceStream, Launch, Pages

driver: Any = _driver
tools: Any = _tools

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _checked(function: Callable[_P, _R], *arguments: _P.args, **keywords: _P.kwargs) -> _R:
    """Call CUDA; its errors become ours."""
    try:
        return function(*arguments, **keywords)
    except driver.Error as error:
        raise DeviceError(str(error)) from error


class _Memory:
    __slots__ = ("address", "allocation", "byte_count")

    def __init__(self, allocation: Any, byte_count: int) -> None:
        self.allocation = allocation
        self.address = int(allocation)
        self.byte_count = byte_count


class _Stream:
    __slots__ = ("handle",)

    def __init__(self) -> None:
        self.handle: Any = _checked(driver.Stream)

    def wait(self) -> None:
        _checked(self.handle.synchronize)


class _Event:
    __slots__ = ("handle",)

    def __init__(self) -> None:
        self.handle: Any = _checked(driver.Event)

    def record(self, stream: DeviceStream) -> None:
        _checked(self.handle.record, cast("_Stream", stream).handle)

    def done(self) -> bool:
        return bool(_checked(self.handle.query))

    def wait(self) -> None:
        _checked(self.handle.synchronize)

    def milliseconds_since(self, earlier: DeviceEvent) -> float:
        return float(_checked(self.handle.time_since, cast("_Event", earlier).handle))


def _pack(arguments: tuple[ArrayArgument | float, ...]) -> bytes:
    """Arguments as Numba's kernels take them: an array is (0, 0, items, item size, address, shape, strides)."""
    packed = b""
    for argument in arguments:
        if not isinstance(argument, ArrayArgument):
            packed += struct.pack("f", argument)
            continue
        item_bytes = np.dtype(argument.dtype).itemsize
        items = int(np.prod(argument.shape))
        address = cast("_Memory", argument.memory).address + argument.offset
        assert argument.offset + items * item_bytes <= argument.memory.byte_count, "the array is longer than its memory"
        strides = [item_bytes * int(np.prod(argument.shape[axis + 1 :])) for axis in range(len(argument.shape))]
        packed += struct.pack(f"{5 + 2 * len(strides)}q", 0, 0, items, item_bytes, address, *argument.shape, *strides)
    return packed


class PycudaDevice:
    """One GPU, opened on the thread that makes this."""

    def __init__(self, ordinal: int) -> None:
        """Raises DeviceError when there is no such device, or it has no memory left."""
        _checked(driver.init)
        handle = _checked(driver.Device, ordinal)
        self._name = f"GPU {ordinal} ({_checked(handle.name)})"
        self._capability: tuple[int, int] = _checked(handle.compute_capability)
        self._context: Any = _checked(handle.retain_primary_context)
        _checked(self._context.push)
        self._pages: Any = tools.PageLockedMemoryPool()
        self._memories: Any = tools.DeviceMemoryPool()
        self._functions: dict[KernelKey, Any] = {}
        self._modules: list[Any] = []

    @property
    def name(self) -> str:
        return self._name

    def enter(self) -> None:
        _checked(self._context.push)

    def leave(self) -> None:
        _checked(self._context.pop)

    def pinned(self, byte_count: int) -> Bytes:
        return cast("Bytes", _checked(self._pages.allocate, (byte_count,), np.uint8))

    def memory(self, byte_count: int) -> DeviceMemory:
        return _Memory(_checked(self._memories.allocate, byte_count), byte_count)

    def stream(self) -> DeviceStream:
        return _Stream()

    def event(self) -> DeviceEvent:
        return _Event()

    def copy_in(self, target: DeviceMemory, offset: int, source: Pages, stream: DeviceStream) -> None:
        assert offset + source.nbytes <= target.byte_count, "more than the device's buffer holds"
        address = cast("_Memory", target).address + offset
        _checked(driver.memcpy_htod_async, address, source, cast("_Stream", stream).handle)

    def copy_out(self, target: Pages, source: DeviceMemory, offset: int, stream: DeviceStream) -> None:
        assert offset + target.nbytes <= source.byte_count, "more than the device's buffer holds"
        address = cast("_Memory", source).address + offset
        _checked(driver.memcpy_dtoh_async, target, address, cast("_Stream", stream).handle)

    def prepare(self, key: KernelKey, arguments: tuple[ArrayArgument | float, ...]) -> Launch:
        function = self._function(key)
        block = LOG_MEL_BLOCK if key.name == "log_mel" else CLAMP_BLOCK
        shared_bytes = SHARED_BYTES if key.name == "log_mel" else 0
        return partial(_launch, function, block, _pack(arguments), shared_bytes)

    def close(self) -> None:
        self._functions.clear()
        self._modules.clear()
        self._pages.stop_holding()
        self._memories.stop_holding()
        del self._pages, self._memories
        _checked(self._context.pop)
        _checked(self._context.detach)

    def _function(self, key: KernelKey) -> Any:
        """Load a variant once."""
        if key not in self._functions:
            ptx, name = kernel_ptx(key, self._capability)
            module = _checked(driver.module_from_buffer, ptx.encode() + b"\0")
            function = _checked(module.get_function, name)
            if key.name == "log_mel":
                attributes = driver.function_attribute
                _checked(function.set_attribute, attributes.MAX_DYNAMIC_SHARED_SIZE_BYTES, SHARED_BYTES)
                # All that the L1 cache can spare, in percent: three blocks fit then.
                _checked(function.set_attribute, attributes.PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
            self._modules.append(module)
            self._functions[key] = function
        return self._functions[key]


def _launch(
    function: Any,
    block: tuple[int, int, int],
    arguments: bytes,
    shared_bytes: int,
    grid: tuple[int, int],
    stream: DeviceStream,
) -> None:
    _checked(function._launch_kernel, grid, block, arguments, shared_bytes, cast("_Stream", stream).handle)


def device_count() -> int:
    """How many GPUs there are. Raises DeviceError without a driver."""
    _checked(driver.init)
    return int(_checked(driver.Device.count))


def open_device(ordinal: int) -> Device:
    """Open a GPU on this thread. Raises DeviceError."""
    return PycudaDevice(ordinal)
