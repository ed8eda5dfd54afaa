"""An upstream's answer: interim heads, the head, and the body, whose framing is undone in the receive buffer.

Events of the body are daemon/plane/relay.py's. What is no event stream is collected for the control plane.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import connections as c
from daemon.plane import state as st
from daemon.plane.assembly import SMALL_BYTES_MAX, assembly_address, drop_front, give_assembly, keep, promote
from daemon.plane.attempts import connect, set_deadline
from daemon.plane.body import CHUNK_SIZE, COUNTED, DONE, MALFORMED, decode_body
from daemon.plane.counters import CONNECTIONS_STALE, UPSTREAM_BYTES
from daemon.plane.http1 import HEAD_HTTP2, HEAD_TOO_LARGE, head_of, parse_head
from daemon.plane.relay import BODY_MALFORMED, advance, body_ended, hold_or_read, take
from daemon.plane.relay_failure import (
    ERROR_BODY,
    EVENTS,
    HEAD,
    fail,
)
from daemon.plane.relay_table import (
    PARSER_BYTES,
    connection_of,
    relay_of,
)
from daemon.plane.table import count, stream_of
from daemon.plane.timers import TICK_NS, timer_set

HEAD_BYTES_MAX = 64 * 1024
ERROR_BODY_BYTES_MAX = 64 * 1024
_HEAD_OFFSET = 2 * PARSER_BYTES
_ENDLESS = 1 << 62


@inlined
def _decode(connection: Any, address: int, byte_count: int) -> int:
    """As `decode_body`. After an answer with something behind it the connection is not used again."""
    written = decode_body(connection, address, byte_count)
    if connection.body_state == DONE and connection.body_line_bytes > 0:
        connection.flags &= ~c.KEEPABLE
    return written


@compiled
def answer_bytes(plane: Any, number: int, address: int, result: int) -> None:
    """What came for the stream that this connection serves."""
    connection = connection_of(plane, number)
    slot = int(connection.slot)
    relay = relay_of(plane, slot)
    assert relay.connection == number
    # What comes on a kept connection before the request leaves is no answer to it, whatever it says.
    is_unasked = connection.request_sent == 0 and not connection.in_flight & c.SEND_BIT and connection.flags & c.REUSED
    if result <= 0 or is_unasked:
        _answer_over(plane, number, result)
        return
    connection.received_bytes += result
    count(plane, UPSTREAM_BYTES, result)
    if relay.phase == EVENTS:
        _body_bytes(plane, number, slot, address, result)
    elif relay.phase == HEAD:
        _head_bytes(plane, number, slot, address, result)
    else:
        assert relay.phase == ERROR_BODY
        _error_bytes(plane, number, slot, address, result)


@compiled
def _answer_over(plane: Any, number: int, result: int) -> None:
    """The upstream has closed, or reset, its connection."""
    connection = connection_of(plane, number)
    slot = int(connection.slot)
    relay = relay_of(plane, slot)
    if relay.phase == EVENTS:
        body_ended(plane, slot, result == 0 and bool(connection.flags & c.UNTIL_CLOSE))
        if relay.phase == EVENTS:
            # The client is slow, and the end waits behind what it has not taken; there is nothing more to read.
            connection.flags |= c.HELD_READING
    elif relay.phase == ERROR_BODY:
        fail(plane, slot, st.FAILURE_STATUS, relay.status, 0)
    elif connection.flags & c.REUSED and connection.received_bytes == 0:
        # It was closed while it was kept, and nobody has seen the request: a fresh one can have it.
        count(plane, CONNECTIONS_STALE, 1)
        relay.stale += 1
        c.abandon_connection(plane, number)
        connect(plane, slot, False)
    else:
        give_assembly(plane, slot)
        fail(plane, slot, st.FAILURE_RESET, 0, -result)


@compiled
def _body_bytes(plane: Any, number: int, slot: int, address: int, byte_count: int) -> None:
    """Bytes of an event stream, framed as the head said."""
    connection = connection_of(plane, number)
    decoded = _decode(connection, address, byte_count)
    take(plane, slot, address, decoded)
    _after_body_bytes(plane, number, slot)


@inlined
def _after_body_bytes(plane: Any, number: int, slot: int) -> None:
    connection, relay = connection_of(plane, number), relay_of(plane, slot)
    if relay.phase != EVENTS:
        return
    if connection.body_state == DONE:
        body_ended(plane, slot, True)
        if relay.phase == EVENTS:
            connection.flags |= c.HELD_READING
    elif connection.body_state == MALFORMED:
        # What stands before the fault is whole, and passed on first, as before a cut.
        relay.body_ended = BODY_MALFORMED
        connection.flags |= c.HELD_READING
        advance(plane, slot)
    elif relay.assembly_bytes > 0 or stream_of(plane, slot).paused:
        advance(plane, slot)
    else:
        hold_or_read(plane, slot)


# ---- the head


@compiled
def _head_bytes(plane: Any, number: int, slot: int, address: int, byte_count: int) -> None:
    """Some of the head, or all of it and some of the body. It is read where it lies if it came in one piece."""
    relay, head = relay_of(plane, slot), head_of(plane.parsers + _HEAD_OFFSET)
    is_kept = relay.assembly_bytes > 0
    if is_kept:
        keep(plane, slot, address, byte_count)
        address, byte_count = assembly_address(plane, relay), int(relay.assembly_bytes)
    size = parse_head(head, address, byte_count, HEAD_BYTES_MAX)
    while size > 0 and 100 <= head.status < 200 and head.status != 101:
        if is_kept:
            drop_front(plane, slot, size)
            byte_count = int(relay.assembly_bytes)
        else:
            address += size
            byte_count -= size
        size = 0
        if byte_count > 0:
            size = parse_head(head, address, byte_count, HEAD_BYTES_MAX)
    if size == 0 and connection_of(plane, number).received_bytes > 2 * HEAD_BYTES_MAX:
        size = HEAD_TOO_LARGE  # a flood of interim heads
    if size < 0 or (size > 0 and head.status == 101):
        kind = st.FAILURE_HEAD_MALFORMED
        if size == HEAD_TOO_LARGE:
            kind = st.FAILURE_HEAD_TOO_LARGE
        elif size == HEAD_HTTP2:
            kind = st.FAILURE_HTTP_VERSION
        give_assembly(plane, slot)
        fail(plane, slot, kind, 0, 0)
        return
    if size == 0:
        if not is_kept:
            keep(plane, slot, address, byte_count)
        grow(plane, number, slot)
        return
    _head_known(plane, number, slot, address, size, byte_count)


@inlined
def grow(plane: Any, number: int, slot: int) -> None:
    """Find room for what follows of a head or an error's body; where there is none, wait for it."""
    relay = relay_of(plane, slot)
    if relay.assembly_bytes > SMALL_BYTES_MAX and not promote(plane, slot):
        connection_of(plane, number).flags |= c.HELD_READING
        relay.wake_ns = plane.now_ns + TICK_NS
        timer_set(plane, slot, relay.wake_ns)


