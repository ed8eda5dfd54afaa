"""sd_notify(3): tells systemd the daemon's state, and feeds its watchdog while both planes make progress.

Without NOTIFY_SOCKET every call does nothing. Main thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

logger = logging.getLogger(__name__)


class Notifier:
    """The service manager's notification socket, if set."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Remove systemd's variables from the environment: they are for this process only."""
        address = environment.pop("NOTIFY_SOCKET", "")
        interval = environment.pop("WATCHDOG_USEC", "")
        process_id = environment.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        is_for_us = process_id in {"", str(os.getpid())}
        self.watchdog_interval_s = int(interval) / 1e6 if interval.isdecimal() and is_for_us and address else 0.0

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is complete."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload begins; systemd requires the time to match it with READY."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reloading")

    def stopping(self, status: str) -> None:
        """The drain begins."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    def extend_timeout(self, seconds: float) -> None:
        """Request more time than TimeoutStopSec, because a drain may take as long as configured."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def feed_watchdog(self) -> None:
        """Both planes have made progress since the last call."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            # A manager that does not read must not stop the daemon; a starved watchdog has its own consequence.
            logger.warning("cannot notify the service manager: %s", error.strerror)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Heartbeat:
    """Pings the data plane, and feeds the watchdog only when the previous ping was answered."""

    def __init__(self, notifier: Notifier, ping: Callable[[int], None]) -> None:
        """`ping` sends PING with this cookie; call `pong` with the cookie of each PONG."""
        self._notifier = notifier
        self._ping = ping
        self._asked = 0
        self._answered = 0

    def pong(self, cookie: int) -> None:
        """The data plane has completed a turn."""
        self._answered = max(self._answered, cookie)

    async def run(self) -> None:
        """Feed at half the interval that systemd allows, for ever; return at once when there is no watchdog."""
        interval_s = self._notifier.watchdog_interval_s / 2
        if interval_s <= 0:
            return
        while True:
            self._asked += 1
            self._ping(self._asked)
            await asyncio.sleep(interval_s)
            if self._answered == self._asked:
                self._notifier.feed_watchdog()
            else:
                logger.error("the data plane did not respond within %.1f s: the watchdog is not fed", interval_s)
