"""The functions of mel frames on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.mel import batch
from compiler.untyped import numba

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = (batch.compute_float32, batch.compute_int16)


def mel_functions() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The entry points with the types of their arguments."""
    for entry in ENTRIES:
        yield entry, (numba.types.int64,) * 14
