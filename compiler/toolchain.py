"""The decorators of `config.compilation` while code is compiled: Numba's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from compiler import untyped

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


class NumbaToolchain:
    """Numba, for one processor."""

    types: Any = untyped.types
    ir: Any = untyped.llvm_ir

    def __init__(self, vector_bits: int = 256, *, cached: bool = False) -> None:
        """`cached` is for just-in-time compilation: Numba caches machine code on disk."""
        self._vector_bits = vector_bits
        # Without reference counting (`_nrt`, undocumented: Numba is pinned) an allocation is a compile error.
        self._options = {"nogil": True, "cache": cached, "_nrt": False, "error_model": "numpy"}

    def compiled(self, function: F) -> F:
        """A dispatcher."""
        return cast("F", _with_one_signature(untyped.numba.njit(**self._options)(function)))

    def inlined(self, function: F) -> F:
        """A dispatcher whose function LLVM inlines."""
        return cast("F", _with_one_signature(untyped.numba.njit(forceinline=True, **self._options)(function)))

    def intrinsic(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Numba's intrinsic."""
        return cast("Callable[..., Any]", untyped.extending.intrinsic(function))

    def overload(self, function: Callable[..., Any], inline: Literal["never", "always"] = "never") -> Callable[[F], F]:
        """Numba's overload."""
        return cast("Callable[[F], F]", untyped.extending.overload(function, inline=inline))

    def foreign(self, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        """An external function."""
        return untyped.types.ExternalFunction(symbol, result(*arguments))

    def from_dtype(self, dtype: Any) -> Any:
        """Numba's type of a record."""
        return untyped.numba.from_dtype(dtype)

    def vector_bits(self) -> int:
        """As given."""
        return self._vector_bits


def _with_one_signature(dispatcher: Any) -> Any:
    """Make compiled callers pass every integer as a signed 64-bit value.

    Numba compiles a function again for each width of its arguments, and for each constant: twice as many functions in
    all. This also gives integers in a callee a single type, as in interpreted code.
    """
    resolve = getattr(dispatcher, "get_call_template", None)
    if resolve is None:  # compilation is disabled: this is the plain function
        return dispatcher

    def plain(argument: Any) -> Any:
        if isinstance(argument, untyped.types.Boolean | untyped.types.BooleanLiteral):
            return untyped.types.boolean
        return untyped.types.int64 if isinstance(argument, untyped.types.Integer) else argument

    def get_call_template(arguments: Any, keywords: Any) -> Any:
        return resolve(tuple(map(plain, arguments)), {name: plain(value) for name, value in keywords.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher
