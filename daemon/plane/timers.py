"""One timing wheel for every deadline: buckets of a millisecond, one entry per slot, at its earliest deadline.

An entry is placed relative to now, never to a stale tick, and never early: it fires in the first tick after its time.
Entries more than a lap (8.2 s) away stay in their bucket until their time has come. Moving an entry later is left to
the moment it fires, so a write that ends in time costs nothing.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.linked import chain
from daemon.plane.lists import ready_push
from daemon.plane.table import BUCKET_COUNT, FOREVER_NS, bucket_of, stream_of, word_of

TICK_NS = 1_000_000
LAP = BUCKET_COUNT - 1

_enter, _leave = chain("first", "last", "timer_next", "timer_previous", stream_of)


@inlined
def tick_after(time_ns: int) -> int:
    """The first tick that begins at or after this time."""
    return (time_ns + TICK_NS - 1) // TICK_NS


@compiled
def timer_remove(plane: Any, slot: int) -> None:
    """Take a slot off the wheel; nothing happens if it is not on it."""
    stream = stream_of(plane, slot)
    if stream.timer_ns == 0:
        return
    if stream.timer_previous < 0 and stream.timer_next < 0:
        word = word_of(plane, stream.timer_bucket >> 5)
        word.bits = word.bits & ~(1 << (stream.timer_bucket & 31))
    _leave(plane, bucket_of(plane, stream.timer_bucket), slot)
    stream.timer_ns = 0
    plane.timers_scheduled -= 1


@compiled
def timer_set(plane: Any, slot: int, time_ns: int) -> None:
    """Make sure the slot's entry fires at `time_ns` or earlier. An entry that is early already stays."""
    stream = stream_of(plane, slot)
    if stream.timer_ns != 0:
        if stream.timer_ns <= time_ns:
            return
        timer_remove(plane, slot)
    if plane.timers_scheduled == 0:
        # The wheel stood still while it was empty: begin again at the present, or the entry waits a whole lap.
        plane.tick = max(plane.tick, plane.now_ns // TICK_NS)
    number = max(tick_after(time_ns), plane.tick + 1) & LAP
    stream.timer_ns = max(time_ns, 1)
    stream.timer_bucket = number
    _enter(plane, bucket_of(plane, number), slot)
    word = word_of(plane, number >> 5)
    word.bits = word.bits | (1 << (number & 31))
    plane.timers_scheduled += 1


@inlined
def _fire_bucket(plane: Any, number: int) -> None:
    """Make ready every slot of a bucket whose time has come; the others belong to a later lap."""
    slot = int(bucket_of(plane, number).first)
    while slot >= 0:
        stream = stream_of(plane, slot)
        following = int(stream.timer_next)
        if stream.timer_ns <= plane.now_ns:
            timer_remove(plane, slot)
            ready_push(plane, slot)
        slot = following


@compiled
def timers_advance(plane: Any) -> None:
    """Fire what is due at `plane.now_ns`. A jump of more than a lap visits every bucket once."""
    present = plane.now_ns // TICK_NS
    if plane.timers_scheduled == 0:
        plane.tick = max(plane.tick, present)
        return
    tick = max(plane.tick, present - BUCKET_COUNT)
    while tick < present:
        tick += 1
        number = tick & LAP
        if bucket_of(plane, number).first >= 0:
            _fire_bucket(plane, number)
    plane.tick = max(plane.tick, present)


@compiled
def timers_next_ns(plane: Any) -> int:
    """When the next occupied bucket begins (it may hold only entries of a later lap), or FOREVER_NS."""
    if plane.timers_scheduled == 0:
        return FOREVER_NS
    start = (plane.tick + 1) & LAP
    bits = word_of(plane, start >> 5).bits >> (start & 31)
    distance = 0
    if bits == 0:
        distance = 32 - (start & 31)
        word = ((start >> 5) + 1) & (LAP >> 5)
        while word_of(plane, word).bits == 0:
            assert distance <= BUCKET_COUNT
            distance += 32
            word = (word + 1) & (LAP >> 5)
        bits = word_of(plane, word).bits
    while bits & 1 == 0:
        bits >>= 1
        distance += 1
    return int((plane.tick + 1 + distance) * TICK_NS)
