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
from daemon.plane.event_records import EVENT_HEADER, EVENT_LAYOUTS
from daemon.plane.linked import fifo
from daemon.plane.lists import slot_give
from daemon.plane.memory import copy_bytes
from daemon.plane.records import record_accessor, value_at
from daemon.plane.relay_table import relay_of
from daemon.plane.state import CLOSING, FREE, change_state
from daemon.plane.submissions import prepare_poll, prepare_write, room
from daemon.plane.table import EVENTS_PER_BATCH, FOREVER_NS, channel_of, count, stream_of
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

_header_at = record_accessor(EVENT_HEADER)
_handoff_at = record_accessor(EVENT_LAYOUTS[m.HANDOFF].dtype)
_expired_at = record_accessor(EVENT_LAYOUTS[m.EXPIRED].dtype)
_ended_at = record_accessor(EVENT_LAYOUTS[m.ENDED].dtype)
_released_at = record_accessor(EVENT_LAYOUTS[m.RELEASED].dtype)
_body_at = record_accessor(EVENT_LAYOUTS[m.BODY].dtype)
_stopped_at = record_accessor(EVENT_LAYOUTS[m.STOPPED].dtype)
_pong_at = record_accessor(EVENT_LAYOUTS[m.PONG].dtype)
_accept_paused_at = record_accessor(EVENT_LAYOUTS[m.ACCEPT_PAUSED].dtype)
_answered_at = record_accessor(EVENT_LAYOUTS[m.ANSWERED].dtype)
_failed_at = record_accessor(EVENT_LAYOUTS[m.FAILED].dtype)
_usage_at = record_accessor(EVENT_LAYOUTS[m.USAGE].dtype)
_MODEL_OFFSET: int = EVENT_LAYOUTS[m.ANSWERED].dtype.fields["model"][1]

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
def _begin(plane: Any, channel: int, index: int, kind: int) -> int:
    """The address of an event that is zero but for its kind."""
    assert 0 <= index < EVENTS_PER_BATCH
    address = int(plane.events + (channel * EVENTS_PER_BATCH + index) * m.EVENT_BYTES)
    for offset in range(0, m.EVENT_BYTES, 8):
        value_at(address + offset).value = 0
    _header_at(address).kind = kind
    return address


@inlined
def _begin_of_stream(plane: Any, channel: int, index: int, kind: int, slot: int) -> int:
    """As `_begin`, for an event that names a stream."""
    address = _begin(plane, channel, index, kind)
    header = _header_at(address)
    header.slot = slot
    header.generation = stream_of(plane, slot).generation
    return address


@inlined
def _write_global(plane: Any, index: int) -> int:
    """Events that belong to no slot, first in a batch of the control plane's channel."""
    pending = plane.global_events
    for bit in range(5):
        if pending & (1 << bit):
            kind = m.LISTENER_IDLE + bit
            address = _begin(plane, 0, index, kind)
            if kind == m.PONG:
                _pong_at(address).cookie = plane.pong_cookie
            elif kind == m.ACCEPT_PAUSED:
                _accept_paused_at(address).error = plane.accept_error
            index += 1
    plane.global_events = 0
    return index


@compiled
def _write_relay(plane: Any, slot: int, pending: int, index: int) -> int:
    """What an upstream's answer came to: its first token, or a failure."""
    relay = relay_of(plane, slot)
    if pending & CONTROL_ANSWERED:
        address = _begin_of_stream(plane, 0, index, m.ANSWERED, slot)
        _answered_at(address).model_bytes = relay.model_bytes
        copy_bytes(address + _MODEL_OFFSET, plane.texts + slot * m.TEXT_BYTES_MAX, relay.model_bytes)
        index += 1
    if pending & CONTROL_FAILED:
        failed = _failed_at(_begin_of_stream(plane, 0, index, m.FAILED, slot))
        failed.flags = m.FAILED_STREAMING if relay.failed_streaming else 0
        failed.failure = relay.failure
        failed.status = relay.status
        failed.error = relay.error
        if relay.assembly_bytes > 0:
            failed.lent_address = assembly_address(plane, relay)
            failed.lent_bytes = relay.assembly_bytes
        failed.head_bytes = relay.kept_head_bytes
        failed.attempt = relay.number
        index += 1
    return index


