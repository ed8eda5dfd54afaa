"""Decorators that mark compiled code. At run time they do nothing: the machine code is loaded from a built library.

The package `compiler` registers its toolchain here (`use`) before it imports marked code; then the decorators compile.
Without a toolchain a marked function is plain Python, which is how tests run the plane interpreted.

Neither this module nor anything else that the daemon imports imports Numba.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

# Set by tests, to run the plane as Python.
INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


class Toolchain(Protocol):
    """The implementation of the decorators while code is compiled, or called in compiled form."""

    types: Any
    """Numba's types."""
    ir: Any
    """llvmlite's instructions."""

    def compiled(self, function: F) -> F:
        """A function of the plane: it does not hold the GIL and allocates nothing."""
        ...

    def inlined(self, function: F) -> F:
        """As `compiled`, and LLVM inlines it into its callers."""
        ...

    def intrinsic(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that writes LLVM instructions."""
        ...

    def overload(self, function: Callable[..., Any], inline: Literal["never", "always"]) -> Callable[[F], F]:
        """Register the compiled form of a Python function."""
        ...

    def foreign(self, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        """A C function by name."""
        ...

    def from_dtype(self, dtype: Any) -> Any:
        """The compiler's type of a NumPy record."""
        ...

    def vector_bits(self) -> int:
        """The vector width of the target processor."""
        ...


class _Absent:
    """Replaces every type while nothing is compiled: its attributes and results are the object itself."""

    def __getattr__(self, name: str) -> _Absent:
        return self

    def __call__(self, *_arguments: Any, **_named: Any) -> _Absent:
        return self


_toolchain: Toolchain | None = None
_is_marked = False
types: Any = _Absent()
ir: Any = _Absent()


def use(toolchain: Toolchain) -> None:
    """Set the toolchain. Call before anything marked is imported."""
    global _toolchain, types, ir
    assert not _is_marked, "a toolchain comes too late: marked code has been imported"
    _toolchain, types, ir = toolchain, toolchain.types, toolchain.ir


def _toolchain_in_force() -> Toolchain | None:
    global _is_marked  # noqa: PLW0603
    _is_marked = True
    return _toolchain


def compiled(function: F) -> F:
    """Mark a function of the plane: compiled, it does not hold the GIL and allocates nothing."""
    toolchain = _toolchain_in_force()
    return function if toolchain is None else toolchain.compiled(function)


def inlined(function: F) -> F:
    """As `compiled`, inlined into its callers: for helpers of a few lines."""
    toolchain = _toolchain_in_force()
    return function if toolchain is None else toolchain.inlined(function)


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that writes LLVM instructions; compiled code calls it without its context argument."""
    toolchain = _toolchain_in_force()
    return function if toolchain is None else toolchain.intrinsic(function)


def overload(function: Callable[..., Any], inline: Literal["never", "always"] = "never") -> Callable[[F], F]:
    """Register the compiled form of a Python function."""
    toolchain = _toolchain_in_force()
    return (lambda form: form) if toolchain is None else toolchain.overload(function, inline)


def foreign(symbol: str, result: Any, *arguments: Any) -> Any:
    """A C function by name, which only compiled code can call. Resolved when the library is loaded."""
    toolchain = _toolchain_in_force()
    return None if toolchain is None else toolchain.foreign(symbol, result, arguments)


def from_dtype(dtype: Any) -> Any:
    """The compiler's type of a NumPy record."""
    toolchain = _toolchain_in_force()
    return None if toolchain is None else toolchain.from_dtype(dtype)


def vector_bits(otherwise: int) -> int:
    """The vector width of the target processor; `otherwise` when nothing is compiled."""
    toolchain = _toolchain_in_force()
    return otherwise if toolchain is None else toolchain.vector_bits()
