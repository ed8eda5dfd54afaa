"""The plane's numbers for addresses of upstreams. There are few, so one that nobody needs is used again. Main thread.

Whoever holds a number may be connected there, so it keeps its meaning until its last attempt is over. After that the
plane may read an answer to its end for up to two seconds, and then keep the connection under the number that it was
made with: only LET_GO_S later can the number lead elsewhere, and what is kept of it is closed first.
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

LET_GO_S = 5.0  # more than the plane takes to be done with a connection whose stream has ended
_Key = tuple[bytes, int, int]  # address, idle_connections_max, idle_timeout_ms


class Endpoints:
    """Which number leads where, and how many attempts hold it."""

    __slots__ = ("_add", "_clock", "_ended_s", "_holders", "_keys", "_live", "_numbers")

    def __init__(self, add: Callable[[bytes], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`add` has a command sent with the next flush, behind those added before."""
        self._add = add
        self._clock = clock
        self._numbers: dict[_Key, int] = {}
        self._live: set[int] = set()  # the plane knows where they lead
        # By number.
        self._keys: list[_Key] = []
        self._holders: list[int] = []
        self._ended_s: list[float] = []  # when the last holder let go

    def take(self, origin: Origin, address: bytes) -> int:
        """The number of an address, for one attempt; told to the plane when it is new. -1 when all are in use."""
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
        """A number that nobody needs: best one that leads nowhere, otherwise the one that was used longest ago."""
        until_s = self._clock() - LET_GO_S
        unused = [
            (number in self._live, ended_s, number)
            for number, ended_s in enumerate(self._ended_s)
            if self._holders[number] == 0 and ended_s < until_s
        ]
        return min(unused)[2] if unused else -1

    def _forget(self, number: int) -> None:
        """Have the connections closed that are kept."""
        if number in self._live:
            self._live.discard(number)
            self._add(pack(EndpointCommand(number)))

    def forget(self, addresses: Collection[bytes]) -> None:
        """Nobody is to be connected to these any more, unless it is asked for again."""
        for key, number in self._numbers.items():
            if key[0] in addresses:
                self._forget(number)

    def forget_others(self, addresses: Collection[bytes]) -> None:
        """As `forget`, for all but these."""
        self.forget({key[0] for key in self._numbers} - set(addresses))
