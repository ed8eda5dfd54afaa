"""Reachability of upstreams: probed at start, without delaying it, and updated by streams' attempts.

A probe is a connection that is closed at once; it sends no request, because a request could cost money. An unreachable
upstream is probed again every few seconds: /ready turns 503 when no upstream is left, and if a load balancer then sends
no streams, no stream could discover that one is back. Main thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from daemon.control.process.supervision import essential_task
from daemon.control.relay.sockaddr import unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backends.relay import Origin
    from daemon.control.relay.resolver import Resolver

CONNECT_TIMEOUT_S = 2.0
TRIED_AGAIN_S = 5.0

logger = logging.getLogger(__name__)


class Reach(NamedTuple):
    """The state of an upstream."""

    reachable: bool | None  # None: not known yet
    since_s: float  # of the clock: when it entered this state


_UNKNOWN = Reach(None, 0.0)


class Reachability:
    """The state of each upstream, by name."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, resolver: Resolver, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is probed yet."""
        self._loop = loop
        self._resolver = resolver
        self._clock = clock
        self._reach: dict[str, Reach] = {}
        self._origins: dict[str, Origin] = {}
        self._tries: dict[str, asyncio.Task[None]] = {}
        self._logged: set[str] = set()  # upstreams whose failure has been logged

    def watch(self, origins: Iterable[Origin]) -> None:
        """Probe these upstreams in the background. Called at start, and after a reload with the new ones."""
        before, self._origins = self._origins, {origin.name: origin for origin in origins}
        for name, origin in before.items():
            if name not in self._origins or _place(origin) != _place(self._origins[name]):
                self._forget(name)
        for name in self._origins:
            if self.of(name).reachable is not True:
                self._try(name, 0.0)

    def close(self) -> None:
        """Stop probing."""
        self.watch(())

    def of(self, name: str) -> Reach:
        """The state of this upstream."""
        return self._reach.get(name, _UNKNOWN)

    def saw(self, name: str, reachable: bool) -> None:
        """A stream's attempt got a connection, or failed to. Called for every attempt, so keep it short."""
        if self.of(name).reachable is not reachable:
            self._remember(name, reachable)

    def _remember(self, name: str, reachable: bool) -> None:
        if name not in self._origins:
            return  # removed by a reload
        self._reach[name] = Reach(reachable, self._clock())
        if not reachable:
            self._try(name, TRIED_AGAIN_S)
        elif name in self._logged:
            self._logged.remove(name)
            logger.info("upstream %s can be reached again", name)

    def _forget(self, name: str) -> None:
        self._reach.pop(name, None)
        self._logged.discard(name)
        task = self._tries.pop(name, None)
        if task is not None:
            task.cancel()

    def _try(self, name: str, delay_s: float) -> None:
        if name not in self._tries:
            self._tries[name] = essential_task(
                self._loop, f"reachability of {name}", self._try_until_reached(self._origins[name], delay_s)
            )

    async def _try_until_reached(self, origin: Origin, delay_s: float) -> None:
        name = origin.name
        await asyncio.sleep(delay_s)
        while not self.of(name).reachable:
            reason = await self._reason_not_to_reach(origin)
            if reason is None:
                self.saw(name, reachable=True)
                break
            if self.of(name).reachable:  # a stream has connected meanwhile
                break
            self.saw(name, reachable=False)
            if name not in self._logged:
                self._logged.add(name)
                where = origin.socket_path or f"{origin.scheme}://{origin.authority}"
                logger.warning("upstream %s (%s) cannot be reached: %s", name, where, reason)
            await asyncio.sleep(TRIED_AGAIN_S)
        del self._tries[name]

    async def _reason_not_to_reach(self, origin: Origin) -> str | None:
        """Try one address after another. None when one accepts, otherwise why the first failed."""
        addresses = self._resolver.addresses(origin)
        if addresses is None:
            is_done = asyncio.Event()
            self._resolver.wanted(origin, is_done.set)
            await is_done.wait()
            addresses = self._resolver.addresses(origin)
        if not addresses:
            return "it has no address"
        reasons: list[str] = []
        for address in addresses:
            reason = await self._reason_not_to_connect(address)
            if reason is None:
                return None
            reasons.append(reason)
        return reasons[0]

    async def _reason_not_to_connect(self, address: bytes) -> str | None:
        family, readable = unpacked(address)
        try:
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
                await asyncio.wait_for(self._loop.sock_connect(connection, readable), CONNECT_TIMEOUT_S)
        except (asyncio.TimeoutError, TimeoutError):  # the same class since Python 3.11
            return f"no response within {CONNECT_TIMEOUT_S:g} s"
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
        return None


def _place(origin: Origin) -> tuple[str, int, str]:
    return origin.host, origin.port, origin.socket_path
