"""One turn of the data plane: completions and a time in, submissions out. Pure: no clock, no system call.

docs/architecture.md says what its phases are for; a test compares their numbers and names.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import state as st
from daemon.plane import tag as t
from daemon.plane.body import handle_body_received
from daemon.plane.closing import handle_cancel, handle_discarded, handle_shutdown, service_closing
from daemon.plane.commands import arm_commands, handle_read_commands
from daemon.plane.connections import (
    check_idle,
    connection_pop,
    forget_all,
    publish_receive_buffers,
    retry_cancels,
    service_connection,
)
from daemon.plane.counters import COMPLETIONS, DESCRIPTORS_CLOSED, SLOTS_USED, STALE_COMPLETIONS, SUBMISSIONS, TURNS
from daemon.plane.events import (
    GLOBAL_LISTENER_IDLE,
    flush_events,
    handle_write_events,
    poll_blocked_channels,
)
from daemon.plane.handoff import (
    arm_accept,
    drop_stray,
    handle_accept,
    handle_receive_handoff,
    handle_receive_more,
    service_receiving,
    unpark,
)
from daemon.plane.lists import ready_pop, ready_push
from daemon.plane.stream import handle_poll_client, handle_send, service_stream
from daemon.plane.submissions import prepare_cancel, prepare_close, room
from daemon.plane.table import channel_of, completion_of, count, counter_of, stray_of, stream_of
from daemon.plane.timers import timers_advance, timers_next_ns
from daemon.plane.upstream import complete_connection

SUBMISSIONS_PER_SERVICE = 16  # more than any one service submits
STOPPED = 1  # what `turn` returns when the loop is to end


@compiled
def turn(plane: Any) -> int:
    """React to `completion_count` completions at `now_ns`; STOPPED when the plane has shut down, otherwise 0."""
    count(plane, TURNS, 1)
    pending_before = plane.submission_pending
    # 1. Completions
    _complete_all(plane)
    # 2. Timers
    timers_advance(plane)
    check_idle(plane)
    retry_cancels(plane)
    # 3. Waiting peers and strays (before the ready slots, which can use up all submissions, turn after turn)
    unpark(plane)
    is_starved = _close_strays(plane)
    # 4. Ready slots and connections
    _service_ready(plane)
    _service_connections(plane)
    publish_receive_buffers(plane)
    # 5. Accepting (before the events: its own leave in this turn, as nothing else may cause another)
    _accepting(plane)
    # 6. Events
    is_starved = flush_events(plane) or is_starved
    is_starved = poll_blocked_channels(plane) or is_starved
    # 7. Standing operations
    arm_commands(plane)
    count(plane, SUBMISSIONS, plane.submission_pending - pending_before)
    # 8. Sleep
    must_go_on = plane.ready_head >= 0 or plane.connection_ready_head >= 0 or is_starved or not plane.command_in_flight
    plane.wait_until_ns = 0 if must_go_on else _next_due_ns(plane)
    return STOPPED if _has_stopped(plane) else 0


@inlined
def _next_due_ns(plane: Any) -> int:
    """The earliest time at which there is something to do unasked: a slot's timer, or one of the plane's own."""
    due_ns = timers_next_ns(plane)
    for time_ns in (plane.tell_ns, plane.accept_retry_ns, plane.idle_check_ns, plane.cancel_retry_ns):
        if time_ns > plane.now_ns:
            due_ns = min(due_ns, time_ns)
    return int(due_ns)


@inlined
def _complete_all(plane: Any) -> None:
    for index in range(plane.completion_count):
        completion = completion_of(plane, plane.completion_base + index)
        _complete(plane, int(completion.tag), int(completion.result), int(completion.flags))
    count(plane, COMPLETIONS, plane.completion_count)
    plane.completion_base += plane.completion_count
    plane.completion_count = 0


@inlined
def _service_ready(plane: Any) -> None:
    """Service each ready slot once. Those that find no room for submissions wait for the next turn."""
    while plane.ready_head >= 0 and room(plane) >= SUBMISSIONS_PER_SERVICE:
        slot = ready_pop(plane)
        state = stream_of(plane, slot).state
        if st.LLM_QUEUED <= state <= st.STREAMING:
            service_stream(plane, slot)
        elif state == st.CLOSING:
            service_closing(plane, slot)
        elif state in (st.ACCEPTING, st.RECEIVING_FD):
            service_receiving(plane, slot)


@inlined
def _service_connections(plane: Any) -> None:
    """The same for connections to upstreams, which the slots may just have changed."""
    while plane.connection_ready_head >= 0 and room(plane) >= SUBMISSIONS_PER_SERVICE:
        service_connection(plane, connection_pop(plane))


@inlined
def _complete(plane: Any, tag: int, result: int, flags: int) -> None:
    """Give a completion to whom it belongs; a stale one is counted and dropped."""
    kind = t.kind_of(tag)
    slot = t.slot_of(tag)
    if kind >= t.CONNECTION_SOCKET:
        complete_connection(plane, tag, result, flags)
        return
    if kind >= t.ACCEPT:
        _complete_global(plane, kind, slot, result, flags)
        return
    if slot >= plane.slots_touched or stream_of(plane, slot).generation != t.generation_of(tag):
        count(plane, STALE_COMPLETIONS, 1)
        return
    stream = stream_of(plane, slot)
    if not stream.in_flight & (1 << kind):
        count(plane, STALE_COMPLETIONS, 1)
        return
    if kind == t.SEND:
        handle_send(plane, slot, result, flags)
        return
    stream.in_flight &= ~(1 << kind)
    if kind == t.POLL_CLIENT:
        handle_poll_client(plane, slot, result)
    elif kind == t.RECEIVE_HANDOFF:
        handle_receive_handoff(plane, slot, result)
    elif kind == t.RECEIVE:
        _complete_receive(plane, slot, result)
    elif kind == t.SHUTDOWN:
        handle_shutdown(plane, slot, result)
    elif kind >= t.CANCEL:
        handle_cancel(plane, slot, kind - t.CANCEL)
    else:
        ready_push(plane, slot)


@inlined
def _complete_receive(plane: Any, slot: int, result: int) -> None:
    """Bytes from a socket: of the handoff's peer, of an upload, or input nobody wants."""
    stream = stream_of(plane, slot)
    if stream.state == st.CLOSING:
        handle_discarded(plane, slot, result)
    elif stream.peer_fd >= 0:
        handle_receive_more(plane, slot, result)
    else:
        handle_body_received(plane, slot, result)


