"""The lists that the plane's records form. None allocates: ends and links are fields of the records.

Each function here makes the functions of one list from the names of its fields. `record_of(plane, number)` is the
accessor of what is listed; numbers are indexes, and -1 is none. An `owner` is the record that has the list's ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.plane.records import inlined_as

if TYPE_CHECKING:
    from collections.abc import Callable

    Accessor = Callable[[Any, int], Any]
    Take = Callable[[Any], int]
    Give = Callable[[Any, int], None]
    Put = Callable[[Any, Any, int], None]
    Pop = Callable[[Any, Any], int]

_INDEX_MASK = (1 << 30) - 1  # 2^30 is a multiple of every queue's size, so an index may run that far


def stack(top: str, following: str, record_of: Accessor) -> tuple[Take, Give]:
    """`take(plane)` and `give(plane, number)` of a free list. What was used last, and may still be cached, is next."""

    def take(plane: Any) -> int:
        number = int(plane[top])
        if number >= 0:
            plane[top] = record_of(plane, number)[following]
        return number

    def give(plane: Any, number: int) -> None:
        record_of(plane, number)[following] = plane[top]
        plane[top] = number

    return inlined_as(f"take_{top}", take), inlined_as(f"give_{top}", give)


def generations(top: str, touched: str, count: str, following: str, record_of: Accessor) -> tuple[Take, Give]:
    """As `stack`, of records that begin another generation with each use.

    Records never used before come last, so that their memory stays untouched.
    """
    take_used, give_used = stack(top, following, record_of)

    def take(plane: Any) -> int:
        number = take_used(plane)
        if number < 0 and plane[touched] < plane[count]:
            number = int(plane[touched])
            plane[touched] = number + 1
            record_of(plane, number).generation = 1
        return number

    def give(plane: Any, number: int) -> None:
        record = record_of(plane, number)
        record.generation = (record.generation + 1) & 0x7FFFFFFF
        give_used(plane, number)

    return inlined_as(f"take_{touched}", take), inlined_as(f"give_{touched}", give)


def fifo(first: str, last: str, following: str, record_of: Accessor) -> tuple[Put, Pop]:
    """`push(plane, owner, number)` and `pop(plane, owner)`, which gives the number that has waited longest."""

    def push(plane: Any, owner: Any, number: int) -> None:
        record_of(plane, number)[following] = -1
        if owner[last] >= 0:
            record_of(plane, int(owner[last]))[following] = number
        else:
            owner[first] = number
        owner[last] = number

    def pop(plane: Any, owner: Any) -> int:
        number = int(owner[first])
        if number >= 0:
            owner[first] = record_of(plane, number)[following]
            if owner[first] < 0:
                owner[last] = -1
        return number

    return inlined_as(f"push_{following}", push), inlined_as(f"pop_{following}", pop)


def chain(first: str, last: str, following: str, previous: str, record_of: Accessor) -> tuple[Put, Put]:
    """`add(plane, owner, number)` and `remove(plane, owner, number)`, from any place. The newest is first."""

    def add(plane: Any, owner: Any, number: int) -> None:
        record, head = record_of(plane, number), int(owner[first])
        record[previous] = -1
        record[following] = head
        if head >= 0:
            record_of(plane, head)[previous] = number
        else:
            owner[last] = number
        owner[first] = number

    def remove(plane: Any, owner: Any, number: int) -> None:
        record = record_of(plane, number)
        before, behind = int(record[previous]), int(record[following])
        if before >= 0:
            record_of(plane, before)[following] = behind
        else:
            owner[first] = behind
        if behind >= 0:
            record_of(plane, behind)[previous] = before
        else:
            owner[last] = before

    name = f"{first}_{previous}"
    return inlined_as(f"add_{name}", add), inlined_as(f"remove_{name}", remove)


def queue(first: str, count: str, entry_of: Accessor) -> tuple[Callable[[Any], Any], Callable[[Any], None]]:
    """`append(plane)`, which gives the entry to fill, and `drop(plane)`, of the oldest, in an array used in a circle.

    `entry_of` takes any index; the caller knows that there is room, or an entry.
    """

    def append(plane: Any) -> Any:
        entry = entry_of(plane, int(plane[first]) + int(plane[count]))
        plane[count] += 1
        return entry

    def drop(plane: Any) -> None:
        plane[first] = (plane[first] + 1) & _INDEX_MASK
        plane[count] -= 1

    return inlined_as(f"append_{first}", append), inlined_as(f"drop_{first}", drop)
