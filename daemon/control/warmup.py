"""Compiles all machine code, or loads it from the cache, before anybody can connect: a handoff must not wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.control.admission.client_socket import Scratch
from daemon.control.process.exit_codes import EXIT_CLEAN, StartError
from daemon.control.process.resident_memory import let_go_of_compiler
from daemon.loop import warm_cache

if TYPE_CHECKING:
    from collections.abc import Callable

COMPILER = (sys.executable, "-m", "daemon", "--warm-cache")

logger = logging.getLogger(__name__)


def warm(progress: Callable[[str, float], None]) -> None:
    """`progress` gets each step's name and its seconds when it is done."""
    warm_cache(progress)
    began_s = time.monotonic()
    Scratch()
    progress("descriptor inspection", time.monotonic() - began_s)


def warm_mel(progress: Callable[[str, float], None]) -> None:
    """The same for the backend `mel` on a CPU, which needs the extra of this name."""
    from backends.mel.cpu import warm as warm_engine  # noqa: PLC0415  (imported where it is used alone)

    began_s = time.monotonic()
    warm_engine()
    progress("mel frames", time.monotonic() - began_s)


async def load_or_compile(stop_requested: asyncio.Event) -> None:
    """Have all machine code in this process; where the cache is cold, another process fills it first.

    A compiler leaves a quarter of a gigabyte behind, which a daemon that runs for months should not carry.

    Raises:
        StartError: a signal asked for the end meanwhile.
    """
    directory = Path(os.environ["NUMBA_CACHE_DIR"])
    if _is_cold(directory):
        logger.info("the compile cache %s is cold: compiling, which takes half a minute, once", directory)
        compiler = await asyncio.create_subprocess_exec(*COMPILER, stdout=asyncio.subprocess.DEVNULL)
        waits = [asyncio.ensure_future(compiler.wait()), asyncio.ensure_future(stop_requested.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if stop_requested.is_set():
            with contextlib.suppress(ProcessLookupError):
                compiler.terminate()
            raise StartError("stopped while the data plane was compiled", EXIT_CLEAN)
    # If the other process failed, the attempt here says why.
    warm(lambda step, seconds: logger.debug("%s: loaded or compiled in %.2f s", step, seconds))
    logger.debug("let go of %.0f MB of the compiler", let_go_of_compiler() / 1e6)


def _is_cold(directory: Path) -> bool:
    """Whether the data plane is not there; a backend may have compiled its own functions before."""
    return not any(directory.rglob("loop.run-*.nbc"))
