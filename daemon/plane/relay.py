"""A relayed stream: the upstream's body in, events for the client out, and how it ends or fails.

Whoever reads the upstream (daemon/plane/upstream.py, or a worker's RAW pushes) hands over decoded bytes of the body.
Whole events are passed on at once; what is incomplete, or finds no room because the client is slow, is kept, and then
nothing more is read. The end is only believed when the upstream says it: anything else is a failure, told to the
control plane, which asks another upstream or says the client why.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.assembly import SMALL_BYTES_MAX, assembly_address, drop_front, give_assembly, keep, promote
from daemon.plane.body import DONE
from daemon.plane.closing import begin_closing
from daemon.plane.connections import HELD_READING, connection_ready, release_connection
from daemon.plane.counters import MALFORMED_EVENTS, MESSAGES_SENT, TOKENS
from daemon.plane.events import CONTROL_ANSWERED, WORKER_RELEASED, raise_control, raise_worker
from daemon.plane.json_walk import (
    CONTENT_ESCAPED,
    CONTENT_PLAIN,
    rewrite_string,
    walk_chunk,
    walk_of,
)
from daemon.plane.lists import ready_push
from daemon.plane.memory import copy_bytes
from daemon.plane.output import (
    FRAMING_BYTES,
    append_body,
    append_last_chunk,
    append_range,
    append_raw,
    room_for,
)
from daemon.plane.relay_failure import EVENTS, FAILED, OVER, fail, lend
from daemon.plane.relay_table import EVENT_BYTES_MAX, PARSER_BYTES, RECEIVE_BYTES, connection_of, observe_gap, relay_of
from daemon.plane.sse import is_done, join_data, scan_event, scan_of, skip_bom
from daemon.plane.table import (
    CONTENT_END_BYTES,
    CONTENT_END_OFFSET,
    CONTENT_START_BYTES,
    CONTENT_START_OFFSET,
    DONE_EVENT_BYTES,
    DONE_EVENT_OFFSET,
    count,
    stream_of,
)
from daemon.plane.timers import TICK_NS, timer_set

# `body_ended`
BODY_CLEAN = 1
BODY_CUT = 2
BODY_MALFORMED = 3  # its framing is wrong
# Bits of a stream's `paused`
FOR_ROOM = 1  # in the client's output
FOR_LARGE = 2  # for a large assembly buffer
FOR_RANGE = 4  # until the client has taken an event that is sent from the assembly buffer
FOR_CLIENT = 8  # a worker's stream: until the client has taken what was pushed, so that silence is nobody's fault

RESERVE_BYTES = 1024  # of the output block, for the error event of a STOP
INLINE_SHARE_BYTES = 4096  # of the output block, not used by one event: an event beyond is sent by address
RELEASE_BYTES = 4096  # RAW bytes taken before their sender is told

_SCAN_OFFSET = PARSER_BYTES


# ---- ending


@compiled
def _leave_upstream(plane: Any, slot: int) -> None:
    """The stream needs nothing more: its connection serves the next one, if it can."""
    relay = relay_of(plane, slot)
    if relay.connection >= 0:
        release_connection(plane, relay.connection, connection_of(plane, relay.connection).body_state == DONE)


@inlined
def _answered(plane: Any, slot: int, relay: Any) -> None:
    if not relay.is_answered:
        relay.is_answered = 1
        raise_control(plane, slot, CONTROL_ANSWERED)


@compiled
def _true_end(plane: Any, slot: int, address: int, byte_count: int) -> bool:
    """The upstream's own end: pass it on, or say it where the upstream left it out. False when there is no room."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if not relay.is_draining:
        if not _begin_output(plane, slot):
            return False
        is_too_large = byte_count > plane.block_bytes - INLINE_SHARE_BYTES  # comments may stand before it
        if relay.flags & m.AS_CONTENT or byte_count == 0 or is_too_large:
            address, byte_count = plane.constants + DONE_EVENT_OFFSET, DONE_EVENT_BYTES
        if not room_for(plane, stream, byte_count + FRAMING_BYTES):
            return False
        append_body(plane, stream, address, byte_count)
        append_last_chunk(plane, stream)
    stream.flags |= m.FLAG_SOURCE_DONE | m.FLAG_TRUE_END
    stream.reason = st.COMPLETE
    stream.phase_deadline_ns = 0
    stream.paused = 0
    relay.is_done = 1
    relay.phase = OVER
    _answered(plane, slot, relay)
    _leave_upstream(plane, slot)
    ready_push(plane, slot)
    if relay.is_draining:
        begin_closing(plane, slot, st.CLIENT_GONE)
    return True


