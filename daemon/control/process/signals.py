"""Signals: SIGTERM and SIGINT drain, a second one exits at once, SIGHUP reloads, SIGUSR1 logs live streams.

The handlers run as callbacks of the event loop. The data plane's and the workers' threads block all signals.
"""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

STOPPING = (signal.SIGTERM, signal.SIGINT)
OTHERS = (signal.SIGHUP, signal.SIGUSR1)

logger = logging.getLogger(__name__)


def install(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Install the first handlers: a stop is recorded, and no other signal kills a daemon that is starting."""

    def first(number: signal.Signals) -> None:
        logger.info("%s: draining; a second SIGTERM or SIGINT ends at once", number.name)
        # From now on the signal has its default action, so a second one works whatever the interpreter is doing.
        for stopping in STOPPING:
            loop.remove_signal_handler(stopping)
            signal.signal(stopping, signal.SIG_DFL)
        stop()

    for number in STOPPING:
        loop.add_signal_handler(number, first, number)
    for number in OTHERS:
        loop.add_signal_handler(number, logger.info, "%s: not yet, the daemon is starting", number.name)


def install_others(loop: asyncio.AbstractEventLoop, reload: Callable[[], None], show_table: Callable[[], None]) -> None:
    """Install the handlers that need a running daemon."""
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR1, show_table)
