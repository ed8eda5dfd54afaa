"""From an accepted peer to a HANDOFF event: one recvmsg for data and descriptor, into one of a few shared buffers.

The message is asked for at once, without waiting; only when it has not come yet is the peer polled, so an idle peer
holds a slot and no buffer. A slot that finds no free buffer tries again in the next tick.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.closing import begin_closing
from daemon.plane.counters import ACCEPT_PAUSES, ACCEPTED, ACCEPTED_PARKED, ACCEPTED_REFUSED
from daemon.plane.entries import (
    COMPLETION_MORE,
    EAGAIN,
    ECANCELED,
    ECONNABORTED,
    EINTR,
    EMFILE,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_TRUNC,
    POLLIN,
    POLLRDHUP,
)
from daemon.plane.events import (
    CONTROL_HANDOFF,
    CONTROL_OPENED,
    GLOBAL_ACCEPT_PAUSED,
    GLOBAL_ACCEPT_RESUMED,
    raise_control,
)
from daemon.plane.linked import queue
from daemon.plane.lists import handoff_buffer_give, handoff_buffer_take, ready_push, slot_take
from daemon.plane.memory import clear_bytes
from daemon.plane.submissions import prepare_accept, prepare_poll, prepare_receive, prepare_receive_message, room
from daemon.plane.table import (
    ANCILLARY_BYTES,
    STREAM_BYTES,
    WAITING_MAX,
    adopted_of,
    ancillary_descriptor_of,
    ancillary_of,
    count,
    header_of,
    parked_of,
    stray_of,
    stream_of,
    vector_of,
)
from daemon.plane.tag import ACCEPT, POLL_PEER, RECEIVE, RECEIVE_HANDOFF, SLOT_NONE, pack
from daemon.plane.timers import TICK_NS, timer_set

ACCEPT_RETRY_NS = 100_000_000
SCM_RIGHTS = 1
SOL_SOCKET = 1
_KEPT_BYTES = 4  # of a stream's record when its slot is used again: `generation`, which stands first

_append_parked, _drop_parked = queue("parked_first", "parked_count", parked_of)
append_adopted, _drop_adopted = queue("adopted_first", "adopted_count", adopted_of)
_append_stray, drop_stray = queue("stray_first", "stray_count", stray_of)


@inlined
def add_stray(plane: Any, fd: int) -> None:
    """Close a descriptor that belongs to no slot, when a submission is free."""
    assert plane.stray_count <= plane.stray_mask
    _append_stray(plane).fd = fd


@compiled
def open_slot(plane: Any, slot: int, state: int) -> None:
    """Give a slot taken from the free list its first values. It is on no list, so its links may be cleared too."""
    stream = stream_of(plane, slot)
    assert stream.state == st.FREE
    assert stream.in_flight == 0
    assert not stream.is_ready
    clear_bytes(plane.streams + slot * STREAM_BYTES + _KEPT_BYTES, STREAM_BYTES - _KEPT_BYTES)
    st.change_state(stream, state)
    stream.client_fd = stream.peer_fd = stream.block = stream.handoff_buffer = stream.body_buffer = -1
    stream.accepted_ns = plane.now_ns


@compiled
def take_peer(plane: Any, fd: int) -> bool:
    """Give an accepted peer a slot; False when none is free."""
    slot = slot_take(plane)
    if slot < 0:
        return False
    open_slot(plane, slot, st.ACCEPTING)
    stream = stream_of(plane, slot)
    stream.peer_fd = fd
    stream.phase_deadline_ns = plane.now_ns + plane.handoff_timeout_ns
    ready_push(plane, slot)
    return True


@inlined
def _pause_accepting(plane: Any, error: int) -> None:
    """No descriptors or no memory: accept nobody for a moment, so that those who are here find what they need."""
    plane.accept_retry_ns = plane.now_ns + ACCEPT_RETRY_NS
    if not plane.accept_paused:
        plane.accept_paused = 1
        plane.accept_error = error
        plane.global_events |= GLOBAL_ACCEPT_PAUSED
        count(plane, ACCEPT_PAUSES, 1)


@compiled
def handle_accept(plane: Any, result: int, flags: int) -> None:
    """One completion of the multishot accept: a peer, its end, or an error that pauses accepting."""
    if result >= 0:
        count(plane, ACCEPTED, 1)
        if plane.parked_count > 0 or not take_peer(plane, result):
            if plane.parked_count < WAITING_MAX - 64:
                _append_parked(plane).fd = result
                count(plane, ACCEPTED_PARKED, 1)
            else:
                count(plane, ACCEPTED_REFUSED, 1)
                add_stray(plane, result)
    if not flags & COMPLETION_MORE:
        plane.accept_in_flight = 0
    if result < 0 and result != -EAGAIN and result != -EINTR and result != -ECANCELED and result != -ECONNABORTED:
        _pause_accepting(plane, -result)


@compiled
def take_adopted(plane: Any, fd: int, cookie: int, flags: int) -> int:
    """Give a socket of this process a slot, whose HANDOFF will have these flags. The slot; -1 when none is free."""
    slot = slot_take(plane)
    if slot < 0:
        return -1
    open_slot(plane, slot, st.PARSING)
    stream = stream_of(plane, slot)
    stream.client_fd = fd
    stream.cookie = cookie
    stream.handoff_flags = flags
    raise_control(plane, slot, CONTROL_OPENED if flags & m.OPENED else CONTROL_HANDOFF)
    return int(slot)


@compiled
def unpark(plane: Any) -> None:
    """Give waiting peers and adopted sockets the slots that have become free."""
    while plane.parked_count > 0 and take_peer(plane, parked_of(plane, plane.parked_first).fd):
        _drop_parked(plane)
    while plane.adopted_count > 0:
        entry = adopted_of(plane, plane.adopted_first)
        if take_adopted(plane, entry.fd, entry.cookie, m.ADOPTED) < 0:
            return
        _drop_adopted(plane)


@compiled
def arm_accept(plane: Any) -> None:
    """Keep one multishot accept in flight, unless draining, paused, or peers already wait for slots."""
    if plane.accept_in_flight or plane.draining or plane.listener_fd < 0 or plane.parked_count > 0:
        return
    if plane.accept_retry_ns > plane.now_ns or room(plane) < 1:
        return
    plane.accept_retry_ns = 0
    if plane.accept_paused:
        plane.accept_paused = 0
        plane.global_events |= GLOBAL_ACCEPT_RESUMED
    prepare_accept(plane, plane.listener_fd, pack(ACCEPT, SLOT_NONE, 0))
    plane.accept_in_flight = 1


@compiled
def service_receiving(plane: Any, slot: int) -> None:
    """A slot that waits for its handoff message: ask for it, or watch its deadline."""
    stream = stream_of(plane, slot)
    if plane.now_ns >= stream.phase_deadline_ns:
        begin_closing(plane, slot, st.HANDOFF_TIMEOUT)
        return
    timer_set(plane, slot, stream.phase_deadline_ns)
    if stream.in_flight:
        return
    if stream.must_poll:
        stream.must_poll = 0
        _poll_peer(plane, slot)
        return
    if stream.handoff_bytes > 0:  # a stream socket's message may come in pieces: read on, to the peer's end
        _receive_more(plane, slot)
        return
    buffer = handoff_buffer_take(plane)
    if buffer < 0:
        timer_set(plane, slot, plane.now_ns + TICK_NS)
        return
    stream.handoff_buffer = buffer
    vector = vector_of(plane, buffer)
    vector.address = plane.handoff_data + buffer * plane.handoff_stride
    vector.length = plane.handoff_bytes_max + 1
    header = header_of(plane, buffer)
    header.name = header.name_bytes = 0
    header.vector = plane.vectors + buffer * 16
    header.vector_count = 1
    header.control = plane.ancillary + buffer * ANCILLARY_BYTES
    header.control_bytes = ANCILLARY_BYTES
    header.flags = 0
    ancillary_of(plane, buffer).length = 0
    prepare_receive_message(
        plane, stream.peer_fd, plane.headers + buffer * 56, pack(RECEIVE_HANDOFF, slot, stream.generation)
    )
    stream.in_flight |= 1 << RECEIVE_HANDOFF
    if stream.state == st.ACCEPTING:
        st.change_state(stream, st.RECEIVING_FD)


@inlined
def _receive_more(plane: Any, slot: int) -> None:
    stream = stream_of(plane, slot)
    address = plane.handoff_data + stream.handoff_buffer * plane.handoff_stride + stream.handoff_bytes
    length = plane.handoff_bytes_max + 1 - stream.handoff_bytes
    prepare_receive(plane, stream.peer_fd, address, length, MSG_DONTWAIT, pack(RECEIVE, slot, stream.generation))
    stream.in_flight |= 1 << RECEIVE


@inlined
def _poll_peer(plane: Any, slot: int) -> None:
    """Wait until the peer has something to say."""
    stream = stream_of(plane, slot)
    prepare_poll(plane, stream.peer_fd, POLLIN | POLLRDHUP, pack(POLL_PEER, slot, stream.generation))
    stream.in_flight |= 1 << POLL_PEER


@inlined
def _take_descriptors(plane: Any, slot: int, buffer: int) -> None:
    """The first descriptor is the client; any other is closed and noted."""
    stream = stream_of(plane, slot)
    ancillary = ancillary_of(plane, buffer)
    if header_of(plane, buffer).control_bytes < 20 or ancillary.level != SOL_SOCKET or ancillary.type != SCM_RIGHTS:
        return
    number = (int(ancillary.length) - 16) // 4
    for index in range(min(number, (ANCILLARY_BYTES - 16) // 4)):
        fd = int(ancillary_descriptor_of(plane, buffer, index).fd)
        if index == 0:
            stream.client_fd = fd
        else:
            stream.handoff_flags |= m.EXTRA_DESCRIPTORS
            add_stray(plane, fd)


@compiled
def handle_receive_handoff(plane: Any, slot: int, result: int) -> None:
    """The message came, or not yet, or never will."""
    stream = stream_of(plane, slot)
    buffer = int(stream.handoff_buffer)
    if result >= 0:
        _take_descriptors(plane, slot, buffer)
        flags = int(header_of(plane, buffer).flags)
        if flags & MSG_CTRUNC:
            stream.handoff_flags |= m.CONTROL_TRUNCATED
        if flags & MSG_TRUNC:
            stream.handoff_flags |= m.DATA_TRUNCATED
    if stream.state == st.CLOSING:
        ready_push(plane, slot)
        return
    if result < 0:
        handoff_buffer_give(plane, buffer)
        stream.handoff_buffer = -1
        if result == -EAGAIN:
            stream.must_poll = 1
        elif result != -EINTR:
            begin_closing(plane, slot, st.HANDOFF_ERROR)
        ready_push(plane, slot)
        return
    stream.handoff_bytes = min(result, plane.handoff_bytes_max)
    if result > plane.handoff_bytes_max:
        stream.handoff_flags |= m.DATA_TRUNCATED
    if stream.client_fd < 0:
        if stream.handoff_flags & m.CONTROL_TRUNCATED:
            # The kernel had no descriptor left for the client, who is lost; the next ones shall not be.
            _pause_accepting(plane, EMFILE)
        empty = result == 0 and not stream.handoff_flags & m.CONTROL_TRUNCATED
        begin_closing(plane, slot, st.HANDOFF_EMPTY if empty else st.HANDOFF_NO_DESCRIPTOR)
    elif plane.handoff_stream and result > 0 and not stream.handoff_flags & m.DATA_TRUNCATED:
        ready_push(plane, slot)
    else:
        _hand_up(plane, slot)


@compiled
def handle_receive_more(plane: Any, slot: int, result: int) -> None:
    """Another piece of a stream socket's message; its end is the peer's end, an error, or the limit."""
    stream = stream_of(plane, slot)
    if result > 0 and stream.handoff_bytes + result <= plane.handoff_bytes_max:
        stream.handoff_bytes += result
        ready_push(plane, slot)
    elif result == -EAGAIN:
        stream.must_poll = 1
        ready_push(plane, slot)
    elif result == -EINTR:
        ready_push(plane, slot)
    else:
        if result > 0:
            stream.handoff_flags |= m.DATA_TRUNCATED
        _hand_up(plane, slot)


@inlined
def _hand_up(plane: Any, slot: int) -> None:
    """Everything is there: the control plane looks at it. No deadline: the process' own watchdog guards this state."""
    stream = stream_of(plane, slot)
    st.change_state(stream, st.PARSING)
    stream.phase_deadline_ns = 0
    raise_control(plane, slot, CONTROL_HANDOFF)