@compiled
def _body_over(plane: Any, slot: int) -> None:
    """The body has ended without `[DONE]`: true after a finish_reason if it ended as HTTP wants it."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.body_ended == BODY_CLEAN and relay.finish:
        if not _true_end(plane, slot, 0, 0):
            stream.paused |= FOR_ROOM
        return
    give_assembly(plane, slot)
    only_malformed = relay.malformed > relay.malformed_before and relay.valid == 0
    is_malformed = only_malformed or relay.body_ended == BODY_MALFORMED
    fail(plane, slot, st.FAILURE_MALFORMED if is_malformed else st.FAILURE_CUT, 0, 0)


# ---- events


@compiled
def _begin_output(plane: Any, slot: int) -> bool:
    """Have the response's head queued: from now on the stream is streaming. False when there is no room."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if not stream.flags & m.FLAG_HEAD_SENT:
        address, byte_count = relay.head_address, relay.head_bytes
        if byte_count == 0:
            address, byte_count = plane.templates, plane.head_bytes
        if not room_for(plane, stream, byte_count):
            return False
        append_raw(plane, stream, address, byte_count)
        stream.flags |= m.FLAG_HEAD_SENT
    st.begin_streaming(stream)
    return True


@inlined
def _says_something(relay: Any, walk: Any) -> bool:
    """Whether an event has anything for this client."""
    if relay.flags & m.AS_CONTENT:
        return bool((walk.content_kind == CONTENT_PLAIN or walk.content_kind == CONTENT_ESCAPED) and walk.content_bytes)
    return not walk.usage or walk.choice_count > 0 or bool(relay.flags & m.PASS_USAGE)


@compiled
def _emit(plane: Any, slot: int, address: int, end: int, data: int) -> int:
    """Pass an event on. 1 when it is queued or has nothing to say, 0 when it must wait, -1 when it is malformed."""
    stream, relay, walk = stream_of(plane, slot), relay_of(plane, slot), walk_of(plane.parsers)
    if relay.is_draining or not _says_something(relay, walk):
        return 1
    by_address = end > plane.block_bytes - INLINE_SHARE_BYTES
    if by_address and (relay.large < 0 or address != assembly_address(plane, relay)):
        stream.paused |= FOR_LARGE
        return 0
    source, byte_count = address, end
    _remember_model(plane, slot, data)
    if relay.flags & m.AS_CONTENT:
        source = plane.joined
        written = rewrite_string(source + CONTENT_START_BYTES, data + walk.content_offset, walk.content_bytes)
        if written < 0:
            return -1
        copy_bytes(source, plane.constants + CONTENT_START_OFFSET, CONTENT_START_BYTES)
        byte_count = CONTENT_START_BYTES + written
        copy_bytes(source + byte_count, plane.constants + CONTENT_END_OFFSET, CONTENT_END_BYTES)
        byte_count += CONTENT_END_BYTES
    # Only now, as an event that cannot be written is no answer yet: somebody else can still be asked.
    needed = RESERVE_BYTES if by_address else end + RESERVE_BYTES
    if not _begin_output(plane, slot) or not room_for(plane, stream, needed):
        stream.paused |= FOR_ROOM
        return 0
    if by_address:
        if source != address:
            copy_bytes(address, source, byte_count)
        queued = append_range(plane, slot, address, byte_count)
        assert queued, "nothing else of a relayed stream is sent by address"
        relay.lent_bytes = end
        stream.paused |= FOR_RANGE
    else:
        append_body(plane, stream, source, byte_count)
        count(plane, MESSAGES_SENT, 1)
    stream.message_count += 1
    ready_push(plane, slot)
    return 1


@inlined
def _remember_model(plane: Any, slot: int, data: int) -> None:
    """Before the event is written again: that happens where several lines of data have been joined."""
    relay, walk = relay_of(plane, slot), walk_of(plane.parsers)
    if relay.model_bytes == 0 and walk.model_offset >= 0:
        relay.model_bytes = min(int(walk.model_bytes), m.MODEL_BYTES_MAX)
        copy_bytes(plane.texts + slot * m.TEXT_BYTES_MAX, data + walk.model_offset, relay.model_bytes)


