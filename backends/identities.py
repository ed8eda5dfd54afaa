"""Random identities, for requests and answers: the kernel's random bytes, asked for in bulk.

One system call for each identity would cost more than all else that is done to make it.
"""

from __future__ import annotations

import os

DIGITS_MAX = 32
_BULK = 256  # identities that one call gets
_made: list[str] = []


def identity(digits: int = DIGITS_MAX) -> str:
    """So many hexadecimal digits, at most DIGITS_MAX, that nobody has had and nobody can guess. On any thread."""
    assert 0 < digits <= DIGITS_MAX, f"an identity has 1 to {DIGITS_MAX} digits"
    try:
        made = _made.pop()  # the interpreter gives no two threads the same one
    except IndexError:
        text = os.urandom(_BULK * DIGITS_MAX // 2).hex()
        first, *others = [text[start : start + DIGITS_MAX] for start in range(0, len(text), DIGITS_MAX)]
        _made.extend(others)
        made = first
    return made[:digits]
