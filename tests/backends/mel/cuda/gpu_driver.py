"""A GPU that really fails, through the driver alone, in the primary context, which is the engine's.

After a trap every call of the process fails, on all of its GPUs, until it ends. Memory that is taken away is an error
of one GPU. Nothing is done to the GPU itself: other processes do not notice.
"""

from __future__ import annotations

import ctypes
from typing import Any

_PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry fail() { trap; }
"""


class Primary:
    """The primary context of a GPU, which everything in a process shares that does not make its own."""

    def __init__(self, ordinal: int) -> None:
        """Raises RuntimeError where there is no such GPU."""
        self.driver: Any = ctypes.CDLL("libcuda.so.1")
        self.context = ctypes.c_void_p()
        self._device = ctypes.c_int()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(self._device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self._device)

    def status(self, name: str, *arguments: Any) -> int:  # noqa: ANN401  (as the driver has them)
        """Call the driver; returns its code, 0 for success."""
        return int(getattr(self.driver, name)(*arguments))

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401
        """Call the driver. Raises RuntimeError."""
        if code := self.status(name, *arguments):
            raise RuntimeError(f"{name} failed with CUDA's error {code}")

    def trap(self) -> None:
        """Launch a kernel that traps, and do not wait for it: whoever uses the context next finds it broken."""
        module, function, popped = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuCtxPushCurrent_v2", self.context)
        try:
            self.call("cuModuleLoadData", ctypes.byref(module), _PTX)
            self.call("cuModuleGetFunction", ctypes.byref(function), module, b"fail")
            self.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
        finally:
            self.status("cuCtxPopCurrent_v2", ctypes.byref(popped))

    def take_away(self, addresses: list[int]) -> None:
        """Free memory that another uses: the driver refuses the next copy to it."""
        popped = ctypes.c_void_p()
        self.call("cuCtxPushCurrent_v2", self.context)
        try:
            for address in addresses:
                self.call("cuMemFree_v2", ctypes.c_uint64(address))
        finally:
            self.status("cuCtxPopCurrent_v2", ctypes.byref(popped))
