"""The CUDA kernels as PTX, for the shipped capabilities. Needs the extra `gpu` without PyCUDA, and no GPU."""

from __future__ import annotations

import sys
import time
from itertools import product
from typing import TYPE_CHECKING

from backends.mel.cuda import ptx
from backends.mel.cuda.device import KernelKey
from backends.mel.spec import MEL_BINS

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
    """Write what is missing or stale; False when the compiler is not installed."""
    digest = ptx.source_digest()
    for capability in ptx.SHIPPED_CAPABILITIES:
        began_s = time.monotonic()
        missing = [key for key in variants() if ptx.read(ptx.shipped_path(key, capability), digest) is None]
        for key in missing:
            try:
                text, name = ptx.compile_kernel(key, capability)
            except ImportError as error:
                print(f"error: {error}; compiling CUDA kernels needs numba-cuda[cu13] (the extra gpu)", file=sys.stderr)
                return False
            ptx.write(ptx.shipped_path(key, capability), name, digest, text)
        seconds = time.monotonic() - began_s
        say(f"CUDA kernels for capability {capability[0]}.{capability[1]}: {len(missing)} in {seconds:.1f} s")
    return True
