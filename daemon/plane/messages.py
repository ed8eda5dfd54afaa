"""The messages between the planes: commands go down a pipe, events come up one pipe per consumer thread.

A command is a record of 128 bytes, then its payload, padded to a multiple of 64; it is written whole, at most 4,096
bytes, without blocking, so that the kernel keeps it in one piece and several writers can share the pipe. An event is
one record of 64 bytes. Each kind has fields of its own (command_records.py, event_records.py).
"""

from __future__ import annotations

MESSAGE_BYTES_MAX = 4096
COMMAND_BYTES = 128
PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX - COMMAND_BYTES
PAYLOAD_ALIGNMENT = 64
EVENT_BYTES = 64
TEXT_BYTES_MAX = 64

# Commands; daemon/plane/command_records.py says what each means, and has its fields.
OPEN = 1
START = 2
PUSH = 3
PUSH_RANGE = 4
FINISH = 5
STOP = 6
BODY_RETURN = 7
ADOPT = 8
DRAIN = 9
SHUTDOWN_PLANE = 10
PING = 11
TABLE = 12
CONFIGURE = 13
ENDPOINT = 14
ATTEMPT = 15
RELEASE = 16

# Command flags.
STANDARD_HEAD = 1  # the streaming response head is put before the payload
CHUNKED = 2  # OPEN: the body is sent in HTTP/1.1 chunks
QUEUED = 4  # OPEN: a worker will START it (llm_queued); otherwise the plane makes it (streaming)
COMPLETE = 8  # FINISH: a true end, so a chunked body gets its last chunk
FORCE = 16  # SHUTDOWN_PLANE: whatever is still open is abandoned
KEEP_HALF_OPEN = 32  # OPEN: a client's FIN does not end the stream
REFUSAL = 64  # OPEN: the payload is a whole HTTP response; linger so that the client can read it
BODY_LENGTH = 128  # OPEN: `content_length` bytes of body follow on the socket
BODY_CHUNKED = 256  # OPEN: a chunked body follows on the socket
BODY_PREFIX = 512  # OPEN: the payload's last `prefix_bytes` bytes are body that was already read
CONTINUE_100 = 1024  # OPEN: the client waits for `100 Continue`
PARTIAL = 2048  # PUSH: the payload ends inside an event, so no keep-alive may follow it
KEEP_ALIVE = 4096  # PUSH by the control plane: head and comment, no token; deadlines and state stay
RAW = 8192  # PUSH, FINISH of an upstream source: the payload is the upstream's own body

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

# Flags of ATTEMPT.
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


RAW_CREDIT_BYTES = 8192
MODEL_BYTES_MAX = 48


def padded(payload_bytes: int) -> int:
    """Total size of a command with this payload, a multiple of 64."""
    return COMMAND_BYTES + (payload_bytes + PAYLOAD_ALIGNMENT - 1) // PAYLOAD_ALIGNMENT * PAYLOAD_ALIGNMENT
