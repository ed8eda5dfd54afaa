"""PTX of the CUDA kernels, kept beside the cache of compiled code under the digest of what it is made of.

Compiling a variant takes about a second, and imports the kernels, which nothing else needs.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from backends.mel.cuda.toolchain import float32
from config import compilation

if TYPE_CHECKING:
    from backends.mel.cuda.device import KernelKey

_FOLDER = Path(__file__).resolve().parent
_SOURCES = ("kernels.py", "layout.py", "tables.py", "../spec.py")
_lock = threading.Lock()  # Numba compiles on one thread at a time; a device's thread waits for another's


def kernel_ptx(key: KernelKey, capability: tuple[int, int]) -> tuple[str, str]:
    """A variant's PTX and the kernel's name in it. A device of that capability is current on this thread."""
    digest = hashlib.sha256(repr((key, capability, compilation.cuda_version())).encode())
    for source in _SOURCES:
        digest.update((_FOLDER / source).read_bytes())
    path = compilation.cache_directory().parent / "cuda" / f"{digest.hexdigest()[:24]}.ptx"
    with _lock:
        if path.exists():
            name, _, ptx = path.read_text(encoding="utf-8").partition("\n")
            return ptx, name.removeprefix("//")
        ptx, name = _compile(key, capability)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{threading.get_native_id()}")
        partial.write_text(f"//{name}\n{ptx}", encoding="utf-8")
        partial.replace(path)
    return ptx, name


def _compile(key: KernelKey, capability: tuple[int, int]) -> tuple[str, str]:
    kernels = importlib.import_module("backends.mel.cuda.kernels")
    types = compilation.types
    vector = {name: types.Array(getattr(types, name), 1, "C") for name in ("int16", "float32", "float16")}
    chunks = types.Array(types.int32, 2, "C")
    frames, extremes = vector[key.frame_type], types.Array(types.float32, 2, "C")
    if key.name == "clamp":
        return compilation.cuda_ptx(kernels.clamp(key.bin_count), (chunks, frames, extremes), capability)
    arguments = (vector[key.sample_type], chunks, frames, extremes, float32)
    return compilation.cuda_ptx(kernels.log_mel(key.bin_count), arguments, capability)
