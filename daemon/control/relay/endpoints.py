"""The plane's numbers for upstream addresses. Numbers are few, so unused ones are assigned again. Main thread.

A number may be in use for a connection, so it keeps its address until its last attempt is over. After that the plane
may read a response to its end for up to two seconds, and then keep the connection under the same number: only after
REUSE_DELAY_S may the number be assigned to another address, and its idle connections are closed first.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daemon.control.channel.commands import pack
from daemon.plane.command_records import EndpointCommand
from daemon.plane.relay_table import ENDPOINT_COUNT_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backends.relay import Origin

REUSE_DELAY_S = 5.0  # longer than the plane needs to finish with a connection whose stream has ended
_Key = tuple[bytes, int, int]  # address, idle_connections_max, idle_timeout_ms


class Endpoints:
    """Assigns numbers to addresses and counts the attempts that hold each."""

    __slots__ = ("_add", "_clock", "_ended_s", "_holders", "_keys", "_live", "_numbers")

    def __init__(self, add: Callable[[bytes], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`add` queues a command for the next flush, behind those added before."""
        self._add = add
        self._clock = clock
        self._numbers: dict[_Key, int] = {}
        self._live: set[int] = set()  # numbers whose address the plane knows
        # By number.
        self._keys: list[_Key] = []
        self._holders: list[int] = []
        self._ended_s: list[float] = []  # when the last holder released it

    def take(self, origin: Origin, address: bytes) -> int:
        """The number of an address, for one attempt; a new one is sent to the plane. -1 when all are in use."""
        key = (address, origin.idle_connections_max, origin.idle_timeout_ms)
        number = self._numbers.get(key)
        if number is None:
            number = self._number_for(key)
            if number < 0:
                return -1
        if number not in self._live:
            self._live.add(number)
            self._add(pack(EndpointCommand(number, origin.idle_connections_max, origin.idle_timeout_ms), address))
        self._holders[number] += 1
        return number

    def give_back(self, number: int) -> None:
        """The attempt is over: it failed, or its stream has ended."""
        assert self._holders[number] > 0, "each attempt holds its number once"
        self._holders[number] -= 1
        self._ended_s[number] = self._clock()

    def _number_for(self, key: _Key) -> int:
        number = len(self._keys)
        if number < ENDPOINT_COUNT_MAX:
            self._keys.append(key)
            self._holders.append(0)
            self._ended_s.append(0.0)
        else:
            number = self._unused()
            if number < 0:
                return -1
            self._forget(number)
            del self._numbers[self._keys[number]]
            self._keys[number] = key
        self._numbers[key] = number
        return number

    def _unused(self) -> int:
        """A free number: preferably one without an address, otherwise the least recently used."""
        until_s = self._clock() - REUSE_DELAY_S
        unused = [
            (number in self._live, ended_s, number)
            for number, ended_s in enumerate(self._ended_s)
            if self._holders[number] == 0 and ended_s < until_s
        ]
        return min(unused)[2] if unused else -1

    def _forget(self, number: int) -> None:
        """Have its idle connections closed."""
        if number in self._live:
            self._live.discard(number)
            self._add(pack(EndpointCommand(number)))

    def forget(self, addresses: Collection[bytes]) -> None:
        """Make no more connections to these addresses unless they are requested again."""
        for key, number in self._numbers.items():
            if key[0] in addresses:
                self._forget(number)

    def forget_others(self, addresses: Collection[bytes]) -> None:
        """As `forget`, for all addresses but these."""
        self.forget({key[0] for key in self._numbers} - set(addresses))
