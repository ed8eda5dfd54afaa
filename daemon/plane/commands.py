"""Commands down: one read in flight on the pipe; every whole command in the buffer is carried out, the rest kept.

Carrying out a command needs no submission and never waits: it changes the stream and asks for service. A command for a
slot of another generation, or for a stream that is closing, is dropped and counted: it crossed with the stream's end.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.attempts import attempt, end_raw, open_relay, set_endpoint, start_by_worker, take_raw
from daemon.plane.body import CHUNK_SIZE, COUNTED, DONE
from daemon.plane.closing import begin_closing
from daemon.plane.command_records import COMMAND_HEADER, COMMAND_LAYOUTS
from daemon.plane.counters import COMMANDS, COMMANDS_STALE, HISTOGRAM_HANDOFF, HISTOGRAM_QUEUE_WAIT, MESSAGES_SENT
from daemon.plane.events import GLOBAL_PONG, GLOBAL_TABLE_READY
from daemon.plane.handoff import add_stray, append_adopted, take_adopted
from daemon.plane.lists import body_buffer_take, handoff_buffer_give, ready_push
from daemon.plane.memory import copy_bytes
from daemon.plane.output import (
    append_body,
    append_last_chunk,
    append_range,
    append_raw,
    discard_output,
    disown,
    has_output,
    room_for,
)
from daemon.plane.records import record_accessor
from daemon.plane.relay import FOR_CLIENT
from daemon.plane.relay_failure import release_lent, stop_relay
from daemon.plane.submissions import prepare_read, room
from daemon.plane.table import (
    COMMAND_BUFFER_BYTES,
    CONTINUE_BYTES,
    CONTINUE_OFFSET,
    WAITING_MAX,
    count,
    observe,
    stream_of,
)
from daemon.plane.tag import READ_COMMANDS, SEND, SLOT_NONE, pack

MILLISECOND_NS = 1_000_000
_OPEN_FLAGS = m.CHUNKED | m.KEEP_HALF_OPEN
_header_at = record_accessor(COMMAND_HEADER)
_open_at = record_accessor(COMMAND_LAYOUTS[m.OPEN].dtype)
_start_at = record_accessor(COMMAND_LAYOUTS[m.START].dtype)
_push_at = record_accessor(COMMAND_LAYOUTS[m.PUSH].dtype)
_push_range_at = record_accessor(COMMAND_LAYOUTS[m.PUSH_RANGE].dtype)
_finish_at = record_accessor(COMMAND_LAYOUTS[m.FINISH].dtype)
_stop_at = record_accessor(COMMAND_LAYOUTS[m.STOP].dtype)
_adopt_at = record_accessor(COMMAND_LAYOUTS[m.ADOPT].dtype)
_shutdown_at = record_accessor(COMMAND_LAYOUTS[m.SHUTDOWN_PLANE].dtype)
_ping_at = record_accessor(COMMAND_LAYOUTS[m.PING].dtype)
_configure_at = record_accessor(COMMAND_LAYOUTS[m.CONFIGURE].dtype)


@inlined
def _texts_bytes(command: Any) -> int:
    """How much of a payload stands before its head: an OPEN's two texts."""
    return int(command.text_bytes) + int(command.closing_bytes)


@inlined
def _append_payload(plane: Any, stream: Any, flags: int, address: int, head_bytes: int, body_bytes: int) -> bool:
    """A head (unless a keep-alive had to bring one) and what follows it. False when it exceeds the sender's credit."""
    standard = plane.head_bytes if flags & m.STANDARD_HEAD else 0
    if body_bytes < 0 or not room_for(plane, stream, head_bytes + standard + body_bytes):
        return False
    if not stream.flags & m.FLAG_HEAD_BY_CONTROL:
        if standard > 0:
            append_raw(plane, stream, plane.templates, standard)
        if head_bytes > 0:
            append_raw(plane, stream, address, head_bytes)
        if standard + head_bytes > 0:
            stream.flags |= m.FLAG_HEAD_SENT
    else:
        stream.inline_done += standard + head_bytes  # the sender has counted them
    append_body(plane, stream, address + head_bytes, body_bytes)
    return True


