"""What signals mean: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reloads, SIGUSR1 logs live streams.

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

logger = logging.getLogger(__name__)


def install(
    loop: asyncio.AbstractEventLoop,
    stop: Callable[[str], None],
    reload: Callable[[], None],
    show_table: Callable[[], None],
) -> None:
    """Give the signals their meaning; `stop` gets the name of the signal."""

    def first(number: signal.Signals) -> None:
        logger.info("%s: draining; a second SIGTERM or SIGINT ends at once", number.name)
        # From now on the kernel ends the process, so that a second signal works whatever the interpreter is doing.
        for stopping in STOPPING:
            loop.remove_signal_handler(stopping)
            signal.signal(stopping, signal.SIG_DFL)
        stop(number.name)

    for number in STOPPING:
        loop.add_signal_handler(number, first, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR1, show_table)
