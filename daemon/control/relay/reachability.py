"""Whether upstreams can be reached: tried at start, without delaying it, and remembered from what streams meet later.

A try is a connection that is closed at once; no request is sent, for a request could cost money. An upstream that
cannot be reached is tried again every few seconds: /ready turns 503 when no upstream is left, and where a load balancer
then sends no streams, no stream would ever find out that one is back. Main thread.
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
    """What is known of one upstream."""

    reachable: bool | None  # None: not known yet
    since_s: float  # of the clock: when it became known to be so


_UNKNOWN = Reach(None, 0.0)


class Reachability:
    """What is known of each upstream, by its name."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, resolver: Resolver, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is tried yet."""
        self._loop = loop
        self._resolver = resolver
        self._clock = clock
        self._reach: dict[str, Reach] = {}
        self._origins: dict[str, Origin] = {}
        self._tries: dict[str, asyncio.Task[None]] = {}
        self._said: set[str] = set()  # upstreams whose trouble stands in the log

    def watch(self, origins: Iterable[Origin]) -> None:
        """Try these upstreams in the background. Called at start, and after a reload with those there are now."""
        before, self._origins = self._origins, {origin.name: origin for origin in origins}
        for name, origin in before.items():
            if name not in self._origins or _place(origin) != _place(self._origins[name]):
                self._forget(name)
        for name in self._origins:
            if self.of(name).reachable is not True:
                self._try(name, 0.0)

    def close(self) -> None:
        """Try no more."""
        self.watch(())

    def of(self, name: str) -> Reach:
        """What is known of this upstream."""
        return self._reach.get(name, _UNKNOWN)

    def saw(self, name: str, reachable: bool) -> None:
        """A stream's attempt has got a connection, or could not get one. Every attempt comes here, so it is short."""
        if self.of(name).reachable is not reachable:
            self._remember(name, reachable)

    def _remember(self, name: str, reachable: bool) -> None:
        if name not in self._origins:
            return  # gone since a reload
        self._reach[name] = Reach(reachable, self._clock())
        if not reachable:
            self._try(name, TRIED_AGAIN_S)
        elif name in self._said:
            self._said.remove(name)
            logger.info("upstream %s can be reached again", name)

    def _forget(self, name: str) -> None:
        self._reach.pop(name, None)
        self._said.discard(name)
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
            if self.of(name).reachable:  # a stream has got through meanwhile
                break
            self.saw(name, reachable=False)
            if name not in self._said:
                self._said.add(name)
                where = origin.socket_path or f"{origin.scheme}://{origin.authority}"
                logger.warning("upstream %s (%s) cannot be reached: %s", name, where, reason)
            await asyncio.sleep(TRIED_AGAIN_S)
        del self._tries[name]

    async def _reason_not_to_reach(self, origin: Origin) -> str | None:
        """Connect to one address after another. None when one of them answers, otherwise why the first does not."""
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
        except (asyncio.TimeoutError, TimeoutError):  # one and the same since Python 3.11
            return f"no answer within {CONNECT_TIMEOUT_S:g} s"
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
        return None


def _place(origin: Origin) -> tuple[str, int, str]:
    return origin.host, origin.port, origin.socket_path
