"""PTX of the CUDA kernels: as it was shipped, else from a cache on disk, else compiled by Numba (the extra `gpu`).

Shipped PTX lies in `backends/mel/built`, made by `python -m compiler ptx`, for the capabilities in
SHIPPED_CAPABILITIES. They serve all later GPUs: a driver compiles PTX of an earlier capability for the one it has.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path

from backends.mel.cuda.device import DeviceError, KernelKey

_FOLDER = Path(__file__).resolve().parent
_SHIPPED = _FOLDER.parent / "built"
_SOURCES = ("kernels.py", "layout.py", "tables.py", "../spec.py")
SHIPPED_CAPABILITIES = ((8, 0), (9, 0))  # earlier GPUs have too little shared memory
_lock = threading.Lock()  # Numba compiles on one thread at a time; a device's thread waits for another's

logger = logging.getLogger(__name__)


def source_digest() -> str:
    """A digest of what the kernels are made of."""
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update((_FOLDER / source).read_bytes())
    return digest.hexdigest()[:24]


def shipped_path(key: KernelKey, capability: tuple[int, int]) -> Path:
    """Where a variant's PTX is shipped."""
    return _SHIPPED / f"{'-'.join(map(str, key))}-sm_{capability[0]}{capability[1]}.ptx"


def write(path: Path, name: str, digest: str, ptx: str) -> None:
    """Keep PTX with its kernel's name and what it was made of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_native_id()}")
    partial.write_text(f"//{name} {digest}\n{ptx}", encoding="utf-8")
    partial.replace(path)


def read(path: Path, digest: str) -> tuple[str, str] | None:
    """PTX and its kernel's name, if it was made of this."""
    if not path.is_file():
        return None
    head, _, ptx = path.read_text(encoding="utf-8").partition("\n")
    name, _, made_of = head.removeprefix("//").partition(" ")
    return (ptx, name) if made_of == digest else None


def kernel_ptx(key: KernelKey, capability: tuple[int, int]) -> tuple[str, str]:
    """A variant's PTX and the kernel's name in it.

    Raises:
        DeviceError: it was not shipped, and cannot be compiled here.
    """
    sources = source_digest()
    for shipped in sorted(SHIPPED_CAPABILITIES, reverse=True):
        if shipped <= capability and (found := read(shipped_path(key, shipped), sources)) is not None:
            return found
    return _compiled_here(key, capability, sources)


def _compiled_here(key: KernelKey, capability: tuple[int, int], sources: str) -> tuple[str, str]:
    try:
        from backends.mel.cuda import toolchain  # noqa: PLC0415  (imports Numba, which shipped PTX spares)
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"the CUDA kernel {'-'.join(map(str, key))} is not shipped for capability {capability[0]}.{capability[1]}; "
            f"to compile it, {error.name} is missing (pip install 'streaming-daemon[gpu]')"
        ) from None
    made_of = hashlib.sha256(f"{sources} {toolchain.VERSION}".encode()).hexdigest()[:24]
    path = cache_folder() / f"{'-'.join(map(str, key))}-sm_{capability[0]}{capability[1]}.ptx"
    with _lock:
        found = read(path, made_of)
        if found is None:
            logger.info("compiling a CUDA kernel, %s, which takes about a second, once", path.stem)
            ptx, name = compile_kernel(key, capability)
            write(path, name, made_of, ptx)
            found = ptx, name
    return found


def cache_folder() -> Path:
    """Where PTX that was compiled here is kept: STREAMING_DAEMON_CACHE_DIR, or the user's cache."""
    chosen = os.environ.get("STREAMING_DAEMON_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streaming-daemon"
    return (Path(chosen.split(":")[0]) if chosen else user) / "cuda"


def compile_kernel(key: KernelKey, capability: tuple[int, int]) -> tuple[str, str]:
    """PTX of a variant and the kernel's name in it, by Numba."""
    from backends.mel.cuda import kernels, toolchain  # noqa: PLC0415

    make = kernels.clamp if key.name == "clamp" else kernels.log_mel
    return toolchain.to_ptx(make(key.bin_count), toolchain.argument_types(key), capability)
