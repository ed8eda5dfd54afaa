"""The CUDA kernels as PTX, for the shipped capabilities. Needs the extra `gpu` without PyCUDA, and no GPU."""

from __future__ import annotations

import importlib
import time
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from backends.mel.cuda import ptx
from backends.mel.cuda.device import KernelKey
from backends.mel.spec import MEL_BINS
from compiler.build import in_a_child
from compiler.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.mel.cuda.layout import FrameType, SampleType


def variants() -> Iterator[KernelKey]:
    """Every kernel that the backend launches."""
    samples: tuple[SampleType, ...] = ("int16", "float32")
    frames: tuple[FrameType, ...] = ("float32", "float16")
    for bins, sample_type, frame_type in product(MEL_BINS, samples, frames):
        yield KernelKey("log_mel", bins, sample_type, frame_type)
    for bins, frame_type in product(MEL_BINS, frames):
        yield KernelKey("clamp", bins, "float32", frame_type)


def build_ptx(say: Callable[[str], None]) -> bool:
    """Write what is missing or stale; whether that succeeded. A child process that fails has said why."""
    return all(in_a_child(partial(_build_capability, capability, say)) for capability in ptx.SHIPPED_CAPABILITIES)


def _build_capability(capability: tuple[int, int], say: Callable[[str], None]) -> None:
    """A process for each: Numba keeps what a kernel calls, made for the capability that was first asked for."""
    began_s, digest = time.monotonic(), ptx.source_digest()
    missing = [key for key in variants() if ptx.read(ptx.shipped_path(key, capability), digest) is None]
    if missing:
        _pretend_device(capability)
    for key in missing:
        text, name = ptx.compile_kernel(key, capability)
        ptx.write(ptx.shipped_path(key, capability), name, digest, text)
    seconds = time.monotonic() - began_s
    say(f"CUDA kernels for capability {capability[0]}.{capability[1]}: {len(missing)} in {seconds:.1f} s")


def _pretend_device(capability: tuple[int, int]) -> None:
    """A kernel is compiled for the capability that is asked for, and the functions that it calls for the device's own.

    Where there is no device, this stands for it.
    """
    try:
        dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
        importlib.import_module("numba_cuda")
    except ImportError as error:
        raise BuildError(f"{error}: compiling CUDA kernels needs numba-cuda (pip install '.[gpu-build]')") from error
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