@compiled
def _write_usage(plane: Any, slot: int, index: int) -> int:
    """What is known of a relayed stream at its end."""
    relay = relay_of(plane, slot)
    usage = _usage_at(_begin_of_stream(plane, 0, index, m.USAGE, slot))
    usage.is_done = relay.is_done
    usage.malformed_count = relay.malformed
    usage.stale_count = relay.stale
    usage.prompt_tokens = relay.prompt_tokens
    usage.completion_tokens = relay.completion_tokens
    accepted_ns = stream_of(plane, slot).accepted_ns
    usage.first_token_after_ns = relay.first_token_ns - accepted_ns if relay.first_token_ns else -1
    usage.cancel_ns = relay.cancel_ns or -1
    usage.token_count = relay.token_count
    return index + 1


@inlined
def _write_ended(plane: Any, slot: int, index: int) -> int:
    """The end of a stream, behind what is known of its upstream."""
    stream = stream_of(plane, slot)
    is_relayed = stream.source == m.SOURCE_UPSTREAM
    if is_relayed:
        index = _write_usage(plane, slot, index)
    ended = _ended_at(_begin_of_stream(plane, 0, index, m.ENDED, slot))
    ended.reason = stream.reason
    ended.accepted_ns = stream.accepted_ns
    if is_relayed:
        ended.ended_ns = relay_of(plane, slot).ended_ns
    ended.first_byte_after_ns = stream.first_byte_ns - stream.accepted_ns if stream.first_byte_ns else -1
    ended.sent_bytes = stream.sent_bytes
    ended.message_count = stream.message_count
    return index + 1


@inlined
def _write_control(plane: Any, slot: int, index: int) -> int:
    """The control plane's events of one slot, in the order in which they can have happened."""
    stream = stream_of(plane, slot)
    pending = stream.control_events
    stream.control_events = 0
    if pending & (CONTROL_HANDOFF | CONTROL_OPENED):
        handoff = _handoff_at(_begin_of_stream(plane, 0, index, m.HANDOFF, slot))
        handoff.flags = stream.handoff_flags
        handoff.client_fd = stream.client_fd
        handoff.peer_fd = stream.peer_fd
        handoff.data_address = plane.handoff_data + max(stream.handoff_buffer, 0) * plane.handoff_stride
        handoff.data_bytes = stream.handoff_bytes
        handoff.accepted_ns = stream.accepted_ns
        handoff.cookie = stream.cookie
        index += 1
    if pending & CONTROL_EXPIRED:
        _expired_at(_begin_of_stream(plane, 0, index, m.EXPIRED, slot)).reason = stream.expired
        index += 1
    if pending & CONTROL_KEEP_ALIVE:
        _begin_of_stream(plane, 0, index, m.KEEP_ALIVE_DUE, slot)
        index += 1
    if pending & (CONTROL_ANSWERED | CONTROL_FAILED):
        index = _write_relay(plane, slot, pending, index)
    if pending & CONTROL_ENDED:
        index = _write_ended(plane, slot, index)
    return index


@inlined
def _write_worker(plane: Any, slot: int, channel: int, index: int) -> int:
    """The worker's events of one slot."""
    stream = stream_of(plane, slot)
    pending = stream.worker_events
    stream.worker_events = 0
    if pending & WORKER_RELEASED:
        released = _released_at(_begin_of_stream(plane, channel, index, m.RELEASED, slot))
        is_relayed = stream.source == m.SOURCE_UPSTREAM
        released.released_bytes = relay_of(plane, slot).raw_reported if is_relayed else stream.inline_done
        released.released_ranges = stream.ranges_done
        index += 1
    if pending & WORKER_BODY:
        body = _body_at(_begin_of_stream(plane, channel, index, m.BODY, slot))
        body.flags = stream.body_flags
        body.piece_address = plane.bodies + stream.body_buffer * plane.body_buffer_bytes
        body.piece_bytes = stream.body_bytes
        index += 1
    if pending & WORKER_STOPPED:
        stopped = _stopped_at(_begin_of_stream(plane, channel, index, m.STOPPED, slot))
        stopped.flags = m.COMPLETE if stream.flags & m.FLAG_TRUE_END else 0
        stopped.reason = stream.reason
        stopped.released_bytes = stream.inline_done
        stopped.released_ranges = stream.ranges_done
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
