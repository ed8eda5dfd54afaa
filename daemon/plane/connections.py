"""Connections to upstreams: opened for a stream, kept for the next one, closed with nothing in flight.

A connection belongs to the slot it serves, which stays until it is closed or kept: the request lies in memory of the
control plane's, and is not let go of while a send may still read it. Idle connections have a receive in flight, so that
an upstream's FIN is noticed at once. `service_connection` looks at the whole state and submits whatever is next.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import connection_state as cs
from daemon.plane import state as st
from daemon.plane.counters import CONNECTIONS_IDLE, CONNECTIONS_OPENED, CONNECTIONS_REUSED, DESCRIPTORS_CLOSED
from daemon.plane.entries import BUFFER_SELECT, POLL_FIRST, POLLOUT, SOCK_CLOEXEC, SOCK_STREAM
from daemon.plane.linked import chain, fifo, generations
from daemon.plane.lists import ready_push
from daemon.plane.memory import full_fence
from daemon.plane.relay_table import (
    ENDPOINT_ADDRESS_OFFSET,
    ENDPOINT_BYTES,
    ENDPOINT_COUNT_MAX,
    RECEIVE_BYTES,
    connection_of,
    endpoint_of,
    provided_of,
    relay_of,
)
from daemon.plane.submissions import (
    prepare_cancel,
    prepare_close,
    prepare_connect,
    prepare_poll,
    prepare_receive,
    prepare_send,
    prepare_socket,
)
from daemon.plane.table import FOREVER_NS, count, stream_of
from daemon.plane.tag import (
    CONNECTION_CANCEL,
    CONNECTION_CLOSE,
    CONNECTION_CONNECT,
    CONNECTION_RECEIVE,
    CONNECTION_SEND,
    CONNECTION_SOCKET,
    CONNECTION_WRITABLE,
    pack,
)

# `flags`
REUSED = 1  # it has served another request before
KEEPABLE = 2  # the answer's head says that the connection stays
UNTIL_CLOSE = 4  # the answer's body ends with the connection
MUST_POLL = 8  # the next send is to wait for room
SEND_FAILED = 16  # the receive says why
MORE_TO_READ = 32  # the last receive left bytes behind
CANCEL_LOST = 128  # a cancel came to nothing, and is to be repeated
HELD_READING = 64  # the client is slow: nothing is received for the moment

# In `in_flight`, by kind.
SOCKET_BIT, CONNECT_BIT, SEND_BIT, RECEIVE_BIT, WRITABLE_BIT, CLOSE_BIT = 1, 2, 4, 8, 16, 32
_CANCELLABLE = CONNECT_BIT | SEND_BIT | RECEIVE_BIT | WRITABLE_BIT
_KINDS = 5  # of those that can be cancelled, from CONNECTION_SOCKET on
CANCEL_RETRY_NS = 10_000_000
DRAINING_NS_MAX = 2_000_000_000
DRAINING_BYTES_MAX = 64 * 1024


_push_ready, _pop_ready = fifo("connection_ready_head", "connection_ready_tail", "ready_next", connection_of)
_take, _give = generations("connection_free", "connections_touched", "connection_count", "next", connection_of)
_add_idle, _remove_idle = chain("idle_first", "idle_last", "next", "previous", connection_of)
_add_draining, _remove_draining = chain("draining_first", "draining_last", "next", "previous", connection_of)


@inlined
def connection_ready(plane: Any, number: int) -> None:
    """Have the connection serviced this turn, or in the next one if submissions run out."""
    connection = connection_of(plane, number)
    if not connection.is_ready:
        connection.is_ready = 1
        _push_ready(plane, plane, number)


@inlined
def connection_pop(plane: Any) -> int:
    """The connection that has waited longest for service, or -1."""
    number = _pop_ready(plane, plane)
    if number >= 0:
        connection_of(plane, number).is_ready = 0
    return number


# ---- taking and giving


@compiled
def open_connection(plane: Any, slot: int, endpoint: int) -> int:
    """A fresh connection for a slot, or -1 when the table is full."""
    number = _take(plane)
    if number < 0:
        return -1
    connection = connection_of(plane, number)
    assert connection.in_flight == 0
    cs.change_state(connection, cs.OPENING)
    connection.fd = connection.next = connection.previous = -1
    connection.endpoint = endpoint
    connection.flags = connection.cancelled = connection.is_ready = 0
    connection.received_bytes = connection.since_ns = 0
    plane.connections_open += 1
    count(plane, CONNECTIONS_OPENED, 1)
    _attach(plane, number, slot)
    return number


@inlined
def _attach(plane: Any, number: int, slot: int) -> None:
    """Give the connection a stream's request to send."""
    connection, relay = connection_of(plane, number), relay_of(plane, slot)
    connection.slot = slot
    connection.request_address = relay.request_address
    connection.request_bytes = relay.request_bytes
    connection.request_sent = 0
    connection.received_bytes = 0
    connection.body_state = connection.body_line_bytes = 0
    connection.body_remaining = 0
    relay.connection = number
    connection_ready(plane, number)


