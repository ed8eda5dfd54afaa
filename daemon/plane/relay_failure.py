"""How an attempt at an upstream fails: the connection goes, the control plane is told, and decides.

What the upstream said stays in the assembly buffer, lent to the control plane until RELEASE. Before the client has had
anything the stream goes back into the queue, for another attempt; after that it waits for its STOP.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.assembly import assembly_address, give_assembly, keep
from daemon.plane.closing import begin_closing
from daemon.plane.connections import abandon_connection
from daemon.plane.events import CONTROL_FAILED, raise_control
from daemon.plane.lists import ready_push
from daemon.plane.memory import copy_bytes
from daemon.plane.relay_table import relay_of
from daemon.plane.table import stream_of

# `phase`
NONE = 0
CONNECTING = 1
HEAD = 2  # the request is being sent, or the response's head awaited
ERROR_BODY = 3  # an answer that is no stream: its body is collected for the control plane
EVENTS = 4
OVER = 5  # everything has been handed over
FAILED = 6  # the control plane decides
BY_WORKER = 7  # a worker is connecting, or waits for the head

FAILURE_GRACE_NS = 5_000_000_000


@compiled
def fail(plane: Any, slot: int, kind: int, status: int, error: int) -> None:
    """The attempt is over. What the assembly holds is lent to the control plane, which says what is next."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.phase in (OVER, FAILED):
        return
    if relay.connection >= 0:
        abandon_connection(plane, relay.connection)
    relay.phase = FAILED
    relay.wake_ns = 0
    stream.paused = 0
    ready_push(plane, slot)
    if relay.is_draining:
        begin_closing(plane, slot, st.CLIENT_GONE)
        return
    relay.failure = kind
    relay.status = status
    relay.error = error
    relay.is_lent = 1
    # Said as it is now: its client may have left by the time the event is written.
    relay.failed_streaming = stream.state == st.STREAMING
    raise_control(plane, slot, CONTROL_FAILED)
    if stream.flags & m.FLAG_EXPIRED:
        return  # the control plane has been asked already, and has its grace
    if stream.state == st.STREAMING:
        stream.flags |= m.FLAG_EXPIRED
        stream.expired = st.UPSTREAM_ERROR
        stream.phase_deadline_ns = plane.now_ns + FAILURE_GRACE_NS
        stream.stream_deadline_ns = 0  # as after EXPIRED: the grace is what counts
    else:
        st.change_state(stream, st.LLM_QUEUED)
        stream.phase_deadline_ns = plane.now_ns + relay.queue_timeout_ns if relay.queue_timeout_ns else 0


@compiled
def lend(plane: Any, slot: int, address: int, byte_count: int) -> None:
    """Have the assembly hold just these bytes, which a failure is to tell; they may lie in it already."""
    relay = relay_of(plane, slot)
    if relay.large < 0 and relay.assembly < 0:
        keep(plane, slot, address, byte_count)
        return
    copy_bytes(assembly_address(plane, relay), address, byte_count)
    relay.assembly_bytes = byte_count


@compiled
def release_lent(plane: Any, slot: int) -> None:
    """The control plane has read what a failure lent."""
    relay = relay_of(plane, slot)
    relay.is_lent = 0
    # A range of it may still be on its way to the client.
    if relay.lent_bytes == 0:
        give_assembly(plane, slot)
    ready_push(plane, slot)


@compiled
def relay_expired(plane: Any, slot: int) -> None:
    """A limit of the present phase has passed."""
    relay = relay_of(plane, slot)
    if relay.phase == CONNECTING:
        fail(plane, slot, st.FAILURE_CONNECT_TIMEOUT, 0, 0)
    elif relay.phase == HEAD:
        if relay.kept_head_bytes == 0:
            give_assembly(plane, slot)
        fail(plane, slot, st.FAILURE_HEAD_TIMEOUT, 0, 0)
    elif relay.phase == ERROR_BODY:
        fail(plane, slot, st.FAILURE_STATUS, relay.status, 0)
    else:
        give_assembly(plane, slot)
        silent = relay.first_token_ns != 0
        fail(plane, slot, st.FAILURE_SILENCE_TIMEOUT if silent else st.FAILURE_FIRST_TOKEN_TIMEOUT, 0, 0)


@compiled
def stop_relay(plane: Any, slot: int) -> None:
    """The control plane ends the stream: nothing more is asked of the upstream."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.connection >= 0:
        abandon_connection(plane, relay.connection)
    relay.phase = OVER
    relay.wake_ns = 0
    stream.paused = 0
