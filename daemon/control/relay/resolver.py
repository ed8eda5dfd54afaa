"""Upstream addresses: resolved off the main thread, and cached for half a minute.

Names are resolved on the loop's thread pool (libuv's), so a slow name server delays only the streams that wait for this
name. Main thread.

An entry is fresh for TTL_S. After that it is still used, while the next use starts a lookup in the background; only
after a period without use, when the address may belong to another host by now, callers wait for a lookup. While
lookups fail, the old addresses are used: a name server that is down must not take down what works.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from daemon.control.process.supervision import essential, essential_task
from daemon.control.relay.sockaddr import literal_addresses, packed_ipv4, packed_ipv6

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.relay import Origin

TTL_S = 30.0
STALE_S_MAX = 300.0
FAILURE_TTL_S = 1.0
LOOKUP = "lookup of an upstream's name"
LOOKUP_TIMEOUT_S = 5.0
ADDRESSES_MAX = 16  # per name; more are not worth the attempts

logger = logging.getLogger(__name__)


class _Entry:
    """The cache entry of an origin's name, and the callers that wait for it."""

    __slots__ = (
        "addresses",
        "deadline",
        "failure_said",
        "fresh_until_s",
        "lookup",
        "stale_at_s",
        "waiting",
    )

    def __init__(self) -> None:
        self.addresses: tuple[bytes, ...] = ()
        self.fresh_until_s = 0.0
        self.stale_at_s = 0.0
        self.lookup: asyncio.Task[None] | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.waiting: list[Callable[[], None]] = []
        self.failure_said = False


class Resolver:
    """Addresses by origin. Entries of origins that are no longer referenced, as after a reload, are dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds and is monotonic."""
        self._loop = loop
        self._clock = clock
        self._entries: WeakKeyDictionary[Origin, _Entry] = WeakKeyDictionary()
        # Called when a lookup no longer returns addresses that an earlier lookup returned.
        self.changed: Callable[[Origin, tuple[bytes, ...]], None] = _ignore

    def addresses(self, origin: Origin) -> tuple[bytes, ...] | None:
        """Where to connect, in the order to try, or None when that is unknown and `wanted` must be called.

        Empty when a recent lookup failed.
        """
        entry = self._entry(origin)
        now_s = self._clock()
        if now_s < entry.fresh_until_s:
            return entry.addresses
        if not entry.addresses or now_s >= entry.stale_at_s:
            return None
        self._look_up(origin, entry)
        return entry.addresses

    def wanted(self, origin: Origin, ready: Callable[[], None]) -> None:
        """Resolve the addresses; `ready` is called once, later, when the lookup succeeded or failed.

        A lookup of this origin that is under way is shared.
        """
        entry = self._entry(origin)
        if self._clock() < entry.fresh_until_s:
            self._loop.call_soon(essential(LOOKUP, ready))
            return
        entry.waiting.append(ready)
        if entry.deadline is None:
            entry.deadline = self._loop.call_later(LOOKUP_TIMEOUT_S, essential(LOOKUP, self._timed_out), origin, entry)
        self._look_up(origin, entry)

    def close(self) -> None:
        """Cancel lookups. No callback is called after this."""
        for entry in self._entries.values():
            entry.waiting.clear()
            if entry.deadline is not None:
                entry.deadline.cancel()
            if entry.lookup is not None:
                entry.lookup.cancel()

    def _entry(self, origin: Origin) -> _Entry:
        entry = self._entries.get(origin)
        if entry is None:
            entry = self._entries[origin] = _Entry()
            known = literal_addresses(origin)
            if known is not None:
                entry.addresses, entry.fresh_until_s = known, float("inf")
        return entry

    def _look_up(self, origin: Origin, entry: _Entry) -> None:
        # A lookup that timed out still occupies a thread of the loop and may complete; another would occupy one more.
        if entry.lookup is None:
            entry.lookup = essential_task(self._loop, LOOKUP, self._find(origin, entry))

    async def _find(self, origin: Origin, entry: _Entry) -> None:
        addresses: tuple[bytes, ...] = ()
        reason = "it has no address"
        try:
            host = origin.host if origin.host.isascii() else origin.host.encode("idna").decode()
            infos = await self._loop.getaddrinfo(host, origin.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            addresses = _packed(infos)
        except socket.gaierror as error:
            reason = error.strerror or str(error)
        except (OSError, ValueError) as error:  # an invalid name for a name server
            reason = str(error)
        entry.lookup = None
        if addresses:
            self._store(origin, entry, addresses)
        else:
            self._failed(origin, entry, reason)

    def _store(self, origin: Origin, entry: _Entry, addresses: tuple[bytes, ...]) -> None:
        if entry.failure_said:
            logger.info("the name of upstream %s can be resolved again", origin.name)
            entry.failure_said = False
        removed = tuple(address for address in entry.addresses if address not in addresses)
        now_s = self._clock()
        entry.addresses = addresses
        entry.fresh_until_s, entry.stale_at_s = now_s + TTL_S, now_s + STALE_S_MAX
        if removed:
            self.changed(origin, removed)
        self._call_back(entry)

    def _failed(self, origin: Origin, entry: _Entry, reason: str) -> None:
        if not entry.failure_said:
            kept = "; its previous addresses remain in use" if entry.addresses else ""
            logger.warning("the name of upstream %s cannot be resolved: %s%s", origin.name, reason, kept)
            entry.failure_said = True
        now_s = self._clock()
        entry.fresh_until_s, entry.stale_at_s = now_s + FAILURE_TTL_S, now_s + STALE_S_MAX
        self._call_back(entry)

    def _timed_out(self, origin: Origin, entry: _Entry) -> None:
        entry.deadline = None
        self._failed(origin, entry, f"no response within {LOOKUP_TIMEOUT_S:g} s")

    def _call_back(self, entry: _Entry) -> None:
        if entry.deadline is not None:
            entry.deadline.cancel()
            entry.deadline = None
        waiting, entry.waiting = entry.waiting, []
        for ready in waiting:
            self._loop.call_soon(essential(LOOKUP, ready))


def _ignore(_origin: Origin, _removed: tuple[bytes, ...]) -> None:
    """The default of `changed`."""


def _packed(infos: Sequence[tuple[Any, Any, Any, Any, Any]]) -> tuple[bytes, ...]:
    """The results of getaddrinfo in its order (RFC 6724), without duplicates."""
    addresses: dict[bytes, None] = {}
    for family, _, _, _, address in infos:
        if family == socket.AF_INET:
            addresses[packed_ipv4(socket.inet_pton(family, address[0]), address[1])] = None
        elif family == socket.AF_INET6:
            host = address[0].partition("%")[0]  # the scope is in a field of its own
            addresses[packed_ipv6(socket.inet_pton(family, host), address[1], address[2], address[3])] = None
    return tuple(addresses)[:ADDRESSES_MAX]