@inlined
def _remember(plane: Any, slot: int, data: int) -> None:
    """What an event tells besides its text: tokens, the model, the end."""
    stream, relay, walk = stream_of(plane, slot), relay_of(plane, slot), walk_of(plane.parsers)
    relay.valid += 1
    if walk.finish:
        relay.finish = 1
    if walk.usage:
        relay.prompt_tokens = walk.prompt_tokens
        relay.completion_tokens = walk.completion_tokens
    _remember_model(plane, slot, data)
    if not walk.token:
        return
    relay.token_count += 1
    count(plane, TOKENS, 1)
    if relay.first_token_ns == 0:
        relay.first_token_ns = plane.now_ns
        _answered(plane, slot, relay)
    else:
        observe_gap(plane, relay.series, plane.now_ns - relay.last_token_ns)
    relay.last_token_ns = plane.now_ns
    if not stream.flags & m.FLAG_EXPIRED and not relay.is_draining:
        stream.phase_deadline_ns = plane.now_ns + relay.silence_timeout_ns if relay.silence_timeout_ns else 0


@compiled
def _event(plane: Any, slot: int, address: int) -> bool:
    """One event, which the scan has found at `address`. False when it must wait, or the stream is over with it."""
    relay, walk, scan = relay_of(plane, slot), walk_of(plane.parsers), scan_of(plane.parsers + _SCAN_OFFSET)
    end = int(scan.end)
    if scan.data_count == 0:
        return True
    data, byte_count = address + scan.data_offset, int(scan.data_bytes)
    if scan.data_count > 1:
        data = plane.joined
        byte_count = join_data(data, address, end)
    if is_done(data, byte_count):
        return _done(plane, slot, address, end)
    is_object = walk_chunk(walk, data, byte_count)
    if scan.is_error or (is_object and walk.error):
        lend(plane, slot, data, byte_count)
        fail(plane, slot, st.FAILURE_ERROR_EVENT, 0, 0)
        return False
    emitted = _emit(plane, slot, address, end, data) if is_object else -1
    if emitted == 0:
        return False
    if emitted < 0:
        relay.malformed += 1
        count(plane, MALFORMED_EVENTS, 1)
        return True
    _remember(plane, slot, data)
    return True


@inlined
def _done(plane: Any, slot: int, address: int, end: int) -> bool:
    """`[DONE]`. It ends a stream of which anything was understood."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.malformed > relay.malformed_before and relay.valid == 0:
        give_assembly(plane, slot)
        fail(plane, slot, st.FAILURE_MALFORMED, 0, 0)
    elif not _true_end(plane, slot, address, end):
        stream.paused |= FOR_ROOM
    return False


@compiled
def _events(plane: Any, slot: int, address: int, byte_count: int) -> int:
    """Pass on the whole events among these bytes; how many bytes of them are done with."""
    stream, relay, scan = stream_of(plane, slot), relay_of(plane, slot), scan_of(plane.parsers + _SCAN_OFFSET)
    is_last = relay.body_ended != 0
    used = 0
    if not relay.began:
        used = skip_bom(address, byte_count, is_last)
        if used < 0:
            return 0
        relay.began = 1
    while used < byte_count:
        scan.resume = relay.scan_resume
        if not scan_event(scan, address + used, byte_count - used, is_last):
            relay.scan_resume = scan.resume
            break
        relay.scan_resume = 0
        end = int(scan.end)
        if end > EVENT_BYTES_MAX:
            give_assembly(plane, slot)
            fail(plane, slot, st.FAILURE_EVENT_TOO_LARGE, 0, 0)
            break
        if not _event(plane, slot, address + used):
            break
        if stream.paused:  # it is sent from where it lies
            break
        used += end
    return used


# ---- taking what comes


@compiled
def take(plane: Any, slot: int, address: int, byte_count: int) -> None:
    """Bytes of the body have come, in memory that is the caller's. Then `advance`, once the body's end is known."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.phase != EVENTS:
        return
    if relay.assembly_bytes == 0 and relay.lent_bytes == 0 and not stream.paused:
        used = _events(plane, slot, address, byte_count)
        if relay.phase != EVENTS:
            return
        address += used
        byte_count -= used
    keep(plane, slot, address, byte_count)


