"""Attempts that the data plane cannot make itself: TLS and HTTP/2, by libcurl, on one thread for all of them.

The thread (daemon/control/transfers/loop.py) forwards what upstreams send, unparsed; only the plane has parsers. The
thread is started, and libcurl loaded, when the first transfer begins.
"""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING

from backends.relay import Failure, FailureKind
from daemon.control.process.supervision import essential
from daemon.control.transfers.loop import TransferLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from backends.relay import Attempt

logger = logging.getLogger(__name__)


class Transfers:
    """All TLS and HTTP/2 transfers, on one thread. The methods are for the main thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: int,
        event_fd: int,
        command_fd: int,
        failed: Callable[[int, int, int, Failure], None],
    ) -> None:
        """`event_fd` reads the plane's channel `channel`; neither descriptor blocks, and neither is closed here.

        `failed(slot, generation, number, failure)` is called on the main thread for attempts that were begun and have
        neither been cancelled nor sent START. An attempt cancelled a moment ago may still be reported.
        """
        self._loop = loop
        self._channel = channel
        self._event_fd = event_fd
        self._command_fd = command_fd
        self._failed = failed
        self._transfer_loop: TransferLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    def begin(self, slot: int, generation: int, number: int, attempt: Attempt) -> None:
        """Start an attempt. START, pushes and FINISH follow in the plane's pipe, or `failed` is called, later."""
        if self._transfer_loop is None and not self._start():
            failure = Failure(FailureKind.NO_RESOURCES, detail="the thread for transfers cannot be started")
            self._loop.call_soon(essential("transfers", self._failed), slot, generation, number, failure)
            return
        assert self._transfer_loop is not None
        self._transfer_loop.begin(slot, generation, number, attempt)

    def cancel(self, slot: int, generation: int, closed: Callable[[float], None] | None = None) -> None:
        """The stream has ended, or its attempt was abandoned. Does nothing if no attempt is active.

        `closed(seconds)` is called later on the main thread if this cut the upstream's response short.
        """
        if self._transfer_loop is not None:
            told = None if closed is None else functools.partial(self._call_soon, closed)
            self._transfer_loop.cancel(slot, generation, told)

    def stop(self, timeout_s: float) -> bool:
        """End the thread and close all connections, dropping active transfers. False when the thread does not end."""
        self._is_stopped = True
        if self._transfer_loop is None or self._thread is None:
            return True
        self._transfer_loop.stop()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._transfer_loop.close()
        self._transfer_loop = self._thread = None
        return True

    @property
    def active_count(self) -> int:
        """Transfers that have begun and not ended."""
        return 0 if self._transfer_loop is None else self._transfer_loop.active_count

    def _start(self) -> bool:
        if self._is_stopped:
            return False
        try:
            transfer_loop = TransferLoop(self._channel, self._event_fd, self._command_fd, self._report)
        except OSError as error:
            logger.warning("out of file descriptors for the transfers' thread: %s", error)
            return False
        thread = threading.Thread(target=transfer_loop.run, name="transfers", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            transfer_loop.close()
            logger.warning("the transfers' thread cannot be started: %s", error)
            return False
        self._transfer_loop, self._thread = transfer_loop, thread
        return True

    def _report(self, slot: int, generation: int, number: int, failure: Failure) -> None:
        """Called on the transfers' thread."""
        self._call_soon(self._failed, slot, generation, number, failure)

    def _call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        """Called on the transfers' thread; runs the callback on the main thread."""
        try:
            self._loop.call_soon_threadsafe(essential("transfers", callback), *arguments)
        except RuntimeError:  # the main thread's loop has been closed: the process is ending
            logger.debug("a transfer ended after the event loop was closed")
