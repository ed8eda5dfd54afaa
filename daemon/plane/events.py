"""Events up: a pending word per slot and per consumer, turned into batches of records, one write in flight per channel.

An event that cannot be written yet stays a bit in its slot, so none is lost and none needs memory. A slot is free only
when both its words are empty.

To wake the control plane costs more than what it does with an event. So what nobody waits for, the end of a stream
above all, leaves with the next event that somebody waits for, or after `EVENT_DELAY_NS`. The order stays: a handoff
that comes later is heard later.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import messages as m
from daemon.plane.assembly import assembly_address
from daemon.plane.counters import BYTES_HANDED_OVER, EVENTS, EVENTS_BLOCKED
from daemon.plane.entries import EAGAIN, EINTR, POLLOUT
from daemon.plane.linked import fifo
from daemon.plane.lists import slot_give
from daemon.plane.memory import copy_bytes
from daemon.plane.relay_table import relay_of
from daemon.plane.state import CLOSING, FREE, change_state
from daemon.plane.submissions import prepare_poll, prepare_write, room
from daemon.plane.table import EVENTS_PER_BATCH, FOREVER_NS, channel_of, count, event_of, stream_of
from daemon.plane.tag import POLL_EVENTS, WRITE_EVENTS, pack

# Bits of `control_events`.
CONTROL_HANDOFF = 1
CONTROL_EXPIRED = 2
CONTROL_KEEP_ALIVE = 4
CONTROL_ENDED = 8
CONTROL_ANSWERED = 16
CONTROL_FAILED = 32
CONTROL_OPENED = 64  # HANDOFF of a socket that has been opened already
_PATIENT = CONTROL_ANSWERED | CONTROL_ENDED | CONTROL_OPENED
EVENT_DELAY_NS = 5_000_000
# Bits of `worker_events`; STOPPED is always the last a worker hears of a stream.
WORKER_RELEASED = 1
WORKER_BODY = 2
WORKER_STOPPED = 4
EVENTS_PER_SLOT_MAX = 8  # more than one slot can owe at once
# Bits of `global_events`.
GLOBAL_LISTENER_IDLE = 1
GLOBAL_PONG = 2
GLOBAL_TABLE_READY = 4
GLOBAL_ACCEPT_PAUSED = 8
GLOBAL_ACCEPT_RESUMED = 16

# The slots that owe a channel events. A slot can owe the control plane and its worker something at once.
_owe_control, _next_of_control = fifo("head", "tail", "control_next", stream_of)
_owe_worker, _next_of_worker = fifo("head", "tail", "worker_next", stream_of)


@compiled
def raise_control(plane: Any, slot: int, bits: int) -> None:
    """Owe the control plane an event of this slot."""
    stream = stream_of(plane, slot)
    delay_ns = EVENT_DELAY_NS if bits & ~_PATIENT == 0 else 0
    plane.tell_ns = min(plane.tell_ns, plane.now_ns + delay_ns)
    if stream.control_events == 0:
        _owe_control(plane, channel_of(plane, 0), slot)
    stream.control_events |= bits


@compiled
def raise_worker(plane: Any, slot: int, bits: int) -> None:
    """Owe the stream's worker an event; nothing where no worker feeds the stream."""
    stream = stream_of(plane, slot)
    if stream.channel <= 0:
        return
    if stream.worker_events == 0:
        _owe_worker(plane, channel_of(plane, stream.channel), slot)
    stream.worker_events |= bits


@inlined
def _begin(plane: Any, channel: int, index: int, kind: int, slot: int, generation: int) -> Any:
    event = event_of(plane, channel, index)
    event.kind = kind
    event.flags = 0
    event.slot = slot
    event.generation = generation
    event.reason = 0
    event.state = 0
    event.address = 0
    event.length = 0
    event.client_fd = -1
    event.peer_fd = -1
    event.time_ns = 0
    event.bytes = 0
    event.count = 0
    return event


@inlined
def _write_global(plane: Any, index: int) -> int:
    """Events that belong to no slot, first in a batch of the control plane's channel."""
    pending = plane.global_events
    for bit in range(5):
        if pending & (1 << bit):
            event = _begin(plane, 0, index, m.LISTENER_IDLE + bit, 0, 0)
            event.count = plane.pong_cookie
            event.reason = plane.accept_error
            index += 1
    plane.global_events = 0
    return index


