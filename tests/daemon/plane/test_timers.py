"""The wheel against a list: never early, never late, whatever the jumps, laps and pauses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from daemon.plane.lists import ready_pop
from daemon.plane.table import BUCKET_COUNT, FOREVER_NS, Plane
from daemon.plane.timers import TICK_NS, timer_remove, timer_set, timers_advance, timers_next_ns
from tests.daemon.plane.small import Record, small_plane

pytestmark = pytest.mark.plane

SLOT_COUNT = 8
LAP_NS = BUCKET_COUNT * TICK_NS
DELAYS = some.one_of(
    some.integers(0, 3 * TICK_NS),
    some.integers(0, 3 * LAP_NS),
    some.sampled_from([TICK_NS, LAP_NS, LAP_NS - 1, LAP_NS + 1, LAP_NS - TICK_NS, 100 * LAP_NS]),
)
STEPS = some.lists(
    some.one_of(
        some.tuples(some.just("set"), some.integers(0, SLOT_COUNT - 1), DELAYS),
        some.tuples(some.just("remove"), some.integers(0, SLOT_COUNT - 1), some.just(0)),
        some.tuples(some.just("advance"), some.just(0), DELAYS),
    ),
    max_size=60,
)


class Naive:
    """Each slot's time, and the tick before which it cannot fire."""

    def __init__(self) -> None:
        self.times: dict[int, tuple[int, int]] = {}

    def put(self, slot: int, time_ns: int, now_ns: int) -> None:
        if slot in self.times and self.times[slot][0] <= time_ns:
            return
        tick = max(-(-time_ns // TICK_NS), now_ns // TICK_NS + 1)
        self.times[slot] = (time_ns, tick)

    def due(self, now_ns: int) -> set[int]:
        """Those that must have fired by now."""
        return {slot for slot, (_, tick) in self.times.items() if now_ns // TICK_NS >= tick}


def _fired(shared: Record) -> set[int]:
    slots: set[int] = set()
    while (slot := int(ready_pop(shared))) >= 0:
        slots.add(slot)
    return slots


def _check_next(shared: Record, naive: Naive, now_ns: int) -> None:
    next_ns = int(timers_next_ns(shared))
    if not naive.times:
        assert next_ns == FOREVER_NS
        return
    assert next_ns > now_ns // TICK_NS * TICK_NS
    assert next_ns <= min(tick for _, tick in naive.times.values()) * TICK_NS


def _new(start_ns: int) -> tuple[Plane, Record]:
    plane = small_plane()
    plane.globals[0].now_ns = start_ns
    plane.globals[0].slots_touched = SLOT_COUNT
    timers_advance(plane.globals[0])
    return plane, plane.globals[0]


@settings(deadline=None)
@given(some.sampled_from([1, 10**9 + 7, 10**15 + 3]), STEPS)
def test_the_wheel_fires_what_a_list_would(start_ns: int, steps: list[tuple[str, int, int]]) -> None:
    plane, shared = _new(start_ns)
    naive, now_ns = Naive(), start_ns
    for action, slot, delay_ns in steps:
        if action == "set":
            timer_set(shared, slot, now_ns + delay_ns)
            naive.put(slot, now_ns + delay_ns, now_ns)
        elif action == "remove":
            timer_remove(shared, slot)
            naive.times.pop(slot, None)
        else:
            now_ns += delay_ns
            shared.now_ns = now_ns
            timers_advance(shared)
            fired = _fired(shared)
            assert naive.due(now_ns) <= fired <= set(naive.times)
            assert all(naive.times.pop(slot)[0] <= now_ns for slot in fired)
        assert shared.timers_scheduled == len(naive.times)
        _check_next(shared, naive, now_ns)
    occupied = plane.buckets["first"] >= 0
    bits = [bool(int(plane.words["bits"][n >> 5]) >> (n & 31) & 1) for n in range(BUCKET_COUNT)]
    assert occupied.tolist() == bits


def test_an_idle_wheel_begins_again_at_the_present() -> None:
    _, shared = _new(10**9)
    shared.now_ns = 10**12  # a quarter of an hour in which nothing was scheduled
    timer_set(shared, 3, 10**12 + 5 * TICK_NS)
    assert 10**12 < timers_next_ns(shared) <= 10**12 + 6 * TICK_NS
    shared.now_ns = 10**12 + 6 * TICK_NS
    timers_advance(shared)
    assert _fired(shared) == {3}