@inlined
def _take_texts(plane: Any, slot: int, address: int) -> None:
    """Keep what the script of a paced stream shows."""
    stream, command = stream_of(plane, slot), _open_at(address)
    text_bytes, closing_bytes = int(command.text_bytes), int(command.closing_bytes)
    assert text_bytes <= m.TEXT_BYTES_MAX
    assert closing_bytes <= m.TEXT_BYTES_MAX
    payload = address + m.COMMAND_BYTES
    if text_bytes > 0:
        copy_bytes(plane.texts + slot * m.TEXT_BYTES_MAX, payload, text_bytes)
    if closing_bytes > 0:
        copy_bytes(plane.closings + slot * m.TEXT_BYTES_MAX, payload + text_bytes, closing_bytes)
    stream.text_bytes = text_bytes
    stream.closing_bytes = closing_bytes


@compiled
def _open(plane: Any, slot: int, address: int) -> None:
    """The answer to a HANDOFF: what to stream, a place in the queue, or a refusal. The fields are those of OPEN."""
    stream, command = stream_of(plane, slot), _open_at(address)
    now = plane.now_ns
    observe(plane, HISTOGRAM_HANDOFF, now - stream.accepted_ns)
    if stream.handoff_buffer >= 0:
        handoff_buffer_give(plane, stream.handoff_buffer)
        stream.handoff_buffer = -1
    if stream.peer_fd >= 0:
        add_stray(plane, stream.peer_fd)
        stream.peer_fd = -1
    stream.flags = int(command.flags) & _OPEN_FLAGS
    stream.source = command.source
    stream.write_timeout_ns = int(command.write_timeout_ms) * MILLISECOND_NS
    stream.linger_ns = int(command.linger_timeout_ms) * MILLISECOND_NS
    stream.reason = command.reason
    _take_texts(plane, slot, address)
    if command.source == m.SOURCE_NONE and command.payload_bytes == 0:
        begin_closing(plane, slot, stream.reason)
        return
    if command.flags & m.CONTINUE_100:
        append_raw(plane, stream, plane.constants + CONTINUE_OFFSET, CONTINUE_BYTES)
    before, head_bytes = _texts_bytes(command), int(command.head_bytes)
    body_bytes = int(command.payload_bytes) - before - head_bytes - int(command.prefix_bytes)
    head = address + m.COMMAND_BYTES + before
    fits = _append_payload(plane, stream, int(command.flags), head, head_bytes, body_bytes)
    assert fits, "an OPEN fits in an empty block"
    disown(stream, 0)
    if command.source == m.SOURCE_NONE:
        st.change_state(stream, st.STREAMING)
        stream.flags |= m.FLAG_SOURCE_DONE | m.FLAG_LINGER
        stream.reason = command.reason or st.REFUSED
    else:
        _open_source(plane, slot, address)
    ready_push(plane, slot)


@inlined
def _open_source(plane: Any, slot: int, address: int) -> None:
    """Deadlines and source of a stream that is admitted."""
    stream, command = stream_of(plane, slot), _open_at(address)
    now = plane.now_ns
    stream.keep_alive_ns = int(command.keep_alive_ms) * MILLISECOND_NS
    stream.keep_alive_at_ns = now
    stream.silence_ns = int(command.silence_timeout_ms) * MILLISECOND_NS
    stream.first_byte_timeout_ns = int(command.first_byte_timeout_ms) * MILLISECOND_NS
    if command.stream_timeout_ms > 0:
        stream.stream_deadline_ns = now + int(command.stream_timeout_ms) * MILLISECOND_NS
    if command.source == m.SOURCE_PACED:
        st.change_state(stream, st.STREAMING)
        stream.script = command.script
        stream.message_total = command.message_count
        stream.interval_ps = command.interval_ps
        stream.hold_ns = now + int(command.latency_ms) * MILLISECOND_NS
        stream.pace_start_ns = stream.hold_ns
        if int(command.payload_bytes) > _texts_bytes(command) + int(command.head_bytes):
            # The opening is the first message, so the script's own begin one interval after it.
            stream.message_count = 1
            count(plane, MESSAGES_SENT, 1)
            stream.pace_start_ns += (int(command.interval_ps) + 999) // 1000
        return
    st.change_state(stream, st.LLM_QUEUED)
    stream.interval_ps = 1
    stream.queued_ns = now
    if command.queue_timeout_ms > 0:
        stream.phase_deadline_ns = now + int(command.queue_timeout_ms) * MILLISECOND_NS
    if command.source == m.SOURCE_UPSTREAM:
        open_relay(plane, slot, command.queue_timeout_ms)
    if command.flags & (m.BODY_LENGTH | m.BODY_CHUNKED):
        _open_body(plane, slot, address)


