"""The messages between the planes: commands go down a pipe, events come up one pipe per consumer thread.

A command is a header of 128 bytes, then its payload, padded to a multiple of 64; it is written whole, at most 4,096
bytes, without blocking, so that the kernel keeps it in one piece and several writers can share the pipe. An event is
one record of 64 bytes. docs/contract.md says what each means and who may send it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MESSAGE_BYTES_MAX = 4096
COMMAND_BYTES = 128
PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX - COMMAND_BYTES
PAYLOAD_ALIGNMENT = 64
EVENT_BYTES = 64
TEXT_BYTES_MAX = 64

# Commands. O: control plane only, W: the worker that feeds the stream, B: both.
OPEN = 1  # O  answer to HANDOFF: what to stream, or (source NONE) the response that refuses
START = 2  # W  a worker has taken the stream from the queue: llm_queued -> llm_pending
PUSH = 3  # W  payload bytes travel inside the message
PUSH_RANGE = 4  # W  bytes by address and length, the sender's until given back
FINISH = 5  # W  the source's end: the payload, then close
STOP = 6  # B  end now: the head part of the payload if no head has left, otherwise the rest
BODY_RETURN = 7  # W  the body buffer of the last BODY event is free again
ADOPT = (
    8  # O  take a socket of this process as if it had been handed over; with a source, and all that OPEN has: open it
)
DRAIN = 9  # O  accept no more; LISTENER_IDLE follows when the listener is the control plane's to close
SHUTDOWN_PLANE = 10  # O  leave the loop; every slot is free, or `flags` has FORCE
PING = 11  # O  PONG follows with the same `cookie`
TABLE = 12  # O  copy the stream table for reading; TABLE_READY follows
CONFIGURE = 13  # O  new values of the limits a SIGHUP may change
ENDPOINT = 14  # O  where connections of this number lead; the payload is an ENDPOINT_PAYLOAD
ATTEMPT = 15  # O  ask an upstream for the stream's bytes; the payload is an ATTEMPT_PAYLOAD
LET_GO = 16  # O  what FAILED lent is the plane's again

# Command flags.
STANDARD_HEAD = 1  # the streaming response head is put before the payload
CHUNKED = 2  # OPEN: the body is sent in HTTP/1.1 chunks
QUEUED = 4  # OPEN: a worker will START it (llm_queued); otherwise the plane makes it (streaming)
COMPLETE = 8  # FINISH: a true end, so a chunked body gets its last chunk
FORCE = 16  # SHUTDOWN_PLANE: whatever is still open is abandoned
KEEP_HALF_OPEN = 32  # OPEN: a client's FIN does not end the stream
REFUSAL = 64  # OPEN: the payload is a whole HTTP response; linger so that the client can read it
BODY_LENGTH = 128  # OPEN: `length` bytes of body follow on the socket
BODY_CHUNKED = 256  # OPEN: a chunked body follows on the socket
BODY_PREFIX = 512  # OPEN: the payload's last `prefix_bytes` bytes are body that was already read
CONTINUE_100 = 1024  # OPEN: the client waits for `100 Continue`
PARTIAL = 2048  # PUSH: the payload ends inside an event, so no keep-alive may follow it
KEEP_ALIVE = 4096  # PUSH by the control plane: head and comment, no token; deadlines and state stay
RAW = 8192  # PUSH, FINISH of an upstream source: the payload is the upstream's own body; `cookie` is the attempt

# Flags the plane keeps beside those of OPEN in a stream's `flags`.
FLAG_HEAD_SENT = 1 << 16  # a head has been queued: errors are events from now on
FLAG_SOURCE_DONE = 1 << 17  # the source's end is queued
FLAG_INPUT_SEEN = 1 << 18  # the client has sent bytes nobody reads
FLAG_HALF_CLOSED = 1 << 19  # the client has sent its FIN, and that does not end the stream
FLAG_STOPPED = 1 << 20  # STOPPED has been raised
FLAG_ENDED = 1 << 21  # ENDED has been raised
FLAG_LINGER = 1 << 22  # give the client time to read, discarding its input
FLAG_SHUT = 1 << 23  # our side is shut down
FLAG_DRAINED = 1 << 24  # the client's input is at its end, or we no longer care
FLAG_PARTIAL = 1 << 25  # inside an event
FLAG_EXPIRED = 1 << 26  # EXPIRED has been sent; the plane acts by itself if no STOP comes
FLAG_HEAD_BY_CONTROL = 1 << 27  # a keep-alive brought the head: the worker's own is skipped
FLAG_POLLED = 1 << 28  # the client was polled at least once, so FLAG_INPUT_SEEN can be believed
FLAG_BODY_LENT = 1 << 29  # the body buffer is the worker's
FLAG_TRUE_END = 1 << 30

# Sources of an OPEN.
SOURCE_NONE = 0
SOURCE_PACED = 1
SOURCE_PUSHED = 2
SOURCE_UPSTREAM = 3  # ATTEMPT says which; until then the stream is queued

# Flags of an ATTEMPT_PAYLOAD.
BY_WORKER = 1  # a thread talks to the upstream: START, then PUSH and FINISH with RAW
AS_CONTENT = 2  # events are rewritten as `data: {"content":...}`; otherwise passed on unchanged
PASS_USAGE = 4  # the client asked for the usage event

# Events; daemon/plane/event_records.py says what each means, and has its fields.
HANDOFF = 1
EXPIRED = 2
ENDED = 3
RELEASED = 4
BODY = 5
STOPPED = 6
LISTENER_IDLE = 7
PONG = 8
TABLE_READY = 9
ACCEPT_PAUSED = 10
ACCEPT_RESUMED = 11
KEEP_ALIVE_DUE = 12
ANSWERED = 13
FAILED = 14
USAGE = 15

# Event flags of HANDOFF.
DATA_TRUNCATED = 1  # the message was larger than limits.handoff_bytes_max
CONTROL_TRUNCATED = 2  # the kernel dropped descriptors
EXTRA_DESCRIPTORS = 4  # more than one came; the others are closed
ADOPTED = 8  # by ADOPT, whose cookie it has; there is no data
OPENED = 16  # ... and it has been opened as ADOPT said, so that no OPEN is awaited
# Event flags of FAILED.
FAILED_STREAMING = 1  # the client has had content: no other attempt can be made
# Event flags of BODY.
BODY_LAST = 1  # the upload is complete with this piece
BODY_TRUNCATED = 2  # the client's FIN or reset came first
BODY_MALFORMED = 4  # the chunked framing is wrong


def _record(names: list[tuple[str, str, int]], size: int) -> Any:
    fields = {
        "names": [name for name, _, _ in names],
        "formats": [kind for _, kind, _ in names],
        "offsets": [offset for _, _, offset in names],
        "itemsize": size,
    }
    return np.dtype((np.record, fields))


COMMAND = _record(
    [
        ("kind", "<u2", 0),
        ("flags", "<u2", 2),
        ("total_bytes", "<u4", 4),  # header, payload and padding
        ("slot", "<u4", 8),
        ("generation", "<u4", 12),
        ("payload_bytes", "<u4", 16),
        ("head_bytes", "<u4", 20),  # leading part of the payload that is head: never chunk-framed
        ("text_bytes", "<u2", 24),  # OPEN: leading part of the payload that is the stream's text for its script
        ("closing_bytes", "<u2", 26),  # OPEN: part behind it, before the head, that is its second text
        ("prefix_bytes", "<u4", 28),  # OPEN: trailing part that is body already read (BODY_PREFIX)
        ("source", "<u2", 32),
        ("channel", "<u2", 34),  # START: the event channel of the worker
        ("reason", "<u2", 36),  # FINISH, STOP: what ENDED will say
        ("script", "<u2", 38),
        ("client_fd", "<i4", 40),  # ADOPT
        ("cookie", "<i8", 48),  # ADOPT, PING
        ("address", "<i8", 56),  # PUSH_RANGE
        ("length", "<i8", 64),  # PUSH_RANGE; OPEN: Content-Length of the body
        ("message_count", "<i8", 72),  # paced: how many messages
        ("interval_ps", "<i8", 80),  # paced: picoseconds between messages, 0 = as fast as the socket takes
        ("latency_ms", "<u4", 88),  # paced: silence before anything leaves, the head included
        ("stream_timeout_ms", "<u4", 92),  # 0 = none, here and below
        ("queue_timeout_ms", "<u4", 96),
        ("first_byte_timeout_ms", "<u4", 100),
        ("silence_timeout_ms", "<u4", 104),
        ("keep_alive_ms", "<u4", 108),
        ("write_timeout_ms", "<u4", 112),
        ("linger_timeout_ms", "<u4", 116),
        ("handoff_timeout_ms", "<u4", 120),  # CONFIGURE
    ],
    COMMAND_BYTES,
)

RAW_CREDIT_BYTES = 8192
MODEL_BYTES_MAX = 48

ENDPOINT_PAYLOAD = _record(
    [
        ("address_bytes", "<u4", 0),  # of the sockaddr; 0 = forget
        ("idle_max", "<u4", 4),
        ("idle_timeout_ms", "<u4", 8),
        ("family", "<u2", 16),  # the sockaddr begins here
    ],
    128,
)
ATTEMPT_PAYLOAD = _record(
    [
        ("request_address", "<i8", 0),
        ("request_bytes", "<i8", 8),
        ("head_address", "<i8", 16),  # the head for the client
        ("head_bytes", "<u4", 24),  # 0 = the standard head
        ("endpoint", "<u4", 28),
        ("number", "<u4", 32),
        ("flags", "<u4", 36),
        ("connect_timeout_ms", "<u4", 40),  # 0 = none, here and below
        ("head_timeout_ms", "<u4", 44),
        ("first_token_timeout_ms", "<u4", 48),
        ("silence_timeout_ms", "<u4", 52),
        ("drain_timeout_ms", "<u4", 56),
        ("series", "<u4", 60),  # which histogram of inter-token times
    ],
    128,
)


def padded(payload_bytes: int) -> int:
    """Total size of a command with this payload, a multiple of 64."""
    return COMMAND_BYTES + (payload_bytes + PAYLOAD_ALIGNMENT - 1) // PAYLOAD_ALIGNMENT * PAYLOAD_ALIGNMENT