@compiled
def _write_relay(plane: Any, slot: int, pending: int, index: int) -> int:
    """What an upstream's answer came to: its first token, or a failure."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if pending & CONTROL_ANSWERED:
        event = _begin(plane, 0, index, m.ANSWERED, slot, stream.generation)
        event.reason = relay.model_bytes
        target = plane.events + index * m.EVENT_BYTES + m.MODEL_OFFSET
        copy_bytes(target, plane.texts + slot * m.TEXT_BYTES_MAX, m.MODEL_BYTES_MAX)
        index += 1
    if pending & CONTROL_FAILED:
        event = _begin(plane, 0, index, m.FAILED, slot, stream.generation)
        event.reason = relay.failure
        event.state = stream.state
        if relay.failed_streaming:
            event.flags = m.FAILED_STREAMING
        if relay.assembly_bytes > 0:
            event.address = assembly_address(plane, relay)
            event.length = relay.assembly_bytes
        event.bytes = relay.kept_head_bytes
        event.client_fd = relay.status
        event.peer_fd = relay.error
        event.count = relay.number
        index += 1
    return index


@compiled
def _write_usage(plane: Any, slot: int, index: int) -> int:
    """What is known of a relayed stream at its end."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    event = _begin(plane, 0, index, m.USAGE, slot, stream.generation)
    event.reason = relay.is_done
    event.address = relay.prompt_tokens
    event.length = relay.completion_tokens
    event.client_fd = relay.malformed
    event.peer_fd = relay.stale
    event.time_ns = relay.first_token_ns - stream.accepted_ns if relay.first_token_ns else -1
    event.bytes = relay.cancel_ns or -1
    event.count = relay.token_count
    return index + 1


@inlined
def _write_control(plane: Any, slot: int, index: int) -> int:
    """The control plane's events of one slot, in the order in which they can have happened."""
    stream = stream_of(plane, slot)
    pending = stream.control_events
    stream.control_events = 0
    if pending & (CONTROL_HANDOFF | CONTROL_OPENED):
        event = _begin(plane, 0, index, m.HANDOFF, slot, stream.generation)
        event.flags = stream.handoff_flags
        event.address = plane.handoff_data + max(stream.handoff_buffer, 0) * plane.handoff_stride
        event.length = stream.handoff_bytes
        event.client_fd = stream.client_fd
        event.peer_fd = stream.peer_fd
        event.time_ns = stream.accepted_ns
        event.count = stream.cookie
        index += 1
    if pending & CONTROL_EXPIRED:
        event = _begin(plane, 0, index, m.EXPIRED, slot, stream.generation)
        event.reason = stream.expired
        event.state = stream.state
        index += 1
    if pending & CONTROL_KEEP_ALIVE:
        event = _begin(plane, 0, index, m.KEEP_ALIVE_DUE, slot, stream.generation)
        event.state = stream.state
        index += 1
    if pending & (CONTROL_ANSWERED | CONTROL_FAILED):
        index = _write_relay(plane, slot, pending, index)
    if pending & CONTROL_ENDED:
        ended_ns = 0
        if stream.source == m.SOURCE_UPSTREAM:
            index = _write_usage(plane, slot, index)
            ended_ns = relay_of(plane, slot).ended_ns
        event = _begin(plane, 0, index, m.ENDED, slot, stream.generation)
        event.reason = stream.reason
        event.address = ended_ns
        event.length = stream.first_byte_ns - stream.accepted_ns if stream.first_byte_ns else -1
        event.time_ns = stream.accepted_ns
        event.bytes = stream.sent_bytes
        event.count = stream.message_count
        index += 1
    return index