@inlined
def _open_body(plane: Any, slot: int, address: int) -> None:
    """A body follows on the socket; what was already read of it is put into the stream's body buffer."""
    stream, command = stream_of(plane, slot), _open_at(address)
    stream.body_buffer = body_buffer_take(plane)
    assert stream.body_buffer >= 0, "admission counts bodies"
    stream.body_state = COUNTED if command.flags & m.BODY_LENGTH else CHUNK_SIZE
    stream.body_remaining = command.content_length if command.flags & m.BODY_LENGTH else 0
    prefix_bytes = int(command.prefix_bytes)
    if prefix_bytes > 0:
        source = address + m.COMMAND_BYTES + int(command.payload_bytes) - prefix_bytes
        copy_bytes(plane.bodies + stream.body_buffer * plane.body_buffer_bytes, source, prefix_bytes)
    stream.body_raw_bytes = prefix_bytes


@inlined
def _start(plane: Any, slot: int, address: int) -> None:
    """A worker has the stream now."""
    stream, command = stream_of(plane, slot), _start_at(address)
    if stream.source == m.SOURCE_UPSTREAM:
        start_by_worker(plane, slot, command.channel, command.attempt)
        return
    if stream.state != st.LLM_QUEUED:
        count(plane, COMMANDS_STALE, 1)
        return
    st.change_state(stream, st.LLM_PENDING)
    stream.channel = command.channel
    observe(plane, HISTOGRAM_QUEUE_WAIT, plane.now_ns - stream.queued_ns)
    if not stream.flags & m.FLAG_EXPIRED:
        stream.phase_deadline_ns = plane.now_ns + stream.first_byte_timeout_ns if stream.first_byte_timeout_ns else 0
    ready_push(plane, slot)


@inlined
def _source_spoke(plane: Any, stream: Any, flags: int) -> None:
    """The source has handed something over: the first makes it streaming, each restarts the silence.

    Until the client has taken it the source may be waiting for room, and is not called silent.
    """
    st.begin_streaming(stream)
    stream.flags &= ~m.FLAG_PARTIAL
    if flags & m.PARTIAL:
        stream.flags |= m.FLAG_PARTIAL
    if has_output(stream):
        stream.paused = FOR_CLIENT
    if not stream.flags & m.FLAG_EXPIRED:
        stream.phase_deadline_ns = plane.now_ns + stream.silence_ns if stream.silence_ns else 0


@inlined
def _push(plane: Any, slot: int, address: int) -> None:
    """Bytes of the source, inside the message."""
    stream, command = stream_of(plane, slot), _push_at(address)
    flags, head_bytes, payload_bytes = int(command.flags), int(command.head_bytes), int(command.payload_bytes)
    payload = address + m.COMMAND_BYTES
    if stream.flags & m.FLAG_SOURCE_DONE:
        count(plane, COMMANDS_STALE, 1)
        return
    if flags & m.RAW and stream.source == m.SOURCE_UPSTREAM:
        take_raw(plane, slot, command.attempt, payload, payload_bytes)
        return
    if flags & m.KEEP_ALIVE and stream.flags & m.FLAG_HEAD_SENT:
        return  # the worker spoke in the meantime
    tail_before = int(stream.inline_tail)
    if not _append_payload(plane, stream, flags, payload, head_bytes, payload_bytes - head_bytes):
        begin_closing(plane, slot, st.PROTOCOL)
        return
    if flags & m.KEEP_ALIVE:
        stream.flags |= m.FLAG_HEAD_BY_CONTROL
        disown(stream, tail_before)
        ready_push(plane, slot)
    else:
        _pushed(plane, slot, flags)


