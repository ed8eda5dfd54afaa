"""A GPU without a GPU: memory is NumPy's, copies happen at once, and faults come when a test says so.

Its kernels are either the table of chunks carried out by the reference, which is fast, or the real ones under Numba's
simulator (NUMBA_ENABLE_CUDASIM=1), which is slow and is what they are tested with.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from backends.mel import reference, spec
from backends.mel.cuda import layout
from backends.mel.cuda.device import ArrayArgument, DeviceError, KernelKey

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from backends.mel.cuda.device import Bytes, DeviceEvent, DeviceMemory, DeviceStream, Launch, Pages

Array: TypeAlias = "npt.NDArray[Any]"
Kernel: TypeAlias = "Callable[..., None]"


class FakeMemory:
    def __init__(self, byte_count: int, count: Callable[[int], None]) -> None:
        self.byte_count = byte_count
        # Poisoned: what is read before it is written shows.
        self.content = np.full(byte_count, 0xFF, np.uint8)
        self._count = count
        count(byte_count)

    def __del__(self) -> None:
        self._count(-self.byte_count)

    def array(self, argument: ArrayArgument) -> Array:
        items = int(np.prod(argument.shape))
        end = argument.offset + items * np.dtype(argument.dtype).itemsize
        assert end <= self.byte_count, "the array is longer than its memory"
        return self.content[argument.offset : end].view(argument.dtype).reshape(argument.shape)


class FakeStream:
    def wait(self) -> None:
        pass


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def record(self, stream: DeviceStream) -> None:
        del stream

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        self._device.check("wait")
        if self._device.launch_s:
            time.sleep(self._device.launch_s)

    def milliseconds_since(self, earlier: DeviceEvent) -> float:
        del earlier
        return self._device.launch_s * 1000


class FakeDevice:
    """`faults` maps what is done ("memory", "copy_in", "launch", "wait") to how often it works before it fails.

    Once something has failed everything does, as on a GPU, whose errors are those of the whole context.
    """

    error_default: type[Exception] = DeviceError

    def __init__(
        self,
        number: int = 0,
        faults: dict[str, int] | None = None,
        kernels: Callable[[KernelKey], Kernel] | None = None,
    ) -> None:
        self.name = f"fake GPU {number}"
        self.faults = dict(faults or {})
        self.error = self.error_default  # what is raised then
        self.broken = False
        self.launch_s = 0.0
        self.bytes_held = 0
        self.launches: list[KernelKey] = []
        self.copies_in = 0
        self.closed = False
        self._kernels = kernels or reference_kernel
        self._threads = [threading.get_ident()]

    def check(self, what: str) -> None:
        assert threading.get_ident() == self._threads[-1], "a device is used by the thread that entered it"
        assert not self.closed, "the device is closed"
        self._work(what)

    def _work(self, what: str) -> None:
        left = self.faults.get(what)
        if self.broken or left == 0:
            self.broken = True
            raise self.error(f"{what} failed: the test wants it")
        if left is not None:
            self.faults[what] = left - 1

    def enter(self) -> None:
        assert not self.closed, "the device is closed"
        self._work("enter")
        self._threads.append(threading.get_ident())

    def leave(self) -> None:
        assert self._threads.pop() == threading.get_ident(), "another thread entered"

    def pinned(self, byte_count: int) -> Bytes:
        self.check("memory")
        return np.full(byte_count, 0xFF, np.uint8)

    def memory(self, byte_count: int) -> DeviceMemory:
        self.check("memory")
        return FakeMemory(byte_count, self._hold)

    def stream(self) -> DeviceStream:
        return FakeStream()

    def event(self) -> DeviceEvent:
        return FakeEvent(self)

    def copy_in(self, target: DeviceMemory, offset: int, source: Pages, stream: DeviceStream) -> None:
        del stream
        self.check("copy_in")
        self.copies_in += 1
        assert offset + source.nbytes <= target.byte_count
        content = cast("FakeMemory", target).content
        content[offset : offset + source.nbytes] = source.reshape(-1).view(np.uint8)

    def copy_out(self, target: Pages, source: DeviceMemory, offset: int, stream: DeviceStream) -> None:
        del stream
        self.check("copy_out")
        content = cast("FakeMemory", source).content
        target.reshape(-1).view(np.uint8)[:] = content[offset : offset + target.nbytes]

    def prepare(self, key: KernelKey, arguments: tuple[ArrayArgument | float, ...]) -> Launch:
        self.check("prepare")
        values = [
            cast("FakeMemory", argument.memory).array(argument)
            if isinstance(argument, ArrayArgument)
            else np.float32(argument)
            for argument in arguments
        ]
        return partial(self._launch, key, self._kernels(key), values)

    def close(self) -> None:
        self.closed = True
        if "close" in self.faults:
            self._work("close")

    def _hold(self, byte_count: int) -> None:
        self.bytes_held += byte_count

    def _launch(
        self, key: KernelKey, kernel: Kernel, values: list[Any], grid: tuple[int, int], stream: DeviceStream
    ) -> None:
        del stream
        self.check("launch")
        self.launches.append(key)
        kernel(grid, *values)


def reference_kernel(key: KernelKey) -> Kernel:
    """What the CUDA kernels do, by the specification."""
    return partial(_clamp if key.name == "clamp" else _log_mel, key.bin_count)


def _log_mel(
    bin_count: int, grid: tuple[int, int], samples: Array, chunks: Array, frames: Array, extremes: Array, scale: float
) -> None:
    rows = frames.reshape(-1, bin_count)
    for chunk in chunks[: grid[1]]:
        offset, length, window, origin, frame_count, first, normalised = (int(field) for field in chunk[:7])
        assert grid[0] * layout.TILE_FRAMES >= frame_count, "the grid is too small"
        audio = np.zeros(max(window, length))
        audio[:length] = samples[offset : offset + length] * np.float64(scale)
        if origin < 0:
            audio = np.pad(audio[:window], -origin, mode="reflect")
        raw = reference.raw_frames(audio, bin_count)[:frame_count]
        rows[first : first + frame_count] = (raw + spec.OFFSET) / spec.DIVISOR if normalised else raw
        if normalised:
            extremes[:, first : first + frame_count] = (
                np.stack([raw.min(axis=1), raw.max(axis=1)]) + spec.OFFSET
            ) / spec.DIVISOR


def _clamp(bin_count: int, grid: tuple[int, int], chunks: Array, frames: Array, extremes: Array) -> None:
    rows = frames.reshape(-1, bin_count)
    for chunk in chunks[: grid[1]]:
        if chunk[layout.NORMALISED]:
            first, count = int(chunk[layout.FRAME_OFFSET]), int(chunk[layout.FRAME_COUNT])
            floor = extremes[1, first : first + count].max() - spec.RANGE_DECADES / spec.DIVISOR
            np.maximum(rows[first : first + count], floor, out=rows[first : first + count])
