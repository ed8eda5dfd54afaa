"""How a slot ends. Two traps are avoided here.

While a poll on a socket is pending, closing it succeeds and no FIN leaves: so everything in flight is cancelled first
and its completion awaited. And closing with unread input sends a reset, which destroys what was sent but not yet read:
so input is discarded first; when the request may still be arriving, our side is shut down and input is discarded to its
end, for `linger_timeout_ms` and `linger_bytes_max` at most.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.assembly import give_assembly
from daemon.plane.connections import abandon_connection
from daemon.plane.counters import DESCRIPTORS_CLOSED, DISCARDED_BYTES, HISTOGRAM_STREAM_DURATION
from daemon.plane.entries import EAGAIN, ECANCELED, EINTR, MSG_DONTWAIT, POLLIN, POLLRDHUP
from daemon.plane.events import CONTROL_ENDED, WORKER_STOPPED, free_if_told, raise_control, raise_worker
from daemon.plane.lists import body_buffer_give, handoff_buffer_give, ready_push
from daemon.plane.output import discard_output, has_output
from daemon.plane.relay_table import relay_of
from daemon.plane.submissions import prepare_cancel, prepare_close, prepare_poll, prepare_receive, prepare_shutdown
from daemon.plane.table import DISCARD_BYTES, count, observe, stream_of
from daemon.plane.tag import (
    CANCEL,
    CLOSE_CLIENT,
    CLOSE_PEER,
    POLL_CLIENT,
    POLL_PEER,
    POLL_READABLE,
    POLL_WRITABLE,
    RECEIVE,
    RECEIVE_HANDOFF,
    SEND,
    SHUTDOWN,
    pack,
)
from daemon.plane.timers import timer_remove, timer_set

CANCEL_RETRY_NS = 10_000_000
_CANCELLABLE = (
    (1 << RECEIVE_HANDOFF)
    | (1 << POLL_PEER)
    | (1 << POLL_CLIENT)
    | (1 << SEND)
    | (1 << POLL_WRITABLE)
    | (1 << RECEIVE)
    | (1 << POLL_READABLE)
)
SUBMISSIONS_MAX = 8  # the most that one call of `service_closing` submits


@compiled
def begin_closing(plane: Any, slot: int, reason: int) -> None:
    """No more output; the first reason stays."""
    stream = stream_of(plane, slot)
    if stream.state == st.CLOSING:
        return
    st.change_state(stream, st.CLOSING)
    stream.reason = reason
    stream.phase_deadline_ns = stream.stream_deadline_ns = stream.write_deadline_ns = stream.keep_alive_at_ns = 0
    timer_remove(plane, slot)
    ready_push(plane, slot)
    if stream.source == m.SOURCE_UPSTREAM:
        _leave_upstream(plane, slot, reason)


@inlined
def _leave_upstream(plane: Any, slot: int, reason: int) -> None:
    """Close the upstream's connection, whatever it is doing: nobody needs its answer any more."""
    relay = relay_of(plane, slot)
    if relay.connection >= 0:
        if reason == st.CLIENT_GONE:
            relay.left_ns = plane.now_ns
        abandon_connection(plane, relay.connection)


@inlined
def _cancel_in_flight(plane: Any, slot: int, stream: Any) -> None:
    """Ask once for the end of everything that may wait; retried if the kernel lost the race."""
    pending = stream.in_flight & _CANCELLABLE & ~stream.cancelled
    for kind in range(7):
        if pending & (1 << kind):
            generation = stream.generation
            prepare_cancel(plane, pack(kind, slot, generation), pack(CANCEL + kind, slot, generation))
            stream.in_flight |= 1 << (CANCEL + kind)
            stream.cancelled |= 1 << kind


@compiled
def handle_cancel(plane: Any, slot: int, kind: int) -> None:
    """A cancel has completed. If its target has not, it is on its way, or must be asked for again in a moment."""
    stream = stream_of(plane, slot)
    if stream.in_flight & (1 << kind):
        timer_set(plane, slot, plane.now_ns + CANCEL_RETRY_NS)
    stream.cancelled &= ~(1 << kind)
    if stream.state != st.CLOSING or stream.in_flight >> CANCEL == 0:
        ready_push(plane, slot)


@compiled
def service_closing(plane: Any, slot: int) -> None:
    """The next step towards a free slot; called whenever something of it has completed."""
    stream = stream_of(plane, slot)
    lingering = stream.flags & m.FLAG_SHUT and not stream.flags & m.FLAG_DRAINED
    if lingering and plane.now_ns >= stream.phase_deadline_ns:
        stream.flags |= m.FLAG_DRAINED
        lingering = False
    if stream.in_flight:
        if lingering:  # the timer may have been an earlier one, of a cancel
            timer_set(plane, slot, stream.phase_deadline_ns)
        elif stream.in_flight >> CANCEL == 0 and stream.timer_ns == 0:
            _cancel_in_flight(plane, slot, stream)
        return
    _give_back(plane, slot)
    if stream.client_fd >= 0 and _needs_draining(plane, slot):
        return
    if stream.client_fd >= 0:
        prepare_close(plane, stream.client_fd, pack(CLOSE_CLIENT, slot, stream.generation))
        stream.client_fd = -1
        stream.in_flight |= 1 << CLOSE_CLIENT
        count(plane, DESCRIPTORS_CLOSED, 1)
    if stream.peer_fd >= 0:
        prepare_close(plane, stream.peer_fd, pack(CLOSE_PEER, slot, stream.generation))
        stream.peer_fd = -1
        stream.in_flight |= 1 << CLOSE_PEER
        count(plane, DESCRIPTORS_CLOSED, 1)
    if stream.in_flight == 0:
        _end(plane, slot)