@inlined
def _push_range(plane: Any, slot: int, address: int) -> None:
    """Bytes of the source, by address."""
    stream, command = stream_of(plane, slot), _push_range_at(address)
    if stream.flags & m.FLAG_SOURCE_DONE:
        count(plane, COMMANDS_STALE, 1)
    elif append_range(plane, slot, command.range_address, command.range_bytes):
        _pushed(plane, slot, int(command.flags))
    else:
        begin_closing(plane, slot, st.PROTOCOL)


@inlined
def _pushed(plane: Any, slot: int, flags: int) -> None:
    """A push of the worker's has been taken."""
    stream = stream_of(plane, slot)
    _source_spoke(plane, stream, flags)
    stream.message_count += 1
    count(plane, MESSAGES_SENT, 1)
    ready_push(plane, slot)


@inlined
def _finish(plane: Any, slot: int, address: int) -> None:
    """The source's own end, true (COMPLETE) or not."""
    stream, command = stream_of(plane, slot), _finish_at(address)
    flags, head_bytes = int(command.flags), int(command.head_bytes)
    if stream.flags & m.FLAG_SOURCE_DONE:
        count(plane, COMMANDS_STALE, 1)
        return
    if flags & m.RAW and stream.source == m.SOURCE_UPSTREAM:
        end_raw(plane, slot, command.attempt, flags & m.COMPLETE != 0)
        return
    body_bytes = int(command.payload_bytes) - head_bytes
    if not _append_payload(plane, stream, flags, address + m.COMMAND_BYTES, head_bytes, body_bytes):
        begin_closing(plane, slot, st.PROTOCOL)
        return
    if stream.source == m.SOURCE_UPSTREAM:
        stop_relay(plane, slot)
    st.begin_streaming(stream)
    stream.reason = command.reason
    stream.flags |= m.FLAG_SOURCE_DONE
    if flags & m.COMPLETE:
        append_last_chunk(plane, stream)  # fits in what FRAMING_BYTES leaves of the payload's room
        stream.flags |= m.FLAG_TRUE_END
    if stream.body_state > 0 and stream.body_state != DONE:
        stream.flags |= m.FLAG_LINGER  # the upload may still be arriving
    ready_push(plane, slot)


@inlined
def _stop(plane: Any, slot: int, address: int) -> None:
    """End now, with whichever of the two endings is still possible."""
    stream, command = stream_of(plane, slot), _stop_at(address)
    if stream.flags & m.FLAG_SOURCE_DONE:
        count(plane, COMMANDS_STALE, 1)
        return
    if stream.source == m.SOURCE_UPSTREAM:
        stop_relay(plane, slot)
    head_bytes, head = int(command.head_bytes), address + m.COMMAND_BYTES
    rest_bytes = int(command.payload_bytes) - head_bytes
    if not stream.flags & m.FLAG_HEAD_SENT:
        if stream.sent_bytes == 0 and not stream.in_flight & (1 << SEND):
            discard_output(plane, slot)
        if head_bytes > 0 and room_for(plane, stream, head_bytes):
            append_raw(plane, stream, head, head_bytes)
        stream.flags |= m.FLAG_HEAD_SENT | m.FLAG_LINGER
    elif room_for(plane, stream, rest_bytes) and not stream.flags & m.FLAG_PARTIAL:
        append_body(plane, stream, head + head_bytes, rest_bytes)
    st.begin_streaming(stream)
    stream.reason = command.reason
    stream.flags |= m.FLAG_SOURCE_DONE
    stream.phase_deadline_ns = stream.hold_ns = 0
    stream.stream_deadline_ns = plane.now_ns + stream.write_timeout_ns if stream.write_timeout_ns else 0
    ready_push(plane, slot)


@inlined
def _body_return(plane: Any, slot: int) -> None:
    stream = stream_of(plane, slot)
    stream.flags &= ~m.FLAG_BODY_LENT
    ready_push(plane, slot)


@inlined
def _adopt(plane: Any, address: int) -> None:
    """A socket of this process waits for a slot like any accepted peer; with a source it is opened if one is free."""
    command = _adopt_at(address)
    if _open_at(address).source == m.SOURCE_PACED and plane.parked_count + plane.adopted_count == 0:
        slot = take_adopted(plane, command.client_fd, command.cookie, m.ADOPTED | m.OPENED)
        if slot >= 0:
            _open(plane, slot, address)
            return
    assert plane.adopted_count < WAITING_MAX
    entry = append_adopted(plane)
    entry.fd = command.client_fd
    entry.cookie = command.cookie


