"""Numba's CUDA target, without its types: the untyped edge of this folder, and the only place that imports Numba here.

`kernels` is written with it, and `ptx` compiles with it; neither is imported where shipped PTX serves. With the package
numba-cuda installed (the extra `gpu`), `numba.cuda` is that package.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import numba
from numba import cuda as numba_cuda

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.mel.cuda.device import KernelKey

cuda: Any = numba_cuda
float32: Any = numba.types.float32

# The simulator runs CUDA kernels as Python threads.
IS_SIMULATED = bool(numba.config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
VERSION = f"{cuda.__file__} {getattr(cuda, '__version__', numba.__version__)}"


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A device function that is part of its callers: its arrays must become registers there."""
    if IS_SIMULATED:
        return cast("Callable[..., Any]", cuda.jit(device=True)(function))
    return cast("Callable[..., Any]", cuda.jit(device=True, fastmath=True, forceinline=True)(function))


def launchable(function: Callable[..., Any]) -> Any:
    """A kernel for Numba to launch: the simulator's way. A device's way is `to_ptx`."""
    return cuda.jit(function, fastmath=True)


def argument_types(key: KernelKey) -> tuple[Any, ...]:
    """Numba's types of a variant's arguments."""
    types: Any = numba.types
    vector = {name: types.Array(getattr(types, name), 1, "C") for name in ("int16", "float32", "float16")}
    chunks, extremes = types.Array(types.int32, 2, "C"), types.Array(types.float32, 2, "C")
    if key.name == "clamp":
        return chunks, vector[key.frame_type], extremes
    return vector[key.sample_type], chunks, vector[key.frame_type], extremes, float32


def to_ptx(function: Callable[..., Any], arguments: tuple[Any, ...], capability: tuple[int, int]) -> tuple[str, str]:
    """A kernel as PTX for a compute capability, and its name in it. Needs no device, but the compiler's libraries."""
    ptx, _ = cuda.compile_ptx(function, arguments, fastmath=True, cc=capability)
    found = re.search(r"\.entry\s+([\w$]+)", ptx)
    assert found is not None, "the compiler made no kernel"
    return ptx, found[1]
