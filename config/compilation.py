"""The only module that configures Numba: decorators, foreign functions, and where compiled code is cached.

Nothing else imports numba. Compiled functions of the data plane are declared with `compiled`; it forbids reference
counting (`_nrt=False`), which makes any allocation inside the plane a compile error. The cache directory carries a
digest of every source file that compiled code can depend on and of the versions of numba and numpy, because Numba's own
cache does not notice that a callee or a constant in another file has changed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("config", "daemon", "backends")
# Folders that compiled code is made of: what it calls, and the constants it takes in when it is compiled.
_COMPILED_FOLDERS = ("daemon/plane", "daemon/ring", "daemon/epoll")


def _compiled_sources() -> list[Path]:
    """Files that compiled code can depend on: the plane and its kernels, and whoever asks this module to compile.

    A change anywhere else, in admission or metrics, leaves the cache warm.
    """
    sources: list[Path] = []
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            folder = path.parent.relative_to(_ROOT).as_posix()
            if folder in _COMPILED_FOLDERS or b"config.compilation" in path.read_bytes():
                sources.append(path)
    return [Path(__file__).resolve(), *sources]


def _source_digest() -> str:
    """Digest of what compiled code depends on and of the compiler's versions, so that no stale code is ever used."""
    digest = hashlib.sha256()
    for path in _compiled_sources():
        digest.update(str(path.relative_to(_ROOT)).encode())
        digest.update(path.read_bytes())
    for name in ("numba", "numpy", "llvmlite"):
        digest.update(importlib.metadata.version(name).encode())
    digest.update(sys.version.encode())
    return digest.hexdigest()[:16]


def cache_directory() -> Path:
    """Where compiled code is kept: STREAMING_DAEMON_CACHE_DIR, systemd's CACHE_DIRECTORY, or the user's cache."""
    chosen = os.environ.get("STREAMING_DAEMON_CACHE_DIR") or os.environ.get("CACHE_DIRECTORY")
    if chosen:
        base = Path(chosen.split(":")[0])
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streaming-daemon"
    return base / f"numba-{_source_digest()}"


if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = str(cache_directory())

import numba  # noqa: E402  (the cache directory must be known before numba is imported)
import numba.extending  # noqa: E402
from llvmlite import ir as _ir  # noqa: E402
from numba import types  # noqa: E402

# Untyped on purpose: `_nrt` is not in numba's annotations, and an intrinsic is called without its context.
_njit: Any = numba.njit
from_dtype: Any = numba.from_dtype
ir: Any = _ir

if not __debug__:
    message = "assertions guard the data plane's memory: run without -O and without PYTHONOPTIMIZE"
    raise RuntimeError(message)

F = TypeVar("F", bound="Callable[..., Any]")

JIT_DISABLED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def _one_signature(dispatcher: Any) -> Any:
    """Have compiled callers pass every integer as 64 bits, signed.

    Numba compiles a function again for each width of its arguments, and for each constant: the loop came to twice as
    many functions, and 32 s instead of 19. In a callee an integer is also of one kind, as it is when interpreted.
    """
    if JIT_DISABLED:
        return dispatcher
    resolve = dispatcher.get_call_template

    def plain(argument: Any) -> Any:
        if isinstance(argument, types.Boolean | types.BooleanLiteral):
            return types.boolean
        return types.int64 if isinstance(argument, types.Integer) else argument

    def get_call_template(arguments: Any, keywords: Any) -> Any:
        return resolve(tuple(map(plain, arguments)), {name: plain(value) for name, value in keywords.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def compiled(function: F) -> F:
    """Compile to machine code that holds no GIL, allocates nothing and is cached on disk."""
    return cast("F", _one_signature(_njit(nogil=True, cache=True, _nrt=False, error_model="numpy")(function)))


def is_cached(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a call with these arguments would load machine code, of this CPU's kind, and compile nothing.

    Numba does not say, so this asks its cache's index; numba is pinned.
    """
    if JIT_DISABLED:
        return True
    dispatcher = cast("Any", function)
    cache = dispatcher._cache
    signature = tuple(dispatcher.typeof_pyval(argument) for argument in arguments)
    key = cache._index_key(signature, dispatcher.targetctx.codegen())
    return key in cache._cache_file._load_index()


def inlined(function: F) -> F:
    """As `compiled`, inlined by LLVM into its callers: for helpers of a few lines."""
    decorate = _njit(nogil=True, cache=True, _nrt=False, error_model="numpy", forceinline=True)
    return cast("F", _one_signature(decorate(function)))


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that writes LLVM instructions; called from compiled code without its context argument."""
    return cast("Callable[..., Any]", numba.extending.intrinsic(function))


def overload(function: Callable[..., Any], inline: Literal["never", "always"] = "never") -> Callable[[F], F]:
    """Register the compiled twin of a Python function."""
    return cast("Callable[[F], F]", numba.extending.overload(function, inline=inline))


def foreign(symbol: str, result: Any, *arguments: Any) -> Any:
    """A C function of this process by name; callable from compiled code only. The name is resolved when loaded."""
    return types.ExternalFunction(symbol, result(*arguments))


def vector_bits() -> int:
    """How wide vectors of compiled code had best be: 512 where the processor, or NUMBA_CPU_NAME, has AVX-512, else 256.

    Part of the key of Numba's cache, as the processor is.
    """
    registry: Any = importlib.import_module("numba.core.registry")
    _, name, features = registry.cpu_target.target_context.codegen().magic_tuple()
    return 512 if name == "x86-64-v4" or "+avx512f" in str(features).split(",") else 256


def cuda() -> Any:
    """Numba's CUDA target, or its simulator where NUMBA_ENABLE_CUDASIM=1; imported only when this is called.

    With the package numba-cuda installed (the extra `gpu`), `numba.cuda` is that package.
    """
    return importlib.import_module("numba.cuda")


def cuda_is_simulated() -> bool:
    """Whether CUDA kernels run as Python threads."""
    return bool(numba.config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


def cuda_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that CUDA kernels call. Inlined, or its arrays would be memory instead of registers."""
    if cuda_is_simulated():
        return cast("Callable[..., Any]", cuda().jit(device=True)(function))
    return cast("Callable[..., Any]", cuda().jit(device=True, fastmath=True, forceinline=True)(function))


def cuda_version() -> str:
    """The compiler's version: numba-cuda's where that is installed, else Numba's."""
    return f"{cuda().__file__} {getattr(cuda(), '__version__', numba.__version__)}"


def cuda_kernel(function: Callable[..., Any]) -> Any:
    """A kernel for Numba to launch: the simulator's way. A device's way is `cuda_ptx`."""
    return cuda().jit(function, fastmath=True)


def cuda_ptx(function: Callable[..., Any], arguments: tuple[Any, ...], capability: tuple[int, int]) -> tuple[str, str]:
    """A kernel as PTX for a compute capability, and its name in it. Needs no device, but the compiler's libraries."""
    ptx, _ = cuda().compile_ptx(function, arguments, fastmath=True, cc=capability)
    found = re.search(r"\.entry\s+([\w$]+)", ptx)
    assert found is not None, "the compiler made no kernel"
    return ptx, found[1]


__all__ = [
    "JIT_DISABLED",
    "cache_directory",
    "compiled",
    "cuda",
    "cuda_function",
    "cuda_is_simulated",
    "cuda_kernel",
    "cuda_ptx",
    "cuda_version",
    "foreign",
    "from_dtype",
    "inlined",
    "intrinsic",
    "ir",
    "overload",
    "types",
    "vector_bits",
]