@compiled
def reuse_connection(plane: Any, slot: int, endpoint: int) -> int:
    """The idle connection that was used last, with this slot's request; -1 when there is none."""
    number = int(endpoint_of(plane, endpoint).idle_first)
    if number < 0:
        return -1
    _leave_idle(plane, number)
    connection = connection_of(plane, number)
    cs.change_state(connection, cs.BUSY)
    connection.flags = REUSED
    count(plane, CONNECTIONS_REUSED, 1)
    _attach(plane, number, slot)
    return number


@compiled
def release_connection(plane: Any, number: int, is_body_over: bool) -> None:
    """Its stream has all it needs: keep the connection if the answer is over, read on to its end, or close."""
    connection = connection_of(plane, number)
    assert connection.state == cs.BUSY
    whole = connection.request_sent == connection.request_bytes and not connection.in_flight & SEND_BIT
    # Something behind the answer would be taken for the next one.
    if not whole or not connection.flags & KEEPABLE or connection.flags & (UNTIL_CLOSE | SEND_FAILED | MORE_TO_READ):
        abandon_connection(plane, number)
        return
    _detach(plane, number)
    connection.received_bytes = 0
    connection.flags &= ~HELD_READING
    if is_body_over:
        enter_idle(plane, number)
        return
    cs.change_state(connection, cs.DRAINING)
    connection.since_ns = plane.now_ns
    _add_draining(plane, plane, number)
    plane.idle_check_ns = min(plane.idle_check_ns, plane.now_ns + DRAINING_NS_MAX)
    connection_ready(plane, number)


@inlined
def _detach(plane: Any, number: int) -> None:
    """The connection serves its slot no more."""
    connection = connection_of(plane, number)
    slot = int(connection.slot)
    connection.slot = -1
    if slot < 0:
        return
    relay = relay_of(plane, slot)
    if relay.connection == number:
        relay.connection = -1
    else:
        relay.closing_count -= 1
        assert relay.closing_count >= 0
    # Only a slot that is closing waits for this.
    if stream_of(plane, slot).state == st.CLOSING:
        ready_push(plane, slot)


@compiled
def abandon_connection(plane: Any, number: int) -> None:
    """Close it as soon as nothing is in flight. Its slot may have another one meanwhile, but does not end before."""
    connection = connection_of(plane, number)
    if connection.state == cs.CLOSING:
        return
    if connection.state == cs.IDLE:
        _leave_idle(plane, number)
    elif connection.state == cs.DRAINING:
        _remove_draining(plane, plane, number)
    elif connection.slot >= 0:
        relay = relay_of(plane, connection.slot)
        assert relay.connection == number
        relay.connection = -1
        relay.closing_count += 1
    _begin_closing(plane, number)


@inlined
def _begin_closing(plane: Any, number: int) -> None:
    """The connection is on no list."""
    cs.change_state(connection_of(plane, number), cs.CLOSING)
    connection_ready(plane, number)


# ---- idle connections


@compiled
def enter_idle(plane: Any, number: int) -> None:
    """Keep the connection for the next request to its endpoint, or close it where enough are kept."""
    connection = connection_of(plane, number)
    endpoint = endpoint_of(plane, connection.endpoint)
    assert connection.slot < 0
    if endpoint.idle_count >= endpoint.idle_max or endpoint.address_bytes == 0:
        _begin_closing(plane, number)
        return
    cs.change_state(connection, cs.IDLE)
    connection.since_ns = plane.now_ns
    _add_idle(plane, endpoint, number)
    endpoint.idle_count += 1
    count(plane, CONNECTIONS_IDLE, 1)
    plane.idle_check_ns = min(plane.idle_check_ns, plane.now_ns + endpoint.idle_timeout_ns)
    connection_ready(plane, number)


