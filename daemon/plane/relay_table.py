"""Memory of relayed streams: what a stream knows of its upstream, connections, endpoints, and buffers to receive into.

Allocated with the rest in daemon/plane/table.py. A stream's relay has its slot's number; a connection has a number and
a generation of its own, because it outlives the streams it serves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from config.compilation import inlined
from daemon.plane.records import (
    LINK,
    array_accessor,
    circle_accessor,
    free_list,
    lazy_bytes,
    lazy_records,
    record,
    value_at,
)

ENDPOINT_COUNT_MAX = 256
CONNECTION_RESERVE = 1024  # connections beyond one per slot: idle, draining or closing
RECEIVE_BYTES = 4096  # of one provided buffer
RECEIVE_COUNT = 1024  # a power of two: of provided buffers
ASSEMBLY_BYTES = 16 * 1024  # where an event that has not wholly come is kept; one per slot
EVENT_BYTES_MAX = 1 << 20  # of one event
LARGE_ASSEMBLY_BYTES = EVENT_BYTES_MAX + 64 * 1024
LARGE_ASSEMBLY_COUNT = 64  # events beyond ASSEMBLY_BYTES that can be put together at once; more wait
SERIES_COUNT_MAX = 64
GAP_BOUNDS_NS = tuple(
    milliseconds * 1_000_000 for milliseconds in (10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 2500)
)  # of the histogram of inter-token times: OpenTelemetry's bounds for gen_ai.server.time_per_output_token
GAP_WORDS = 16  # of one series: a count for each bucket, then the sum in ns
PARSER_BYTES = 256  # room for the record of one parser


RELAY = record(
    # the present attempt, as ATTEMPT gave it
    "request_address:i8 request_bytes:i8 head_address:i8 connect_timeout_ns:i8 head_timeout_ns:i8 "
    "first_token_timeout_ns:i8 silence_timeout_ns:i8 drain_timeout_ns:i8 queue_timeout_ns:i8 "
    "head_bytes:i4 endpoint:i4 number:i4 flags:i4 series:i4 connection:i4 phase:i4 closing_count:i4 "
    # what has come and is not yet passed on
    "assembly:i4 large:i4 assembly_bytes:i4 scan_resume:i4 kept_head_bytes:i4 lent_bytes:i4 body_ended:i4 began:i4 "
    # the failure that is told: kind, HTTP status, errno, whether the assembly is lent to it
    "failure:i4 status:i4 error:i4 is_lent:i4 "
    # the story
    "token_count:i8 first_token_ns:i8 last_token_ns:i8 prompt_tokens:i8 completion_tokens:i8 left_ns:i8 cancel_ns:i8 "
    "ended_ns:i8 wake_ns:i8 raw_taken:i8 raw_reported:i8 "
    "malformed:i4 valid:i4 finish:i4 stale:i4 model_bytes:i4 is_draining:i4 is_answered:i4 is_done:i4 is_held:i4 "
    "malformed_before:i4 failed_streaming:i4",
    320,
)
CONNECTION = record(
    "generation:i4 state:i4 in_flight:i4 cancelled:i4 fd:i4 slot:i4 endpoint:i4 flags:i4 next:i4 previous:i4 "
    "is_ready:i4 ready_next:i4 body_state:i4 body_line_bytes:i4 body_remaining:i8 request_address:i8 request_bytes:i8 "
    "request_sent:i8 received_bytes:i8 since_ns:i8",
    128,
)
ENDPOINT = record(
    "address_bytes:i4 idle_max:i4 idle_count:i4 idle_first:i4 idle_last:i4 pad:i4 idle_timeout_ns:i8 family:u2", 192
)
ENDPOINT_ADDRESS_OFFSET = 32  # where its sockaddr begins
ENDPOINT_ADDRESS_BYTES = 112
PROVIDED = record("address:u8 length:u4 number:u2 tail:u2", 16)  # struct io_uring_buf; `tail` is the first entry's
ENDPOINT_BYTES = ENDPOINT.itemsize
relay_of = array_accessor(RELAY, "relays", "slot_count")
connection_of = array_accessor(CONNECTION, "connections", "connection_count")
endpoint_of = array_accessor(ENDPOINT, "endpoints", ENDPOINT_COUNT_MAX)
assembly_link_of = array_accessor(LINK, "assembly_links", "slot_count")
large_link_of = array_accessor(LINK, "large_links", LARGE_ASSEMBLY_COUNT)
provided_of = circle_accessor(PROVIDED, "provided", RECEIVE_COUNT - 1)


@inlined
def observe_gap(plane: Any, series: int, gap_ns: int) -> None:
    """Count the time between two tokens in its bucket."""
    assert 0 <= series < SERIES_COUNT_MAX
    base = plane.gaps + series * GAP_WORDS * 8
    bucket = 0
    for bound_ns in GAP_BOUNDS_NS:
        if gap_ns <= bound_ns:
            break
        bucket += 1
    value_at(base + bucket * 8).value += 1
    value_at(base + (GAP_WORDS - 1) * 8).value += gap_ns


def relay_arrays(slot_count: int) -> dict[str, Any]:
    """The arrays of relayed streams, by the names `Plane` has for them."""
    return {
        "relays": lazy_records(RELAY, slot_count),
        "connections": lazy_records(CONNECTION, slot_count + CONNECTION_RESERVE),
        "endpoints": np.zeros(ENDPOINT_COUNT_MAX, ENDPOINT),
        "assemblies": lazy_bytes(slot_count * ASSEMBLY_BYTES),
        "assembly_links": free_list(slot_count),
        "larges": lazy_bytes(LARGE_ASSEMBLY_COUNT * LARGE_ASSEMBLY_BYTES),
        "large_links": free_list(LARGE_ASSEMBLY_COUNT),
        "receives": lazy_bytes(RECEIVE_COUNT * RECEIVE_BYTES),
        "provided": lazy_records(PROVIDED, RECEIVE_COUNT),
        "joined": lazy_bytes(LARGE_ASSEMBLY_BYTES),
        "parsers": np.zeros(4 * PARSER_BYTES, np.uint8),
        "gaps": np.zeros((SERIES_COUNT_MAX, GAP_WORDS), np.int64),
    }


def set_relay_globals(plane: Any, slot_count: int) -> None:
    """First values: no connection, no endpoint, all buffers the kernel's."""
    shared = plane.globals[0]
    shared.connection_count = slot_count + CONNECTION_RESERVE
    shared.connection_free = shared.connection_ready_head = shared.connection_ready_tail = -1
    shared.draining_first = shared.draining_last = -1
    for number in range(RECEIVE_COUNT):
        entry = plane.provided[number]
        entry.address = plane.receives.ctypes.data + number * RECEIVE_BYTES
        entry.length = RECEIVE_BYTES
        entry.number = number
    plane.provided[0].tail = shared.receive_tail = shared.receive_published = RECEIVE_COUNT