@compiled
def advance(plane: Any, slot: int) -> None:
    """Pass on what is kept, as far as there is room, and read on or not accordingly."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.lent_bytes > 0 and stream.ranges_count == 0:
        drop_front(plane, slot, relay.lent_bytes)
        relay.lent_bytes = 0
        if relay.phase == FAILED and not relay.is_lent:
            give_assembly(plane, slot)
    if relay.phase != EVENTS:
        return
    stream.paused = FOR_RANGE if relay.lent_bytes > 0 else 0
    if relay.lent_bytes == 0:
        _work_off(plane, slot)
    if relay.phase != EVENTS:
        return
    if not stream.paused and relay.body_ended:
        _body_over(plane, slot)
    elif not stream.paused and stream.channel > 0 and relay.raw_taken - relay.raw_reported >= RELEASE_BYTES:
        relay.raw_reported = relay.raw_taken
        raise_worker(plane, slot, WORKER_RELEASED)
    hold_or_read(plane, slot)


@inlined
def _work_off(plane: Any, slot: int) -> None:
    """The events in the assembly buffer, moving to a large one where an event needs it."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    while relay.assembly_bytes > 0:
        used = _events(plane, slot, assembly_address(plane, relay), relay.assembly_bytes)
        if relay.phase != EVENTS or stream.paused & FOR_RANGE:
            return
        drop_front(plane, slot, used)
        wants_large = stream.paused & FOR_LARGE or (relay.assembly_bytes > SMALL_BYTES_MAX and not stream.paused)
        if relay.large >= 0 and relay.assembly_bytes > EVENT_BYTES_MAX and not stream.paused:
            give_assembly(plane, slot)
            fail(plane, slot, st.FAILURE_EVENT_TOO_LARGE, 0, 0)
            return
        if wants_large and relay.large < 0:
            stream.paused &= ~FOR_LARGE
            if not promote(plane, slot):
                stream.paused |= FOR_LARGE
                relay.wake_ns = plane.now_ns + TICK_NS
                timer_set(plane, slot, relay.wake_ns)
                return
        elif stream.paused & FOR_LARGE and used > 0:
            stream.paused &= ~FOR_LARGE  # the event lies at the front now, where it can be sent from
        else:
            return


@compiled
def hold_or_read(plane: Any, slot: int) -> None:
    """Read on while a whole receive would find room; silence is not the upstream's fault while we do not."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.phase != EVENTS:
        return
    if not stream.paused and not room_for(plane, stream, RECEIVE_BYTES + RESERVE_BYTES):
        stream.paused |= FOR_ROOM
    may_set = not stream.flags & m.FLAG_EXPIRED and not relay.is_draining
    if stream.paused:
        if may_set:
            stream.phase_deadline_ns = 0
        if relay.connection >= 0:
            connection_of(plane, relay.connection).flags |= HELD_READING
    elif relay.is_held:
        if may_set:
            limit_ns = relay.silence_timeout_ns if relay.first_token_ns != 0 else relay.first_token_timeout_ns
            stream.phase_deadline_ns = plane.now_ns + limit_ns if limit_ns > 0 else 0
        if relay.connection >= 0:
            connection_of(plane, relay.connection).flags &= ~HELD_READING
            connection_ready(plane, relay.connection)
    relay.is_held = stream.paused != 0


@compiled
def body_ended(plane: Any, slot: int, is_clean: bool) -> None:
    """The body has come to its end, or was cut. What is kept is passed on first."""
    relay = relay_of(plane, slot)
    relay.body_ended = BODY_CLEAN if is_clean else BODY_CUT
    advance(plane, slot)


# ---- the client


@compiled
def client_left(plane: Any, slot: int) -> None:
    """The client is gone: close the upstream at once, or read on for a while where the usage is wanted."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    wanted = stream.source == m.SOURCE_UPSTREAM and relay.drain_timeout_ns > 0 and relay.phase == EVENTS
    if not wanted or stream.flags & m.FLAG_SOURCE_DONE or stream.state == st.CLOSING:
        begin_closing(plane, slot, st.CLIENT_GONE)
        return
    if relay.is_draining:
        return
    relay.is_draining = 1
    stream.flags |= m.FLAG_HALF_CLOSED
    stream.keep_alive_ns = stream.write_timeout_ns = stream.write_deadline_ns = 0
    stream.phase_deadline_ns = plane.now_ns + relay.drain_timeout_ns
    st.begin_streaming(stream)
    ready_push(plane, slot)
