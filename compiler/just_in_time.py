"""Compiled functions of the load generators: compiled on first call, cached on disk."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeVar

from compiler.toolchain import NumbaToolchain
from compiler.untyped import numba
from config.library import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def _sources_digest() -> str:
    files = [path for folder in ("compiler", "scripts/bench") for path in sorted((ROOT / folder).glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


# Numba notices a change in a function's own file, but not in the files of what it calls.
numba.config.CACHE_DIR = str(ROOT / ".cache" / "just-in-time" / _sources_digest())
TOOLCHAIN = NumbaToolchain(cached=True)
types: Any = TOOLCHAIN.types


def compiled(function: F) -> F:
    """Compile to machine code that does not hold the GIL and allocates nothing."""
    return TOOLCHAIN.compiled(function)


def inlined(function: F) -> F:
    """As `compiled`, inlined into its callers."""
    return TOOLCHAIN.inlined(function)


def foreign(symbol: str, result: Any, *arguments: Any) -> Any:
    """A C function of this process by name; callable from compiled code only."""
    return TOOLCHAIN.foreign(symbol, result, arguments)
