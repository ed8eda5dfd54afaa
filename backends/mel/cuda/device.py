"""The seam to a GPU: memory, copies, launches and their order, and nothing of mel. `pycuda_device` is the real one.

A device is used by one thread at a time, which has entered it: the one that opened it has. Work on one stream is done
in order; `copy_in`, `copy_out` and `Launch` only put it there. Any method may raise DeviceError, after which the
device is given up: an error of CUDA is one of the whole context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from backends.mel.engine import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from backends.mel.cuda.layout import FrameType, KernelName, SampleType

Bytes: TypeAlias = "npt.NDArray[np.uint8]"
Pages: TypeAlias = "npt.NDArray[Any]"


class DeviceError(EngineError):
    """The device failed, has no memory left, or is not there. The message says which."""


class KernelKey(NamedTuple):
    """One compiled variant of a CUDA kernel."""

    name: KernelName
    bin_count: int
    sample_type: SampleType
    frame_type: FrameType


class DeviceMemory(Protocol):
    """Memory of the device; gone with its last reference."""

    @property
    def byte_count(self) -> int:
        """How much."""
        ...


class ArrayArgument(NamedTuple):
    """An array in the memory of a device, C-contiguous, as an argument of a launch."""

    memory: DeviceMemory
    offset: int  # in bytes
    dtype: str
    shape: tuple[int, ...]


class DeviceStream(Protocol):
    """A queue of the device. Two streams overlap."""

    def wait(self) -> None:
        """Return when all that is on it is done; holds no GIL meanwhile."""
        ...


class DeviceEvent(Protocol):
    """A mark on a stream."""

    def record(self, stream: DeviceStream) -> None:
        """Set the mark behind what is on the stream now."""
        ...

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        ...

    def wait(self) -> None:
        """Return when all before the mark is done; holds no GIL meanwhile. Raises what went wrong before it."""
        ...

    def milliseconds_since(self, earlier: DeviceEvent) -> float:
        """Time of the device between two marks that have been reached."""
        ...


class Launch(Protocol):
    """A CUDA kernel with its arguments, packed once and launched often."""

    def __call__(self, grid: tuple[int, int], stream: DeviceStream) -> None:
        """Put a launch on the stream."""
        ...


class Device(Protocol):
    """One GPU."""

    @property
    def name(self) -> str:
        """For logs, with its number."""
        ...

    def enter(self) -> None:
        """Use the device on another thread than the one that opened it, until `leave`."""
        ...

    def leave(self) -> None:
        """The end of `enter`, on the same thread."""
        ...

    def pinned(self, byte_count: int) -> Bytes:
        """Page-locked memory of the host: only from there do copies overlap with anything."""
        ...

    def memory(self, byte_count: int) -> DeviceMemory:
        """Memory of the device."""
        ...

    def stream(self) -> DeviceStream:
        """A new stream."""
        ...

    def event(self) -> DeviceEvent:
        """A new event."""
        ...

    def copy_in(self, target: DeviceMemory, offset: int, source: Pages, stream: DeviceStream) -> None:
        """Put a copy of a contiguous page-locked array to the device on the stream."""
        ...

    def copy_out(self, target: Pages, source: DeviceMemory, offset: int, stream: DeviceStream) -> None:
        """Put a copy from the device to a contiguous page-locked array on the stream."""
        ...

    def prepare(self, key: KernelKey, arguments: tuple[ArrayArgument | float, ...]) -> Launch:
        """Compile, where that has not been done, and pack arguments."""
        ...

    def close(self) -> None:
        """Give everything back. What was made from this device must not be used again."""
        ...
