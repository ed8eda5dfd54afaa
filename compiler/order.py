"""The plane's functions from the leaves up, in order of compilation.

Given only the loop, Numba compiles every callee while it infers the types of its caller, some twenty levels deep, which
takes ten times as long. A function missing here is still compiled, only later and slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.untyped import numba
from daemon.control.admission import client_socket
from daemon.epoll import enter as epoll_enter
from daemon.loop import run
from daemon.plane import (
    answer,
    assembly,
    attempts,
    closing,
    commands,
    connections,
    events,
    http1,
    json_text,
    json_walk,
    relay,
    relay_failure,
    sse,
    stream,
    table,
    turn,
    upstream,
)
from daemon.plane.ingress.request_head import read_request_head
from daemon.plane.kernel_record import KERNEL
from daemon.ring import enter as ring_enter

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = (run, client_socket.inspect)


def plane_functions() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Functions with their argument types, each after its callees."""
    plane, kernel = numba.from_dtype(table.GLOBALS), numba.from_dtype(KERNEL)
    number, truth = numba.types.int64, numba.types.boolean
    yield json_text.rewrite_string, (number,) * 3
    yield json_walk.walk_chunk, (numba.from_dtype(json_walk.WALK), number, number)
    yield sse.scan_event, (numba.from_dtype(sse.SCAN), number, number, truth)
    yield sse.join_data, (number,) * 3
    yield http1.parse_head, (numba.from_dtype(http1.HEAD), number, number, number)
    yield read_request_head, (number,) * 4
    yield connections.open_connection, (plane, number, number)
    yield connections.abandon_connection, (plane, number)
    yield connections.release_connection, (plane, number, truth)
    yield connections.service_connection, (plane, number)
    yield assembly.keep, (plane, number, number, number)
    yield closing.begin_closing, (plane, number, number)
    yield closing.service_closing, (plane, number)
    yield relay_failure.fail, (plane, *(number,) * 4)
    yield relay.take, (plane, number, number, number)
    yield relay.advance, (plane, number)
    yield attempts.attempt, (plane, number, number)
    yield answer.answer_bytes, (plane, number, number, number)
    yield upstream.complete_connection, (plane, number, number, number)
    yield stream.service_stream, (plane, number)
    yield commands.handle_read_commands, (plane, number)
    yield events.flush_events, (plane,)
    yield turn.turn, (plane,)
    yield ring_enter.ring_enter, (plane, kernel)
    yield epoll_enter.epoll_enter, (plane, kernel)
    yield run, (number, number)
    yield client_socket.inspect, (number,) * 4
