"""Memory between two pages that nobody may touch: a parser that reads or writes outside of its bytes ends the test."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from config.compilation import INTERPRETED

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PROT_NONE = 0


class Guarded:
    """Room for `capacity` bytes, rounded up to pages."""

    def __init__(self, capacity: int) -> None:
        page = mmap.PAGESIZE
        size = (capacity + page - 1) // page * page
        self._area = mmap.mmap(-1, size + 2 * page)
        area_address = ctypes.addressof(ctypes.c_char.from_buffer(self._area))
        self._start = area_address + page
        self._end = self._start + size
        for guard in (area_address, self._end):
            assert _LIBC.mprotect(guard, page, _PROT_NONE) == 0, ctypes.get_errno()

    def at_end(self, data: bytes) -> int:
        """Where `data` now lies, with nothing readable behind it."""
        return self._put(self._end - len(data), data)

    def at_start(self, data: bytes) -> int:
        """Where `data` now lies, with nothing readable before it."""
        return self._put(self._start, data)

    def read(self, address: int, size: int) -> bytes:
        """What now lies at an address."""
        assert self._start <= address <= address + size <= self._end
        return ctypes.string_at(address, size)

    def _put(self, address: int, data: bytes) -> int:
        assert self._start <= address
        assert address + len(data) <= self._end
        ctypes.memmove(address, data, len(data))
        return address


class Fields:
    """One record of a parser, as its functions take it, whose fields are read as plain integers."""

    def __init__(self, dtype: np.dtype[np.void], accessor: Callable[[int], Any]) -> None:
        self.array = np.zeros(1, dtype)
        self.record: Any = accessor(self.array.ctypes.data) if INTERPRETED else self.array[0]

    def __getitem__(self, name: str) -> int:
        return int(self.array[0][name])

    def __setitem__(self, name: str, value: int) -> None:
        self.array[0][name] = value

    def spoil(self) -> None:
        """Fill the record with what no parser would leave in it."""
        self.array.view(np.uint8)[:] = 0xA5

    def span(self, data: bytes, name: str) -> bytes | None:
        """The bytes that `name_offset` and `name_bytes` stand for, or None."""
        offset, size = self[f"{name}_offset"], self[f"{name}_bytes"]
        if offset < 0:
            assert (offset, size) == (-1, 0)
            return None
        assert 0 <= offset <= offset + size <= len(data)
        return data[offset : offset + size]


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes; what is left is the last one."""
    pieces: list[bytes] = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def mutate(chance: random.Random, data: bytes, alphabet: bytes) -> bytes:
    """`data` with a few bytes lost, replaced, added or repeated, as a fault or an attacker would have it."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        what = chance.randrange(5)
        if what == 0:
            del changed[at : at + chance.randint(1, 3)]
        elif what == 1:
            changed.insert(at, chance.choice(alphabet))
        elif what == 2:
            changed[at : at + 1] = bytes((chance.randrange(256),))
        elif what == 3:
            other = chance.randrange(len(changed) + 1)
            changed[at:at] = changed[other : other + chance.randint(1, 24)]
        else:
            del changed[chance.randrange(len(changed) + 1) :]
    return bytes(changed)
