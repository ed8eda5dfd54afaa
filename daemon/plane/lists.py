"""Membership: free slots, the ready list, and the free lists of blocks and buffers. All intrusive, none allocates.

A slot is on the ready list when something about it changed; `turn` services each once. Free lists are stacks, so that
what was used last, and is still in the cache, is used next.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.counters import BLOCKS_USED, BLOCKS_USED_PEAK, SLOTS_USED, SLOTS_USED_PEAK
from daemon.plane.table import block_link_of, body_link_of, count, counter_of, handoff_link_of, stream_of


@inlined
def ready_push(plane: Any, slot: int) -> None:
    """Have the slot serviced this turn, or in the next one if submissions run out."""
    stream = stream_of(plane, slot)
    if stream.is_ready:
        return
    stream.is_ready = 1
    stream.ready_next = -1
    if plane.ready_tail >= 0:
        stream_of(plane, plane.ready_tail).ready_next = slot
    else:
        plane.ready_head = slot
    plane.ready_tail = slot


@inlined
def ready_pop(plane: Any) -> int:
    """The slot that has waited longest, or -1."""
    slot = int(plane.ready_head)
    if slot >= 0:
        stream = stream_of(plane, slot)
        plane.ready_head = stream.ready_next
        if stream.ready_next < 0:
            plane.ready_tail = -1
        stream.is_ready = 0
    return slot


@compiled
def slot_take(plane: Any) -> int:
    """A free slot, or -1. Slots never used before come last, so that their memory stays untouched."""
    slot = int(plane.free_head)
    if slot >= 0:
        plane.free_head = stream_of(plane, slot).ready_next
    elif plane.slots_touched < plane.slot_count:
        slot = int(plane.slots_touched)
        plane.slots_touched += 1
        stream = stream_of(plane, slot)
        stream.generation = 1
    else:
        return -1
    count(plane, SLOTS_USED, 1)
    peak = counter_of(plane, SLOTS_USED_PEAK)
    peak.value = max(peak.value, counter_of(plane, SLOTS_USED).value)
    return slot


@compiled
def slot_give(plane: Any, slot: int) -> None:
    """The slot is free; its next use is another generation."""
    stream = stream_of(plane, slot)
    assert stream.in_flight == 0
    assert not stream.is_ready
    stream.generation = (stream.generation + 1) & 0x7FFFFFFF
    stream.ready_next = plane.free_head
    plane.free_head = slot
    count(plane, SLOTS_USED, -1)


@inlined
def block_take(plane: Any) -> int:
    """An output block. There is one for every slot, so this cannot fail."""
    block = int(plane.block_free)
    assert block >= 0
    plane.block_free = block_link_of(plane, block).next
    used, peak = counter_of(plane, BLOCKS_USED), counter_of(plane, BLOCKS_USED_PEAK)
    used.value += 1
    peak.value = max(peak.value, used.value)
    return block


@inlined
def block_give(plane: Any, block: int) -> None:
    block_link_of(plane, block).next = plane.block_free
    plane.block_free = block
    count(plane, BLOCKS_USED, -1)


@inlined
def handoff_buffer_take(plane: Any) -> int:
    """A buffer for one handoff message, or -1."""
    buffer = int(plane.handoff_free)
    if buffer >= 0:
        plane.handoff_free = handoff_link_of(plane, buffer).next
    return buffer


@inlined
def handoff_buffer_give(plane: Any, buffer: int) -> None:
    handoff_link_of(plane, buffer).next = plane.handoff_free
    plane.handoff_free = buffer


@inlined
def body_buffer_take(plane: Any) -> int:
    """A buffer for a stream's upload, or -1."""
    buffer = int(plane.body_free)
    if buffer >= 0:
        plane.body_free = body_link_of(plane, buffer).next
    return buffer


@inlined
def body_buffer_give(plane: Any, buffer: int) -> None:
    body_link_of(plane, buffer).next = plane.body_free
    plane.body_free = buffer
