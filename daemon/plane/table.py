"""All memory of the data plane, allocated once at start: the stream table, its buffers and its queues.

`Plane` is a tuple of record arrays; compiled functions take it whole. Nothing in it is resized or reallocated. Records
hold no Python objects; pointers (addresses) are kept in `globals` and in `ranges`, apart from the stream records, so
that a stream's record stays plain bytes that another process could take over.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from config.compilation import inlined
from daemon.plane import counters, entries, messages
from daemon.plane.records import (
    LINK,
    VALUE,
    array_accessor,
    circle_accessor,
    free_list,
    lazy_bytes,
    lazy_records,
    record,
    record_accessor,
    value_at,
)
from daemon.plane.relay_table import relay_arrays, set_relay_globals

if TYPE_CHECKING:
    from config.settings import Settings

RANGES_MAX = 3  # ranges by address per stream that are not yet given back
RANGE_ENTRIES = 4  # a power of two above RANGES_MAX
CHANNEL_COUNT_MAX = 80
ANCILLARY_BYTES = 64  # room for several descriptors, so that extra ones are seen and closed
WAITING_MAX = 4096  # accepted peers and adopted sockets that wait for a slot
COMMAND_BUFFER_BYTES = 64 * 1024
DISCARD_BYTES = 16 * 1024
BUCKET_COUNT = 8192
SCRIPT_COUNT_MAX = 64
SCRIPT_MESSAGES_MAX = 1024
SCRIPT_PARTS_MAX = 4096
TEMPLATE_BYTES_MAX = 1 << 20
FOREVER_NS = 1 << 62  # a time that does not come


STREAM = record(
    # what every message touches
    "generation:i4 state:i4 in_flight:i4 flags:i4 client_fd:i4 block:i4 sending_bytes:i4 is_ready:i4 "
    "inline_head:i4 inline_tail:i4 ready_next:i4 timer_next:i4 timer_previous:i4 timer_bucket:i4 timer_ns:i8 "
    "message_index:i8 message_total:i8 interval_ps:i8 pace_start_ns:i8 last_sent_ns:i8 sent_bytes:i8 "
    "write_deadline_ns:i8 script:i4 source:i4 ranges_first:i4 ranges_count:i4 text_bytes:i4 channel:i4 "
    # deadlines, absolute; 0 = none
    "phase_deadline_ns:i8 stream_deadline_ns:i8 keep_alive_ns:i8 write_timeout_ns:i8 silence_ns:i8 linger_ns:i8 "
    "first_byte_timeout_ns:i8 keep_alive_at_ns:i8 "
    # the story
    "accepted_ns:i8 queued_ns:i8 first_byte_ns:i8 cookie:i8 message_count:i8 inline_done:i8 inline_reported:i8 "
    "ranges_done:i8 reason:i4 peer_fd:i4 "
    # pending events of the control plane and of the worker
    "control_next:i4 worker_next:i4 control_events:i4 worker_events:i4 expired:i4 cancelled:i4 "
    # handoff receipt
    "handoff_buffer:i4 handoff_bytes:i4 handoff_flags:i4 zero_copy_result:i4 "
    # body (upload)
    "body_buffer:i4 body_state:i4 body_remaining:i8 body_bytes:i4 body_flags:i4 body_raw_bytes:i4 body_line_bytes:i4 "
    # closing
    "discarded_bytes:i8 hold_ns:i8 must_poll:i4 must_copy:i4 "
    # a source that waits for room
    "paused:i4 "
    # a paced source's second text
    "closing_bytes:i4",
    384,
)
GLOBALS = record(
    # time, turns and what the loop is to do next
    "now_ns:i8 wait_until_ns:i8 stop:i8 tick:i8 timers_scheduled:i8 zero_copy:i8 "
    # submissions: next to be taken by the kernel, filled and not yet taken; completions: first unread, how many
    "submission_mask:i8 submission_base:i8 submission_pending:i8 completion_mask:i8 completion_base:i8 "
    "completion_count:i8 "
    # lists
    "free_head:i4 slots_touched:i4 slot_count:i4 ready_head:i4 ready_tail:i4 block_free:i4 handoff_free:i4 "
    "body_free:i4 "
    "parked_first:i4 parked_count:i4 stray_first:i4 stray_count:i4 adopted_first:i4 adopted_count:i4 "
    "stray_in_flight:i4 "
    "channel_count:i4 block_count:i4 handoff_count:i4 body_count:i4 "
    # connections to upstreams: free, touched, to be serviced, reading what is left of an answer
    "connection_count:i4 connection_free:i4 connections_touched:i4 connections_open:i4 "
    "connection_ready_head:i4 connection_ready_tail:i4 draining_first:i4 draining_last:i4 "
    "assembly_free:i4 large_free:i4 endpoints_used:i4 "
    # the listener and the command pipe
    "listener_fd:i4 accept_in_flight:i4 accept_cancelling:i4 draining:i4 command_fd:i4 command_in_flight:i4 "
    "command_bytes:i4 global_events:i4 accept_paused:i4 accept_error:i4 "
    "accept_retry_ns:i8 pong_cookie:i8 stray_mask:i8 idle_check_ns:i8 tell_ns:i8 "
    "receive_tail:i8 receive_published:i8 cancel_retry_ns:i8 "
    # limits
    "handoff_bytes_max:i8 handoff_timeout_ns:i8 handoff_stream:i8 block_bytes:i8 body_buffer_bytes:i8 "
    "zero_copy_bytes_min:i8 linger_bytes_max:i8 head_bytes:i8 handoff_stride:i8 streams_bytes:i8 "
    # addresses of the other arrays
    "streams:i8 ranges:i8 submissions:i8 completions:i8 channels:i8 events:i8 block_links:i8 handoff_links:i8 "
    "body_links:i8 "
    "headers:i8 vectors:i8 ancillary:i8 parked:i8 strays:i8 adopted:i8 buckets:i8 words:i8 commands:i8 blocks:i8 "
    "texts:i8 closings:i8 "
    "templates:i8 constants:i8 scripts:i8 script_messages:i8 script_parts:i8 handoff_data:i8 bodies:i8 discard:i8 "
    "counters:i8 histograms:i8 histogram_sums:i8 snapshot:i8 "
    "relays:i8 connections:i8 endpoints:i8 assemblies:i8 assembly_links:i8 larges:i8 large_links:i8 receives:i8 "
    "provided:i8 joined:i8 parsers:i8 gaps:i8",
    1024,
)
globals_at = record_accessor(GLOBALS)
CHANNEL = record("fd:i4 in_flight:i4 head:i4 tail:i4 buffered_bytes:i4 buffered_offset:i4 blocked:i4 closed:i4", 64)
RANGE = record("address:i8 remaining:i8 position:i8 pad:i8", 32)  # `position`: where in the inline bytes it stands
BUCKET = record("first:i4 last:i4", 8)
WORD = record("bits:i8", 8)  # 32 bits used
WAITING = record("fd:i8 cookie:i8", 16)
SCRIPT = record("first_message:u4 message_count:u4 end_message:u4 end_counts:u4", 16)  # the end: one message more
SCRIPT_MESSAGE = record("first_part:u4 part_count:u4 bytes_max:u4", 12)
SCRIPT_PART = record("kind:u4 offset:u4 length:u4", 12)
HEADER = record("name:i8 name_bytes:i8 vector:i8 vector_count:i8 control:i8 control_bytes:i8 flags:i8", 56)  # msghdr
VECTOR = record("address:i8 length:i8", 16)  # struct iovec
ANCILLARY = record(
    "length:i8 level:i4 type:i4 fd0:i4 fd1:i4 fd2:i4 fd3:i4 fd4:i4 fd5:i4 fd6:i4 fd7:i4 fd8:i4 fd9:i4 fd10:i4 fd11:i4",
    64,
)
DESCRIPTOR = record("fd:i4", 4)

# Constant bytes the plane sends by itself: (offset, length) in `constants`.
_CONSTANTS = (
    (0, b"HTTP/1.1 100 Continue\r\n\r\n"),
    (32, b": keep-alive\n\n"),
    (64, b"\r\n"),
    (96, b"0\r\n\r\n"),
    (256, b"data: [DONE]\n\n"),
    (288, b'data: {"content":"'),
    (320, b'"}\n\n'),
)
(CONTINUE_OFFSET, CONTINUE_BYTES), (KEEP_ALIVE_OFFSET, KEEP_ALIVE_BYTES), (LINE_END_OFFSET, LINE_END_BYTES) = (
    (offset, len(constant)) for offset, constant in _CONSTANTS[:3]
)
(LAST_CHUNK_OFFSET, LAST_CHUNK_BYTES), (DONE_EVENT_OFFSET, DONE_EVENT_BYTES) = (
    (offset, len(constant)) for offset, constant in _CONSTANTS[3:5]
)
(CONTENT_START_OFFSET, CONTENT_START_BYTES), (CONTENT_END_OFFSET, CONTENT_END_BYTES) = (
    (offset, len(constant)) for offset, constant in _CONSTANTS[5:]
)
SCRATCH_OFFSET = 128  # 32 bytes in which numbers are rendered


class Plane(NamedTuple):
    """Everything the data plane owns. Compiled code takes `globals[0]`, which holds the addresses of the rest."""

    globals: Any  # GLOBALS[1]
    streams: Any  # STREAM[slot_count]
    ranges: Any  # RANGE[slot_count * RANGE_ENTRIES]
    submissions: Any  # entries.SUBMISSION[submission_entries]; another array when a ring is mapped
    completions: Any  # entries.COMPLETION[4 * submission_entries]
    channels: Any  # CHANNEL[CHANNEL_COUNT_MAX]
    events: Any  # u1[CHANNEL_COUNT_MAX * MESSAGE_BYTES_MAX]: one batch per channel
    block_links: Any  # LINK[slot_count], free list
    handoff_links: Any  # LINK[handoff_buffer_count]
    body_links: Any  # LINK[body_buffer_count]
    headers: Any  # HEADER[handoff_buffer_count]
    vectors: Any  # VECTOR[handoff_buffer_count]
    ancillary: Any  # ANCILLARY[handoff_buffer_count]
    parked: Any  # WAITING[WAITING_MAX]: accepted peers without a slot
    strays: Any  # DESCRIPTOR[_stray_count_max(...)]: descriptors to be closed
    adopted: Any  # WAITING[WAITING_MAX]: sockets of this process without a slot
    buckets: Any  # BUCKET[BUCKET_COUNT]: the timing wheel
    words: Any  # WORD[BUCKET_COUNT / 32]: which buckets are occupied
    commands: Any  # u1[COMMAND_BUFFER_BYTES]
    blocks: Any  # u1[slot_count * output_block_bytes]
    texts: Any  # u1[slot_count * TEXT_BYTES_MAX]
    closings: Any  # u1[slot_count * TEXT_BYTES_MAX]; touched only by streams that have a second text
    templates: Any  # u1[TEMPLATE_BYTES_MAX]; the standard head at offset 0, globals.head_bytes long
    constants: Any  # u1[512]
    scripts: Any  # SCRIPT[SCRIPT_COUNT_MAX]
    script_messages: Any  # SCRIPT_MESSAGE[SCRIPT_MESSAGES_MAX]
    script_parts: Any  # SCRIPT_PART[SCRIPT_PARTS_MAX]
    handoff_data: Any  # u1[handoff_buffer_count * handoff_stride]
    bodies: Any  # u1[body_buffer_count * body_buffer_bytes]
    discard: Any  # u1[DISCARD_BYTES]: where unwanted input goes; never read
    counters: Any  # i8[len(COUNTERS)]
    histograms: Any  # i8[len(HISTOGRAMS), HISTOGRAM_BUCKETS]
    histogram_sums: Any  # i8[len(HISTOGRAMS)], nanoseconds
    snapshot: Any  # STREAM[slot_count]
    relays: Any  # RELAY[slot_count]: what a stream knows of its upstream
    connections: Any  # CONNECTION[connection_count]
    endpoints: Any  # ENDPOINT[ENDPOINT_COUNT_MAX]
    assemblies: Any  # u1[slot_count * ASSEMBLY_BYTES]
    assembly_links: Any  # LINK[slot_count]
    larges: Any  # u1[LARGE_ASSEMBLY_COUNT * LARGE_ASSEMBLY_BYTES]
    large_links: Any  # LINK[LARGE_ASSEMBLY_COUNT]
    receives: Any  # u1[RECEIVE_COUNT * RECEIVE_BYTES]: buffers the kernel receives into
    provided: Any  # PROVIDED[RECEIVE_COUNT], as io_uring's struct io_uring_buf_ring: which of them it may use
    joined: Any  # u1[LARGE_ASSEMBLY_BYTES]: data fields of one event put together
    parsers: Any  # u1[4 * PARSER_BYTES]: what the parsers say
    gaps: Any  # i8[SERIES_COUNT_MAX, GAP_WORDS]: inter-token times


STREAM_BYTES = STREAM.itemsize
EVENTS_PER_BATCH = messages.MESSAGE_BYTES_MAX // messages.EVENT_BYTES

stream_of = array_accessor(STREAM, "streams", "slot_count")
submission_of = circle_accessor(entries.SUBMISSION, "submissions", "submission_mask")
completion_of = circle_accessor(entries.COMPLETION, "completions", "completion_mask")
channel_of = array_accessor(CHANNEL, "channels", CHANNEL_COUNT_MAX)
block_link_of = array_accessor(LINK, "block_links", "block_count")
handoff_link_of = array_accessor(LINK, "handoff_links", "handoff_count")
body_link_of = array_accessor(LINK, "body_links", "body_count")
bucket_of = array_accessor(BUCKET, "buckets", BUCKET_COUNT)
word_of = array_accessor(WORD, "words", BUCKET_COUNT // 32)
counter_of = array_accessor(VALUE, "counters", len(counters.COUNTERS))
parked_of = circle_accessor(WAITING, "parked", WAITING_MAX - 1)
adopted_of = circle_accessor(WAITING, "adopted", WAITING_MAX - 1)
stray_of = circle_accessor(DESCRIPTOR, "strays", "stray_mask")
script_of = array_accessor(SCRIPT, "scripts", SCRIPT_COUNT_MAX)
script_message_of = array_accessor(SCRIPT_MESSAGE, "script_messages", SCRIPT_MESSAGES_MAX)
script_part_of = array_accessor(SCRIPT_PART, "script_parts", SCRIPT_PARTS_MAX)
header_of = array_accessor(HEADER, "headers", "handoff_count")
vector_of = array_accessor(VECTOR, "vectors", "handoff_count")
ancillary_of = array_accessor(ANCILLARY, "ancillary", "handoff_count")
_range_at = record_accessor(RANGE)
_descriptor_at = record_accessor(DESCRIPTOR)


@inlined
def range_of(plane: Any, slot: int, index: int) -> Any:
    return _range_at(plane.ranges + (slot * RANGE_ENTRIES + (index & (RANGE_ENTRIES - 1))) * 32)


@inlined
def ancillary_descriptor_of(plane: Any, buffer: int, index: int) -> Any:
    assert 0 <= index < (ANCILLARY_BYTES - 16) // 4
    return _descriptor_at(plane.ancillary + buffer * ANCILLARY_BYTES + 16 + index * 4)


@inlined
def count(plane: Any, number: int, amount: int) -> None:
    """Add to a counter."""
    counter_of(plane, number).value += amount


@inlined
def observe(plane: Any, histogram: int, duration_ns: int) -> None:
    """Count a duration in its power-of-two bucket of microseconds."""
    microseconds = max(duration_ns, 0) // 1000
    bucket = 0
    while microseconds > 0 and bucket < counters.HISTOGRAM_BUCKETS - 1:
        microseconds >>= 1
        bucket += 1
    value_at(plane.histograms + (histogram * counters.HISTOGRAM_BUCKETS + bucket) * 8).value += 1
    value_at(plane.histogram_sums + histogram * 8).value += max(duration_ns, 0)


def allocate(settings: Settings) -> Plane:
    """The plane's memory for these settings: everything it will ever use."""
    slot_count = settings.server.max_connections + settings.limits.slot_reserve
    performance = settings.performance
    handoffs, bodies = performance.handoff_buffer_count, performance.body_buffer_count
    stride = (settings.limits.handoff_bytes_max + 1 + 4095) // 4096 * 4096
    size = performance.submission_entries
    assert slot_count < (1 << 24) - 1, "a tag has 24 bits for the slot"
    plane = Plane(
        globals=np.zeros(1, GLOBALS),
        streams=lazy_records(STREAM, slot_count),
        ranges=lazy_records(RANGE, slot_count * RANGE_ENTRIES),
        submissions=np.zeros(size, entries.SUBMISSION),
        completions=np.zeros(4 * size, entries.COMPLETION),
        channels=np.zeros(CHANNEL_COUNT_MAX, CHANNEL),
        events=np.zeros(CHANNEL_COUNT_MAX * messages.MESSAGE_BYTES_MAX, np.uint8),
        block_links=free_list(slot_count),
        handoff_links=free_list(handoffs),
        body_links=free_list(bodies),
        headers=np.zeros(handoffs, HEADER),
        vectors=np.zeros(handoffs, VECTOR),
        ancillary=np.zeros(handoffs, ANCILLARY),
        parked=np.zeros(WAITING_MAX, WAITING),
        strays=lazy_records(DESCRIPTOR, _stray_count_max(size, handoffs)),
        adopted=np.zeros(WAITING_MAX, WAITING),
        buckets=np.full(2 * BUCKET_COUNT, -1, np.int32).view(BUCKET),
        words=np.zeros(BUCKET_COUNT // 32, WORD),
        commands=np.zeros(COMMAND_BUFFER_BYTES, np.uint8),
        blocks=lazy_bytes(slot_count * performance.output_block_bytes),
        texts=lazy_bytes(slot_count * messages.TEXT_BYTES_MAX),
        closings=lazy_bytes(slot_count * messages.TEXT_BYTES_MAX),
        templates=np.zeros(TEMPLATE_BYTES_MAX, np.uint8),
        constants=np.zeros(512, np.uint8),
        scripts=np.zeros(SCRIPT_COUNT_MAX, SCRIPT),
        script_messages=np.zeros(SCRIPT_MESSAGES_MAX, SCRIPT_MESSAGE),
        script_parts=np.zeros(SCRIPT_PARTS_MAX, SCRIPT_PART),
        handoff_data=lazy_bytes(handoffs * stride),
        bodies=lazy_bytes(bodies * performance.body_buffer_bytes),
        discard=np.zeros(DISCARD_BYTES, np.uint8),
        counters=np.zeros(len(counters.COUNTERS), np.int64),
        histograms=np.zeros((len(counters.HISTOGRAMS), counters.HISTOGRAM_BUCKETS), np.int64),
        histogram_sums=np.zeros(len(counters.HISTOGRAMS), np.int64),
        snapshot=lazy_records(STREAM, slot_count),
        **relay_arrays(slot_count),
    )
    _set_globals(plane, settings, slot_count, stride)
    return plane


def _stray_count_max(submission_entries: int, handoff_buffer_count: int) -> int:
    """A power of two that holds whatever peers bring at once: descriptors to be closed come faster than closes go out.

    Each message being looked at can bring descriptors nobody wants, and has a peer. A flood of peers that find neither
    a slot nor a place to wait fills the completion queue at most twice before accepting has ended.
    """
    of_one_message = (ANCILLARY_BYTES - 16) // 4
    return 1 << (2 * 4 * submission_entries + of_one_message * handoff_buffer_count).bit_length()


def _set_globals(plane: Plane, settings: Settings, slot_count: int, stride: int) -> None:
    shared = plane.globals[0]
    for name, array in plane._asdict().items():
        if name != "globals":
            setattr(shared, name, array.ctypes.data)
    for offset, constant in _CONSTANTS:
        plane.constants[offset : offset + len(constant)] = np.frombuffer(constant, np.uint8)
    shared.slot_count = shared.block_count = slot_count
    set_relay_globals(plane, slot_count)
    shared.handoff_count = len(plane.handoff_links)
    shared.body_count = len(plane.body_links)
    shared.free_head = shared.ready_head = shared.ready_tail = -1
    shared.tell_ns = FOREVER_NS
    shared.listener_fd = shared.command_fd = -1
    shared.handoff_bytes_max = settings.limits.handoff_bytes_max
    shared.handoff_timeout_ns = settings.timeouts.handoff_timeout_ms * 1_000_000
    shared.handoff_stream = settings.server.socket_type == "stream"
    shared.block_bytes = settings.performance.output_block_bytes
    shared.body_buffer_bytes = settings.performance.body_buffer_bytes
    shared.zero_copy_bytes_min = settings.performance.zero_copy_bytes_min
    shared.linger_bytes_max = settings.streaming.linger_bytes_max
    shared.streams_bytes = slot_count * STREAM_BYTES
    shared.handoff_stride = stride
    shared.stray_mask = len(plane.strays) - 1
    shared.submission_mask = len(plane.submissions) - 1
    shared.completion_mask = len(plane.completions) - 1
    for channel in plane.channels:
        channel.fd = channel.head = channel.tail = -1


def read_bytes(address: int, count: int) -> bytes:
    """Copy `count` bytes out of the plane's memory (handoff data, a body piece) for the control plane."""
    return ctypes.string_at(address, count)