@inlined
def _write_worker(plane: Any, slot: int, channel: int, index: int) -> int:
    """The worker's events of one slot."""
    stream = stream_of(plane, slot)
    pending = stream.worker_events
    stream.worker_events = 0
    if pending & WORKER_RELEASED:
        event = _begin(plane, channel, index, m.RELEASED, slot, stream.generation)
        event.bytes = stream.inline_done
        event.count = stream.ranges_done
        if stream.source == m.SOURCE_UPSTREAM:
            event.bytes = relay_of(plane, slot).raw_reported
        index += 1
    if pending & WORKER_BODY:
        event = _begin(plane, channel, index, m.BODY, slot, stream.generation)
        event.flags = stream.body_flags
        event.address = plane.bodies + stream.body_buffer * plane.body_buffer_bytes
        event.length = stream.body_bytes
        index += 1
    if pending & WORKER_STOPPED:
        event = _begin(plane, channel, index, m.STOPPED, slot, stream.generation)
        event.reason = stream.reason
        event.flags = m.COMPLETE if stream.flags & m.FLAG_TRUE_END else 0
        event.bytes = stream.inline_done
        event.count = stream.ranges_done
        stream.channel = 0
        index += 1
    return index


@inlined
def free_if_told(plane: Any, slot: int) -> None:
    """Free the slot once everyone has been told that its stream has ended."""
    stream = stream_of(plane, slot)
    if (
        stream.state == CLOSING
        and stream.flags & m.FLAG_ENDED
        and stream.control_events == 0
        and stream.worker_events == 0
    ):
        assert stream.in_flight == 0
        count(plane, BYTES_HANDED_OVER, stream.inline_done)
        change_state(stream, FREE)
        slot_give(plane, slot)


@inlined
def _may_wait(plane: Any) -> bool:
    """Whether nobody waits for what the control plane is owed. Slots that are wanted again are free once it is told."""
    hurried = plane.parked_count > 0 or plane.adopted_count > 0 or plane.draining or plane.stop
    return bool(plane.now_ns < plane.tell_ns and not hurried and plane.global_events == 0)


@compiled
def _fill_batch(plane: Any, number: int) -> int:
    """Turn pending words of a channel into records; how many."""
    channel = channel_of(plane, number)
    index = _write_global(plane, 0) if number == 0 else 0
    while channel.head >= 0 and index + EVENTS_PER_SLOT_MAX <= EVENTS_PER_BATCH:
        if number == 0:
            slot = _next_of_control(plane, channel)
            index = _write_control(plane, slot, index)
        else:
            slot = _next_of_worker(plane, channel)
            index = _write_worker(plane, slot, number, index)
        free_if_told(plane, slot)
    if number == 0 and channel.head < 0:
        plane.tell_ns = FOREVER_NS
    return index


@compiled
def flush_events(plane: Any) -> bool:
    """Start a write on every channel that owes events and has none in flight. True when room ran out."""
    for number in range(plane.channel_count):
        channel = channel_of(plane, number)
        if channel.in_flight or channel.blocked:
            continue
        if channel.buffered_bytes == 0:
            if channel.head < 0 and not (number == 0 and plane.global_events):
                continue
            if number == 0 and _may_wait(plane):
                continue
            channel.buffered_offset = 0
            channel.buffered_bytes = _fill_batch(plane, number) * m.EVENT_BYTES
            count(plane, EVENTS, channel.buffered_bytes // m.EVENT_BYTES)
            if channel.closed:  # nobody listens any more; the words are emptied all the same
                channel.buffered_bytes = 0
        if channel.buffered_bytes > 0:
            if room(plane) < 1:
                return True
            address = plane.events + number * m.MESSAGE_BYTES_MAX + channel.buffered_offset
            prepare_write(plane, channel.fd, address, channel.buffered_bytes, pack(WRITE_EVENTS, number, 0))
            channel.in_flight = 1
    return False


@compiled
def handle_write_events(plane: Any, number: int, result: int) -> None:
    """A batch went up, wholly or (never with a pipe) in part; a full pipe is waited for, a closed one forgotten."""
    channel = channel_of(plane, number)
    channel.in_flight = 0
    if result > 0:
        channel.buffered_offset += result
        channel.buffered_bytes -= result
    elif result == -EAGAIN:
        channel.blocked = 1
        count(plane, EVENTS_BLOCKED, 1)
    elif result != -EINTR:
        channel.closed = 1
        channel.buffered_bytes = 0


@compiled
def poll_blocked_channels(plane: Any) -> bool:
    """Wait for room in the pipes that were full. True when submissions ran out."""
    for number in range(plane.channel_count):
        channel = channel_of(plane, number)
        if channel.blocked == 1:
            if room(plane) < 1:
                return True
            prepare_poll(plane, channel.fd, POLLOUT, pack(POLL_EVENTS, number, 0))
            channel.blocked = 2
    return False