@inlined
def _give_back(plane: Any, slot: int) -> None:
    """Nothing is in flight, so nobody's bytes are needed any more: tell the worker, return the handoff buffer."""
    stream = stream_of(plane, slot)
    if has_output(stream) or stream.block >= 0:
        discard_output(plane, slot)
    if stream.handoff_buffer >= 0:
        handoff_buffer_give(plane, stream.handoff_buffer)
        stream.handoff_buffer = -1
    if not stream.flags & m.FLAG_STOPPED:
        stream.flags |= m.FLAG_STOPPED
        raise_worker(plane, slot, WORKER_STOPPED)


@inlined
def _needs_draining(plane: Any, slot: int) -> bool:
    """Shut down and discard where closing at once would destroy what the client has not read yet."""
    stream = stream_of(plane, slot)
    if stream.flags & m.FLAG_DRAINED:
        return False
    generation = stream.generation
    if stream.flags & m.FLAG_LINGER:
        if not stream.flags & m.FLAG_SHUT:
            stream.flags |= m.FLAG_SHUT
            stream.phase_deadline_ns = plane.now_ns + stream.linger_ns
            prepare_shutdown(plane, stream.client_fd, pack(SHUTDOWN, slot, generation))
            stream.in_flight |= 1 << SHUTDOWN
            return True
        timer_set(plane, slot, stream.phase_deadline_ns)
        if stream.must_poll:
            stream.must_poll = 0
            prepare_poll(plane, stream.client_fd, POLLIN | POLLRDHUP, pack(POLL_READABLE, slot, generation))
            stream.in_flight |= 1 << POLL_READABLE
            return True
        prepare_receive(plane, stream.client_fd, plane.discard, DISCARD_BYTES, 0, pack(RECEIVE, slot, generation))
        stream.in_flight |= 1 << RECEIVE
        return True
    if stream.flags & m.FLAG_INPUT_SEEN or not stream.flags & m.FLAG_POLLED:
        flags = MSG_DONTWAIT
        prepare_receive(plane, stream.client_fd, plane.discard, DISCARD_BYTES, flags, pack(RECEIVE, slot, generation))
        stream.in_flight |= 1 << RECEIVE
        return True
    return False


@compiled
def handle_discarded(plane: Any, slot: int, result: int) -> None:
    """Input nobody wants: more may follow, unless it ended, failed, or is more than we care to take."""
    stream = stream_of(plane, slot)
    lingering = stream.flags & m.FLAG_LINGER
    if result > 0:
        stream.discarded_bytes += result
        count(plane, DISCARDED_BYTES, result)
        if stream.discarded_bytes >= plane.linger_bytes_max or (not lingering and result < DISCARD_BYTES):
            stream.flags |= m.FLAG_DRAINED
    elif result == -EAGAIN and lingering:
        stream.must_poll = 1
    elif result != -EINTR and result != -ECANCELED:
        # Cancelled was what an upload still received when the stream ended: that client has not been drained.
        stream.flags |= m.FLAG_DRAINED
    ready_push(plane, slot)


@compiled
def handle_shutdown(plane: Any, slot: int, result: int) -> None:
    """Our side is shut down; a client that is already gone needs no lingering."""
    stream = stream_of(plane, slot)
    if result < 0 and result != -EINTR:
        stream.flags |= m.FLAG_DRAINED
    ready_push(plane, slot)


@inlined
def _end(plane: Any, slot: int) -> None:
    """Both descriptors are closed: say so, and free the slot when that has been heard."""
    stream = stream_of(plane, slot)
    if stream.flags & (m.FLAG_ENDED | m.FLAG_BODY_LENT):
        return
    if stream.source == m.SOURCE_UPSTREAM:
        relay = relay_of(plane, slot)
        if relay.connection >= 0 or relay.closing_count > 0 or relay.is_lent:
            return  # the kernel may still read the request, or the control plane what a failure lent
        give_assembly(plane, slot)
        relay.ended_ns = plane.now_ns
    timer_remove(plane, slot)
    if stream.body_buffer >= 0:
        body_buffer_give(plane, stream.body_buffer)
        stream.body_buffer = -1
    stream.flags |= m.FLAG_ENDED
    observe(plane, HISTOGRAM_STREAM_DURATION, plane.now_ns - stream.accepted_ns)
    raise_control(plane, slot, CONTROL_ENDED)
    if stream.reason != st.COMPLETE:
        plane.tell_ns = plane.now_ns  # a thread may still work for it
    free_if_told(plane, slot)