@inlined
def _leave_idle(plane: Any, number: int) -> None:
    endpoint = endpoint_of(plane, connection_of(plane, number).endpoint)
    _remove_idle(plane, endpoint, number)
    endpoint.idle_count -= 1
    count(plane, CONNECTIONS_IDLE, -1)


@compiled
def finish_draining(plane: Any, number: int) -> None:
    """The rest of the answer has been read: the connection can serve another request."""
    _remove_draining(plane, plane, number)
    enter_idle(plane, number)


@compiled
def evict_idle(plane: Any) -> bool:
    """Close the connection that has been kept longest: a stream needs what it holds. False when none is kept."""
    oldest = -1
    for number in range(min(int(plane.endpoints_used), ENDPOINT_COUNT_MAX)):
        last = int(endpoint_of(plane, number).idle_last)
        if last >= 0 and (oldest < 0 or connection_of(plane, last).since_ns < connection_of(plane, oldest).since_ns):
            oldest = last
    if oldest < 0:
        return False
    abandon_connection(plane, oldest)
    return True


@compiled
def forget_endpoint(plane: Any, number: int) -> None:
    """Nobody is to be connected there any more: close what is kept."""
    endpoint = endpoint_of(plane, number)
    endpoint.address_bytes = 0
    while endpoint.idle_first >= 0:
        abandon_connection(plane, endpoint.idle_first)


@compiled
def forget_all(plane: Any) -> None:
    """The plane stops: close every connection that serves nobody."""
    while plane.draining_last >= 0:
        abandon_connection(plane, plane.draining_last)
    for number in range(int(plane.endpoints_used)):
        if endpoint_of(plane, number).address_bytes > 0:
            forget_endpoint(plane, number)


@compiled
def check_idle(plane: Any) -> None:
    """Close connections that have been kept, or drained, for as long as is allowed; when to look again."""
    now = plane.now_ns
    if now < plane.idle_check_ns:
        return
    next_ns = FOREVER_NS
    while plane.draining_last >= 0:
        until_ns = connection_of(plane, plane.draining_last).since_ns + DRAINING_NS_MAX
        if until_ns > now:
            next_ns = min(next_ns, int(until_ns))
            break
        abandon_connection(plane, plane.draining_last)
    for number in range(min(int(plane.endpoints_used), ENDPOINT_COUNT_MAX)):
        endpoint = endpoint_of(plane, number)
        while endpoint.idle_last >= 0:
            until_ns = connection_of(plane, endpoint.idle_last).since_ns + endpoint.idle_timeout_ns
            if until_ns > now:
                next_ns = min(next_ns, int(until_ns))
                break
            abandon_connection(plane, endpoint.idle_last)
    plane.idle_check_ns = next_ns


# ---- provided buffers


@inlined
def give_receive_buffer(plane: Any, address: int) -> None:
    """A buffer is the kernel's again, from the end of this turn on."""
    entry = provided_of(plane, plane.receive_tail)
    entry.address = address
    entry.length = RECEIVE_BYTES
    entry.number = (address - plane.receives) // RECEIVE_BYTES
    plane.receive_tail += 1


@inlined
def publish_receive_buffers(plane: Any) -> None:
    """Tell the kernel of the buffers that were given back this turn."""
    if plane.receive_tail != plane.receive_published:
        full_fence()  # the entries are written before the tail that makes them valid
        provided_of(plane, 0).tail = plane.receive_tail & 0xFFFF
        plane.receive_published = plane.receive_tail


# ---- submissions


@compiled
def service_connection(plane: Any, number: int) -> None:
    """Submit whatever this connection needs next."""
    connection = connection_of(plane, number)
    state, generation = int(connection.state), int(connection.generation)
    if state == cs.CLOSING:
        _service_closing(plane, number)
    elif state == cs.OPENING:
        if not connection.in_flight & SOCKET_BIT:
            family = endpoint_of(plane, connection.endpoint).family
            prepare_socket(plane, family, SOCK_STREAM | SOCK_CLOEXEC, pack(CONNECTION_SOCKET, number, generation))
            connection.in_flight |= SOCKET_BIT
    elif state == cs.CONNECTING:
        if not connection.in_flight & CONNECT_BIT:
            address = plane.endpoints + connection.endpoint * ENDPOINT_BYTES + ENDPOINT_ADDRESS_OFFSET
            length = endpoint_of(plane, connection.endpoint).address_bytes
            prepare_connect(plane, connection.fd, address, length, pack(CONNECTION_CONNECT, number, generation))
            connection.in_flight |= CONNECT_BIT
    elif state != cs.FREE:
        if state == cs.BUSY and connection.request_sent < connection.request_bytes:
            _send_request(plane, number)
        if not connection.in_flight & RECEIVE_BIT and not connection.flags & HELD_READING:
            _receive(plane, number)