@compiled
def _complete_global(plane: Any, kind: int, number: int, result: int, flags: int) -> None:
    """Completions of the listener, the command pipe, the event pipes and strays."""
    if kind == t.ACCEPT:
        handle_accept(plane, result, flags)
    elif kind == t.CANCEL_ACCEPT:
        plane.accept_cancelling = 0
    elif kind == t.READ_COMMANDS:
        handle_read_commands(plane, result)
    elif kind == t.WRITE_EVENTS:
        handle_write_events(plane, number, result)
    elif kind == t.POLL_EVENTS:
        channel_of(plane, number).blocked = 0
    else:
        assert kind == t.CLOSE_STRAY
        plane.stray_in_flight -= 1


@inlined
def _close_strays(plane: Any) -> bool:
    """Close descriptors that belong to no slot, leaving room for standing operations. True when some must wait."""
    while plane.stray_count > 0:
        if room(plane) <= SUBMISSIONS_PER_SERVICE:
            return True
        prepare_close(plane, stray_of(plane, plane.stray_first).fd, t.pack(t.CLOSE_STRAY, t.SLOT_NONE, 0))
        drop_stray(plane)
        plane.stray_in_flight += 1
        count(plane, DESCRIPTORS_CLOSED, 1)
    return False


@inlined
def _accepting(plane: Any) -> None:
    """Accept, or, when draining or short of slots, stop accepting; then say that the listener is idle."""
    arm_accept(plane)
    unwanted = plane.draining or plane.parked_count > 0 or plane.accept_retry_ns > plane.now_ns
    if unwanted and plane.accept_in_flight and not plane.accept_cancelling and room(plane) > 0:
        accept_tag = t.pack(t.ACCEPT, t.SLOT_NONE, 0)
        prepare_cancel(plane, accept_tag, t.pack(t.CANCEL_ACCEPT, t.SLOT_NONE, 0))
        plane.accept_cancelling = 1
    if plane.draining == 1 and not plane.accept_in_flight and not plane.accept_cancelling:
        plane.draining = 2
        plane.listener_fd = -1
        plane.global_events |= GLOBAL_LISTENER_IDLE


@inlined
def _has_stopped(plane: Any) -> bool:
    """Asked to stop, and nothing is left to wait for (or we are not to wait)."""
    if plane.stop == 0:
        return False
    if plane.stop == 2:
        return True
    if counter_of(plane, SLOTS_USED).value == 0 and plane.connections_open > 0:
        forget_all(plane)
        if plane.connection_ready_head >= 0:
            plane.wait_until_ns = 0  # they are closed in the next turn, which nothing else would cause
        return False
    idle = counter_of(plane, SLOTS_USED).value == 0 and plane.stray_in_flight == 0 and plane.stray_count == 0
    return bool(idle and not plane.accept_in_flight and plane.global_events == 0)