@inlined
def _handle_plane_command(plane: Any, kind: int, address: int) -> bool:
    """Commands that concern no slot. False when this is another."""
    if kind == m.ADOPT:
        _adopt(plane, address)
    elif kind == m.DRAIN:
        plane.draining = max(plane.draining, 1)
    elif kind == m.SHUTDOWN_PLANE:
        plane.draining = max(plane.draining, 1)
        plane.stop = 2 if _shutdown_at(address).flags & m.FORCE else 1
    elif kind == m.PING:
        plane.pong_cookie = _ping_at(address).cookie
        plane.global_events |= GLOBAL_PONG
    elif kind == m.TABLE:
        copy_bytes(plane.snapshot, plane.streams, plane.slots_touched * (plane.streams_bytes // plane.slot_count))
        plane.global_events |= GLOBAL_TABLE_READY
    elif kind == m.ENDPOINT:
        set_endpoint(plane, address)
    elif kind == m.CONFIGURE:
        plane.handoff_timeout_ns = int(_configure_at(address).handoff_timeout_ms) * MILLISECOND_NS
    else:
        return False
    return True


@inlined
def _is_stale(plane: Any, kind: int, slot: int, generation: int) -> bool:
    """Whether a command crossed with the end of its stream, or is not for the state that the stream is in."""
    if slot >= plane.slots_touched:
        return True
    stream = stream_of(plane, slot)
    if stream.generation != generation or stream.state == st.FREE:
        return True
    if kind in (m.BODY_RETURN, m.RELEASE):
        return False
    return bool(stream.state == st.CLOSING or (stream.state == st.PARSING) != (kind == m.OPEN))


@compiled
def _carry_out(plane: Any, address: int) -> None:
    """One command."""
    header = _header_at(address)
    kind, slot = int(header.kind), int(header.slot)
    count(plane, COMMANDS, 1)
    if _handle_plane_command(plane, kind, address):
        return
    if _is_stale(plane, kind, slot, int(header.generation)):
        count(plane, COMMANDS_STALE, 1)
        return
    if kind == m.OPEN:
        _open(plane, slot, address)
    elif kind == m.ATTEMPT:
        attempt(plane, slot, address)
    elif kind == m.START:
        _start(plane, slot, address)
    elif kind == m.PUSH:
        _push(plane, slot, address)
    elif kind == m.PUSH_RANGE:
        _push_range(plane, slot, address)
    elif kind == m.FINISH:
        _finish(plane, slot, address)
    elif kind == m.STOP:
        _stop(plane, slot, address)
    elif kind == m.BODY_RETURN:
        _body_return(plane, slot)
    elif kind == m.RELEASE:
        release_lent(plane, slot)
    else:
        assert kind == 0, "a command of no known kind"


@compiled
def handle_read_commands(plane: Any, result: int) -> None:
    """Carry out every whole command that has come; move what is left of the last one to the front."""
    plane.command_in_flight = 0
    if result <= 0:
        if result == 0:
            plane.stop = 2  # the control plane is gone, and with it everything that could be said
        return
    end = int(plane.command_bytes) + result
    offset = 0
    while offset + m.COMMAND_BYTES <= end:
        address = int(plane.commands + offset)
        total_bytes = int(_header_at(address).total_bytes)
        assert m.COMMAND_BYTES <= total_bytes <= m.MESSAGE_BYTES_MAX
        if offset + total_bytes > end:
            break
        _carry_out(plane, address)
        offset += total_bytes
    if 0 < offset < end:
        copy_bytes(plane.commands, plane.commands + offset, end - offset)
    plane.command_bytes = end - offset


@compiled
def arm_commands(plane: Any) -> None:
    """Keep one read in flight on the command pipe."""
    if plane.command_in_flight or plane.command_fd < 0 or room(plane) < 1:
        return
    address = plane.commands + plane.command_bytes
    tag = pack(READ_COMMANDS, SLOT_NONE, 0)
    prepare_read(plane, plane.command_fd, address, COMMAND_BUFFER_BYTES - plane.command_bytes, tag)
    plane.command_in_flight = 1
