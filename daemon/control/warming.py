"""Compiles all machine code, or loads it from the cache, before anybody can connect: a handoff must not wait for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daemon.control.descriptor import Scratch
from daemon.loop import warm_cache

if TYPE_CHECKING:
    from collections.abc import Callable


def warm(progress: Callable[[str, float], None]) -> None:
    """`progress` gets each step's name and its seconds when it is done."""
    warm_cache(progress)
    began_s = time.monotonic()
    Scratch()
    progress("descriptor inspection", time.monotonic() - began_s)
