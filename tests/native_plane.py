"""The plane's functions in compiled form, one by one, for tests: a library in which each of them is an entry point.

`install`, called before anything of the plane is imported, has every marked function call its compiled form. The
library comes from the same pipeline as the one that ships, and is built when a test first calls one of its functions;
with NUMBA_BOUNDSCHECK=1 it is another one, with bounds checks. With NUMBA_DISABLE_JIT=1 nothing is installed, and the
plane is interpreted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache, update_wrapper
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from config import compilation
from config.library import PLANE, ROOT, Entry, Library, describe, path_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

F = TypeVar("F", bound="Callable[..., Any]")
ALSO = "tests.daemon.plane.compiled_searches"
FOLDER = ROOT / ".cache" / ("bounds-checked" if os.environ.get("NUMBA_BOUNDSCHECK") == "1" else "tests-library")


def build_command() -> list[str]:
    """Builds the library, or finds that it is current."""
    return [sys.executable, "-m", "compiler", PLANE.name, "--folder", str(FOLDER), "--also", ALSO]


@cache
def library() -> Library:
    """The tests' library, built where it must be."""
    build()
    path: Path = FOLDER / path_of(PLANE).name
    return Library(path, describe(path))


def _argument(value: Any) -> Any:
    """An integer, or the address of a record."""
    return value if isinstance(value, int) else _number_or_address(value)


def _number_or_address(value: Any) -> int:
    interface = getattr(value, "__array_interface__", None)
    return int(value) if interface is None or (interface["shape"] == () and _is_number(value)) else interface["data"][0]


def _is_number(value: Any) -> bool:
    return getattr(value, "dtype", None) is not None and value.dtype.fields is None


class NativeFunction:
    """A marked function that calls its compiled form; where the library has none, it is Python."""

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self._function = function
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._native: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self._native is None:
            self._native = self._find()
        return self._native(*arguments)

    def _find(self) -> Callable[..., Any]:
        if self._name not in library().description.entries:
            return self._function
        entry: Entry = library().entry(self._name)
        return lambda *arguments: entry(*map(_argument, arguments))


class NativeToolchain:
    """Gives marked functions their compiled form; everything else is as it is without a toolchain."""

    types: Any = compilation.types
    ir: Any = compilation.ir

    def compiled(self, function: F) -> F:
        return cast("F", NativeFunction(function))

    def inlined(self, function: F) -> F:
        return cast("F", NativeFunction(function))

    def intrinsic(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def overload(self, function: Callable[..., Any], inline: Literal["never", "always"] = "never") -> Callable[[F], F]:
        return lambda form: form

    def foreign(self, symbol: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        return None

    def from_dtype(self, dtype: Any) -> Any:
        return None

    def vector_bits(self) -> int:
        from config.library import MEL, level_of

        return 512 if level_of(MEL) == "v4" else 256


def build() -> None:
    """Build the library where it is missing or stale."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    subprocess.run(build_command(), cwd=ROOT, env=environment, check=True)


def install() -> None:
    """Have marked functions call their compiled forms, unless they are to be interpreted."""
    if not compilation.INTERPRETED:
        compilation.use(NativeToolchain())


if __name__ == "__main__":
    build()