@inlined
def _send_request(plane: Any, number: int) -> None:
    connection = connection_of(plane, number)
    if connection.in_flight & (SEND_BIT | WRITABLE_BIT) or connection.flags & SEND_FAILED:
        return
    generation = connection.generation
    if connection.flags & MUST_POLL:
        connection.flags &= ~MUST_POLL
        prepare_poll(plane, connection.fd, POLLOUT, pack(CONNECTION_WRITABLE, number, generation))
        connection.in_flight |= WRITABLE_BIT
        return
    left = int(min(connection.request_bytes - connection.request_sent, 1 << 30))
    address = connection.request_address + connection.request_sent
    prepare_send(plane, connection.fd, address, left, False, pack(CONNECTION_SEND, number, generation))
    connection.in_flight |= SEND_BIT


@inlined
def _receive(plane: Any, number: int) -> None:
    """Receive into whichever buffer is next when something comes. Most often nothing is there yet."""
    connection = connection_of(plane, number)
    tag = pack(CONNECTION_RECEIVE, number, connection.generation)
    entry = prepare_receive(plane, connection.fd, 0, RECEIVE_BYTES, 0, tag)
    entry.flags = BUFFER_SELECT
    if not connection.flags & MORE_TO_READ:
        entry.priority = POLL_FIRST
    connection.in_flight |= RECEIVE_BIT


@inlined
def _service_closing(plane: Any, number: int) -> None:
    """Cancel what is in flight, then close, then free."""
    connection = connection_of(plane, number)
    generation = connection.generation
    if connection.in_flight:
        pending = connection.in_flight & _CANCELLABLE & ~connection.cancelled
        for kind in range(_KINDS):
            if pending & (1 << kind):
                target = pack(CONNECTION_SOCKET + kind, number, generation)
                prepare_cancel(plane, target, pack(CONNECTION_SOCKET + CONNECTION_CANCEL + kind, number, generation))
                connection.in_flight |= 1 << (CONNECTION_CANCEL + kind)
                connection.cancelled |= 1 << kind
    elif connection.fd >= 0:
        prepare_close(plane, connection.fd, pack(CONNECTION_CLOSE, number, generation))
        connection.fd = -1
        connection.in_flight |= CLOSE_BIT
        count(plane, DESCRIPTORS_CLOSED, 1)
    else:
        _free(plane, number)


@compiled
def cancel_done(plane: Any, number: int, kind: int) -> None:
    """A cancel has completed. If its target has not, it is on its way, or must be asked for again in a moment."""
    connection = connection_of(plane, number)
    if not connection.in_flight & (1 << kind):
        connection.cancelled &= ~(1 << kind)
        connection_ready(plane, number)
        return
    connection.flags |= CANCEL_LOST
    retry_ns = plane.now_ns + CANCEL_RETRY_NS
    plane.cancel_retry_ns = retry_ns if plane.cancel_retry_ns == 0 else min(plane.cancel_retry_ns, retry_ns)


@compiled
def retry_cancels(plane: Any) -> None:
    """Ask again for what was not cancelled. It is rare, so every connection is looked at."""
    if plane.cancel_retry_ns == 0 or plane.now_ns < plane.cancel_retry_ns:
        return
    plane.cancel_retry_ns = 0
    for number in range(int(plane.connections_touched)):
        connection = connection_of(plane, number)
        if connection.flags & CANCEL_LOST:
            connection.flags &= ~CANCEL_LOST
            connection.cancelled &= connection.in_flight >> CONNECTION_CANCEL  # one that is in flight is not sent twice
            connection_ready(plane, number)


@inlined
def _free(plane: Any, number: int) -> None:
    connection = connection_of(plane, number)
    slot = int(connection.slot)
    if slot >= 0:
        relay = relay_of(plane, slot)
        if relay.left_ns != 0 and relay.cancel_ns == 0:
            relay.cancel_ns = max(plane.now_ns - relay.left_ns, 1)
    _detach(plane, number)
    cs.change_state(connection, cs.FREE)
    _give(plane, number)
    plane.connections_open -= 1
