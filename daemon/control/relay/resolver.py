"""Addresses of upstreams: looked up off the main thread, and kept for half a minute.

Names are looked up by the loop's own threads (libuv's), so a slow name server delays the streams that wait for this
name and nothing else. Main thread.

An answer is fresh for TTL_S. After that it still serves while the next use has a lookup made behind it; only when
nobody has asked for so long that the address may be someone else's by now, callers wait for a lookup first. As long as
lookups fail, the old addresses serve: a name server that is down must not take down what works.
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
ADDRESSES_MAX = 16  # of one name; more are not worth the attempts

logger = logging.getLogger(__name__)


class _Entry:
    """What is known of one origin's name, and who waits to know."""

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
    """Addresses by origin. An origin that nobody holds any more, as after a reload, is forgotten by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds and never goes back."""
        self._loop = loop
        self._clock = clock
        self._entries: WeakKeyDictionary[Origin, _Entry] = WeakKeyDictionary()
        # Called when a lookup no longer finds addresses that an earlier one had found.
        self.changed: Callable[[Origin, tuple[bytes, ...]], None] = _ignore

    def addresses(self, origin: Origin) -> tuple[bytes, ...] | None:
        """Where to connect, in the order to try, or None when that is not known and `wanted` finds it out.

        Empty when it was looked up a moment ago and cannot be found.
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
        """Have the addresses looked up; `ready` is called once, later, when that is done or has failed.

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
        """End what is under way. Nobody is called back any more."""
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
        # One that has timed out still occupies a thread of the loop and may yet answer: another would occupy one more.
        if entry.lookup is None:
            entry.lookup = essential_task(self._loop, LOOKUP, self._find(origin, entry))

    async def _find(self, origin: Origin, entry: _Entry) -> None:
        found: tuple[bytes, ...] = ()
        reason = "it has no address"
        try:
            host = origin.host if origin.host.isascii() else origin.host.encode("idna").decode()
            infos = await self._loop.getaddrinfo(host, origin.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            found = _packed(infos)
        except socket.gaierror as error:
            reason = error.strerror or str(error)
        except (OSError, ValueError) as error:  # a name that is none, as a name server would see it
            reason = str(error)
        entry.lookup = None
        if found:
            self._found(origin, entry, found)
        else:
            self._failed(origin, entry, reason)

    def _found(self, origin: Origin, entry: _Entry, found: tuple[bytes, ...]) -> None:
        if entry.failure_said:
            logger.info("the name of upstream %s can be resolved again", origin.name)
            entry.failure_said = False
        removed = tuple(address for address in entry.addresses if address not in found)
        now_s = self._clock()
        entry.addresses = found
        entry.fresh_until_s, entry.stale_at_s = now_s + TTL_S, now_s + STALE_S_MAX
        if removed:
            self.changed(origin, removed)
        self._call_back(entry)

    def _failed(self, origin: Origin, entry: _Entry, reason: str) -> None:
        if not entry.failure_said:
            kept = "; the addresses it had still serve" if entry.addresses else ""
            logger.warning("the name of upstream %s cannot be resolved: %s%s", origin.name, reason, kept)
            entry.failure_said = True
        now_s = self._clock()
        entry.fresh_until_s, entry.stale_at_s = now_s + FAILURE_TTL_S, now_s + STALE_S_MAX
        self._call_back(entry)

    def _timed_out(self, origin: Origin, entry: _Entry) -> None:
        entry.deadline = None
        self._failed(origin, entry, f"no answer within {LOOKUP_TIMEOUT_S:g} s")

    def _call_back(self, entry: _Entry) -> None:
        if entry.deadline is not None:
            entry.deadline.cancel()
            entry.deadline = None
        waiting, entry.waiting = entry.waiting, []
        for ready in waiting:
            self._loop.call_soon(essential(LOOKUP, ready))


def _ignore(_origin: Origin, _removed: tuple[bytes, ...]) -> None:
    """What `changed` does until someone wants to know."""


def _packed(infos: Sequence[tuple[Any, Any, Any, Any, Any]]) -> tuple[bytes, ...]:
    """What getaddrinfo found, in its order (RFC 6724), each once."""
    found: dict[bytes, None] = {}
    for family, _, _, _, address in infos:
        if family == socket.AF_INET:
            found[packed_ipv4(socket.inet_pton(family, address[0]), address[1])] = None
        elif family == socket.AF_INET6:
            host = address[0].partition("%")[0]  # the scope follows as a number
            found[packed_ipv6(socket.inet_pton(family, host), address[1], address[2], address[3])] = None
    return tuple(found)[:ADDRESSES_MAX]
