"""What the kernel says of connections to upstreams, and what a relayed stream needs besides its sends.

Handlers record what happened and ask for service.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import connection_state as cs
from daemon.plane import connections as c
from daemon.plane import state as st
from daemon.plane.answer import answer_bytes, grow
from daemon.plane.attempts import connect, set_deadline, try_again
from daemon.plane.body import DONE, decode_body
from daemon.plane.counters import STALE_COMPLETIONS
from daemon.plane.entries import (
    COMPLETION_BUFFER,
    COMPLETION_NONEMPTY,
    EAGAIN,
    EALREADY,
    ECANCELED,
    EINPROGRESS,
    EINTR,
    EISCONN,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    ETIMEDOUT,
)
from daemon.plane.output import discard_output
from daemon.plane.relay import advance
from daemon.plane.relay_failure import (
    CONNECTING,
    ERROR_BODY,
    HEAD,
    fail,
)
from daemon.plane.relay_table import (
    RECEIVE_BYTES,
    connection_of,
    relay_of,
)
from daemon.plane.table import count, stream_of
from daemon.plane.tag import CONNECTION_CANCEL, CONNECTION_SOCKET, SEND, generation_of, kind_of, slot_of

_SOCKET, _CONNECT, _SEND, _RECEIVE = range(4)


@compiled
def complete_connection(plane: Any, tag: int, result: int, flags: int) -> None:
    """Something about a connection has completed; what is stale is dropped, but for its buffer."""
    number, kind = slot_of(tag), kind_of(tag) - CONNECTION_SOCKET
    known = number < plane.connections_touched
    if known:
        connection = connection_of(plane, number)
        known = connection.generation == generation_of(tag) and bool(connection.in_flight & (1 << kind))
    if not known:
        count(plane, STALE_COMPLETIONS, 1)
        if flags & COMPLETION_BUFFER:
            c.give_receive_buffer(plane, plane.receives + (flags >> 16) * RECEIVE_BYTES)
        return
    connection_of(plane, number).in_flight &= ~(1 << kind)
    if kind == _RECEIVE:
        _received(plane, number, result, flags)
    elif kind == _SEND:
        _sent(plane, number, result)
    elif kind == _SOCKET:
        _socket_made(plane, number, result)
    elif kind == _CONNECT:
        _connected(plane, number, result)
    elif kind >= CONNECTION_CANCEL:
        c.cancel_done(plane, number, kind - CONNECTION_CANCEL)
    else:
        c.connection_ready(plane, number)


@inlined
def _socket_made(plane: Any, number: int, result: int) -> None:
    connection = connection_of(plane, number)
    if result >= 0:
        connection.fd = result
        if connection.state == cs.OPENING:
            cs.change_state(connection, cs.CONNECTING)
    elif connection.state == cs.OPENING and result != -EINTR:
        if (result == -EMFILE or result == -ENFILE) and c.evict_idle(plane):
            try_again(plane, connection.slot)  # once what was kept is closed
            return
        ours = result == -EMFILE or result == -ENFILE or result == -ENOMEM or result == -ENOBUFS
        fail(plane, connection.slot, st.FAILURE_NO_RESOURCES if ours else st.FAILURE_CONNECT, 0, -result)
    c.connection_ready(plane, number)


@inlined
def _connected(plane: Any, number: int, result: int) -> None:
    connection = connection_of(plane, number)
    if connection.state != cs.CONNECTING:
        c.connection_ready(plane, number)
        return
    slot = int(connection.slot)
    relay = relay_of(plane, slot)
    if result == 0 or result == -EISCONN:
        cs.change_state(connection, cs.BUSY)
        relay.phase = HEAD
        set_deadline(plane, slot, relay.head_timeout_ns)
        c.connection_ready(plane, number)
    elif result in (-EINTR, -EAGAIN, -EALREADY, -EINPROGRESS, -ENOMEM, -ENOBUFS, -ECANCELED):
        # A Unix socket whose backlog is full says EAGAIN: it has time until the connect timeout.
        try_again(plane, slot)
    else:
        fail(plane, slot, st.FAILURE_CONNECT_TIMEOUT if result == -ETIMEDOUT else st.FAILURE_CONNECT, 0, -result)


@inlined
def _sent(plane: Any, number: int, result: int) -> None:
    """The kernel took some of the request, or not. Why a send failed is what the receive says."""
    connection = connection_of(plane, number)
    if result > 0:
        connection.request_sent += result
    elif result in (-EAGAIN, -ENOMEM, -ENOBUFS):
        connection.flags |= c.MUST_POLL
    elif result != -EINTR:
        connection.flags |= c.SEND_FAILED
    if connection.state == cs.CLOSING or connection.request_sent < connection.request_bytes:
        c.connection_ready(plane, number)


@compiled
def _received(plane: Any, number: int, result: int, flags: int) -> None:
    """Bytes of an upstream, its end, or a reason to ask again."""
    connection = connection_of(plane, number)
    address = 0
    if flags & COMPLETION_BUFFER:
        address = plane.receives + (flags >> 16) * RECEIVE_BYTES
    connection.flags &= ~c.MORE_TO_READ
    if flags & COMPLETION_NONEMPTY or result == RECEIVE_BYTES:
        connection.flags |= c.MORE_TO_READ
    again = result in (-EINTR, -EAGAIN, -ENOBUFS, -ENOMEM, -ECANCELED)
    if result == -ENOBUFS:
        connection.flags |= c.MORE_TO_READ  # something was there, and no buffer for it
    if not again:
        if connection.state == cs.BUSY:
            answer_bytes(plane, number, address, result)
        elif connection.state == cs.DRAINING:
            _drain(plane, number, address, result)
        elif connection.state == cs.IDLE:
            c.abandon_connection(plane, number)  # its end, or bytes nobody has asked for
    if address != 0:
        c.give_receive_buffer(plane, address)
    c.connection_ready(plane, number)


@inlined
def _drain(plane: Any, number: int, address: int, result: int) -> None:
    """What is left of an answer whose stream has all it needs."""
    connection = connection_of(plane, number)
    if result <= 0:
        c.abandon_connection(plane, number)
        return
    connection.received_bytes += result
    decode_body(connection, address, result)
    if connection.body_state == DONE and connection.body_line_bytes == 0:
        c.finish_draining(plane, number)
    elif connection.body_state >= DONE or connection.received_bytes > c.DRAINING_BYTES_MAX:
        c.abandon_connection(plane, number)


@compiled
def wake_reader(plane: Any, slot: int) -> None:
    """A head or an error's body waited for a large buffer, or a connect for its next try."""
    relay = relay_of(plane, slot)
    number = int(relay.connection)
    if number < 0:
        if relay.phase == CONNECTING:
            connect(plane, slot, True)  # the table was full
        return
    if relay.phase == HEAD or relay.phase == ERROR_BODY:
        connection_of(plane, number).flags &= ~c.HELD_READING
        grow(plane, number, slot)
    c.connection_ready(plane, number)


@compiled
def service_relay(plane: Any, slot: int) -> None:
    """What an open relayed stream needs besides its sends."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.is_draining and not stream.in_flight & (1 << SEND):
        discard_output(plane, slot)
    if relay.wake_ns != 0 and plane.now_ns >= relay.wake_ns:
        relay.wake_ns = 0
        wake_reader(plane, slot)
        advance(plane, slot)
    elif stream.paused or relay.lent_bytes > 0:
        advance(plane, slot)
