"""Compiled functions outside the plane, in load generators and tests: compiled on first call, cached on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from compiler.toolchain import NumbaToolchain

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

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
