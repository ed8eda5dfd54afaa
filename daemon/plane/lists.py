"""Membership: free slots, the ready list, and the free lists of blocks and buffers.

A slot is on the ready list when something about it changed; `turn` services each once.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.counters import BLOCKS_USED, BLOCKS_USED_PEAK, SLOTS_USED, SLOTS_USED_PEAK
from daemon.plane.linked import fifo, generations, stack
from daemon.plane.table import block_link_of, body_link_of, count, counter_of, handoff_link_of, stream_of

_push_ready, _pop_ready = fifo("ready_head", "ready_tail", "ready_next", stream_of)
_take_slot, _give_slot = generations("free_head", "slots_touched", "slot_count", "ready_next", stream_of)
_take_block, _give_block = stack("block_free", "next", block_link_of)
handoff_buffer_take, handoff_buffer_give = stack("handoff_free", "next", handoff_link_of)
body_buffer_take, body_buffer_give = stack("body_free", "next", body_link_of)


@inlined
def ready_push(plane: Any, slot: int) -> None:
    """Have the slot serviced this turn, or in the next one if submissions run out."""
    stream = stream_of(plane, slot)
    if not stream.is_ready:
        stream.is_ready = 1
        _push_ready(plane, plane, slot)


@inlined
def ready_pop(plane: Any) -> int:
    """The slot that has waited longest, or -1."""
    slot = _pop_ready(plane, plane)
    if slot >= 0:
        stream_of(plane, slot).is_ready = 0
    return slot


@compiled
def slot_take(plane: Any) -> int:
    """A free slot, or -1."""
    slot = _take_slot(plane)
    if slot >= 0:
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
    _give_slot(plane, slot)
    count(plane, SLOTS_USED, -1)


@inlined
def block_take(plane: Any) -> int:
    """An output block. There is one for every slot, so this cannot fail."""
    block = _take_block(plane)
    assert block >= 0
    used, peak = counter_of(plane, BLOCKS_USED), counter_of(plane, BLOCKS_USED_PEAK)
    used.value += 1
    peak.value = max(peak.value, used.value)
    return block


@inlined
def block_give(plane: Any, block: int) -> None:
    """Nothing in the block is unsent."""
    _give_block(plane, block)
    count(plane, BLOCKS_USED, -1)