@inlined
def _frame_body(connection: Any, head: Any) -> None:
    """How the body is framed, and whether the connection can be kept (RFC 9112, 6.3)."""
    connection.flags &= ~(c.KEEPABLE | c.UNTIL_CLOSE)
    connection.body_line_bytes = 0
    connection.body_remaining = 0
    if not head.closes:
        connection.flags |= c.KEEPABLE
    if head.status == 204 or head.status == 304:
        connection.body_state = DONE
    elif head.is_chunked:
        connection.body_state = CHUNK_SIZE
    elif head.content_length >= 0:
        connection.body_state = COUNTED if head.content_length > 0 else DONE
        connection.body_remaining = head.content_length
    else:
        connection.body_state = COUNTED
        connection.body_remaining = _ENDLESS
        connection.flags |= c.UNTIL_CLOSE


@compiled
def _head_known(plane: Any, number: int, slot: int, address: int, size: int, byte_count: int) -> None:
    """A whole head: an event stream begins, or an answer that the control plane will want to see."""
    connection, relay, head = connection_of(plane, number), relay_of(plane, slot), head_of(plane.parsers + _HEAD_OFFSET)
    _frame_body(connection, head)
    status = int(head.status)
    relay.status = status
    decoded = _decode(connection, address + size, byte_count - size)
    if 200 <= status < 300 and head.is_event_stream and not head.is_compressed:
        relay.phase = EVENTS
        set_deadline(plane, slot, relay.first_token_timeout_ns)
        if relay.assembly_bytes > 0:
            relay.assembly_bytes = size + decoded
            drop_front(plane, slot, size)
        else:
            take(plane, slot, address + size, decoded)
        _after_body_bytes(plane, number, slot)
        return
    if relay.assembly_bytes > 0:
        relay.assembly_bytes = size + decoded
    else:
        keep(plane, slot, address, size + decoded)
    relay.kept_head_bytes = size
    if 200 <= status < 300:
        fail(plane, slot, st.FAILURE_COMPRESSED if head.is_compressed else st.FAILURE_NOT_A_STREAM, status, 0)
    elif 300 <= status < 400:
        fail(plane, slot, st.FAILURE_REDIRECT, status, 0)
    else:
        relay.phase = ERROR_BODY
        _after_error_bytes(plane, number, slot)


@compiled
def _error_bytes(plane: Any, number: int, slot: int, address: int, byte_count: int) -> None:
    """More of the body of an answer that is no stream."""
    keep(plane, slot, address, _decode(connection_of(plane, number), address, byte_count))
    _after_error_bytes(plane, number, slot)


@inlined
def _after_error_bytes(plane: Any, number: int, slot: int) -> None:
    """Tell of the error when all of it is there, or as much as anybody will read."""
    connection, relay = connection_of(plane, number), relay_of(plane, slot)
    if connection.body_state == DONE:
        c.release_connection(plane, number, True)
        fail(plane, slot, st.FAILURE_STATUS, relay.status, 0)
    elif connection.body_state == MALFORMED or relay.assembly_bytes - relay.kept_head_bytes >= ERROR_BODY_BYTES_MAX:
        fail(plane, slot, st.FAILURE_STATUS, relay.status, 0)
    else:
        grow(plane, number, slot)
