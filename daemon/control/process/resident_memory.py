"""Lets go of memory that is mapped and no longer needed: the compiler's own machine code, once everything is compiled.

LLVM is a library of 130 MB. Loading compiled code from the cache touches much of it, and the kernel maps more around
what is touched: 70 to 110 MB that a daemon never looks at again. Pages of a library's code are clean and stay in the
page cache, so unmapping them costs nothing but a page fault should they be needed after all.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

COMPILER_LIBRARY = "libllvmlite"
_MADV_DONTNEED = 4
# Code segments only: they are never written. Anything else of a library may hold relocations, which would be lost.
_CODE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \S+ +(/.*)$")


def code_segments(library: str) -> list[tuple[int, int]]:
    """(address, bytes) of a library's code in this process, by the beginning of its file's name."""
    segments: list[tuple[int, int]] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = _CODE.match(line)
        if match and Path(match[3]).name.startswith(library):
            begin, end = int(match[1], 16), int(match[2], 16)
            segments.append((begin, end - begin))
    return segments


def let_go_of_compiler() -> int:
    """Unmap the compiler's code; how many bytes of address space that concerned. It comes back when it is used."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    segments = code_segments(COMPILER_LIBRARY)
    return sum(size for address, size in segments if madvise(address, size, _MADV_DONTNEED) == 0)
