"""Loads machine code before clients are accepted; in a source checkout, builds missing or stale libraries first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from config.compilation import INTERPRETED
from config.library import (
    BUILDING,
    MEL,
    PLANE,
    ROOT,
    LibraryError,
    Source,
    build_command,
    build_error,
    fault,
    is_checkout,
    load,
)
from daemon.control.process.exit_codes import EXIT_CLEAN, EXIT_OS_ERROR, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.settings import Settings

logger = logging.getLogger(__name__)


def needed(settings: Settings) -> list[Source]:
    """The libraries that a daemon with these settings loads."""
    return [PLANE, MEL] if settings.uses_mel else [PLANE]


async def load_libraries(sources: Sequence[Source], stop_requested: asyncio.Event) -> None:
    """Load the machine code into this process.

    Raises:
        StartError: it cannot be loaded, or a signal requested the end meanwhile.
    """
    if INTERPRETED:
        logger.warning("the data plane is interpreted (NUMBA_DISABLE_JIT): this is for tests, and very slow")
        return
    try:
        for source in sources:
            if is_checkout() and (reason := fault(source)) is not None:
                logger.info("%s: %s", reason, BUILDING)
                await _build(source, stop_requested)
            load(source)
    except LibraryError as error:
        raise StartError(str(error), EXIT_OS_ERROR) from error


async def _build(source: Source, stop_requested: asyncio.Event) -> None:
    compiler = await asyncio.create_subprocess_exec(
        *build_command(source), cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    end = asyncio.ensure_future(compiler.communicate())
    stop = asyncio.ensure_future(stop_requested.wait())
    await asyncio.wait([end, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if stop_requested.is_set():
        with contextlib.suppress(ProcessLookupError):
            compiler.terminate()
        await end
        raise StartError("stopped while building machine code", EXIT_CLEAN)
    _, output = end.result()
    if compiler.returncode != 0:
        raise build_error(source, output)
