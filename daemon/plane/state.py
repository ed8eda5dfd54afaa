"""The states of a slot, the reasons a stream ends for, and the one table of permitted transitions.

`STATES` and `TRANSITIONS` are the specification: `change_state` asserts it, and docs/architecture.md shows it as a
diagram. What the kernel still holds for a slot (`in_flight`) is kept apart from its state.
"""

from __future__ import annotations

from typing import Any

from config.compilation import inlined

FREE = 0
ACCEPTING = 1  # a peer is connected, nothing has been asked of it yet
RECEIVING_FD = 2  # waiting for the message with the descriptor
PARSING = 3  # the control plane looks at it; the client's descriptor is its
LLM_QUEUED = 4  # waits for a worker
LLM_PENDING = 5  # a worker has it; nothing sent yet
STREAMING = 6
CLOSING = 7  # no more output; cancelling, lingering, closing

STATES = ("free", "accepting", "receiving_fd", "parsing", "llm_queued", "llm_pending", "streaming", "closing")

TRANSITIONS: dict[int, tuple[int, ...]] = {
    FREE: (ACCEPTING, PARSING),  # PARSING: a socket adopted from the HTTP front
    ACCEPTING: (RECEIVING_FD, CLOSING),
    RECEIVING_FD: (PARSING, CLOSING),
    PARSING: (LLM_QUEUED, STREAMING, CLOSING),
    LLM_QUEUED: (LLM_PENDING, STREAMING, CLOSING),  # STREAMING: an answer that refuses
    LLM_PENDING: (STREAMING, LLM_QUEUED, CLOSING),  # LLM_QUEUED: another upstream may be asked
    STREAMING: (CLOSING,),
    CLOSING: (FREE,),
}


def transition_bits(transitions: dict[int, tuple[int, ...]]) -> int:
    """A table of at most eight states for compiled code: bit `8 * state + new` of one integer."""
    return sum(1 << (8 * state + new) for state, following in transitions.items() for new in following)


_PERMITTED = transition_bits(TRANSITIONS)


@inlined
def change_state(stream: Any, state: int) -> None:
    """Nothing else assigns a stream's state."""
    assert _PERMITTED >> (8 * stream.state + state) & 1, "a stream's state changes as TRANSITIONS permits"
    stream.state = state


@inlined
def begin_streaming(stream: Any) -> None:
    """Bytes of the response are queued, or it has ended without any; the stream may be streaming already."""
    if stream.state != STREAMING:
        change_state(stream, STREAMING)


# Reasons. The order is the wire format of ENDED and the label of streams_ended_total.
COMPLETE = 0
CLIENT_GONE = 1
WRITE_TIMEOUT = 2
STREAM_TIMEOUT = 3
QUEUE_TIMEOUT = 4
FIRST_BYTE_TIMEOUT = 5
SILENCE_TIMEOUT = 6
BACKEND_ERROR = 7
REFUSED = 8
SHUTDOWN = 9
HANDOFF_TIMEOUT = 10
HANDOFF_EMPTY = 11
HANDOFF_NO_DESCRIPTOR = 12
HANDOFF_ERROR = 13
SEND_ERROR = 14
PROTOCOL = 15
BODY_TRUNCATED = 16
DESCRIPTOR_REFUSED = 17
CONNECT_TIMEOUT = 18
HEAD_TIMEOUT = 19
FIRST_TOKEN_TIMEOUT = 20
UPSTREAM_ERROR = 21  # it said no, or something that cannot be understood
UPSTREAM_CUT = 22  # its answer ended before its end
UPSTREAM_UNREACHABLE = 23

REASONS = (
    "complete",
    "client_gone",
    "write_timeout",
    "stream_timeout",
    "queue_timeout",
    "first_byte_timeout",
    "silence_timeout",
    "backend_error",
    "refused",
    "shutdown",
    "handoff_timeout",
    "handoff_empty",
    "handoff_no_descriptor",
    "handoff_error",
    "send_error",
    "protocol",
    "body_truncated",
    "descriptor_refused",
    "connect_timeout",
    "head_timeout",
    "first_token_timeout",
    "upstream_error",
    "upstream_cut",
    "upstream_unreachable",
)

# Why an attempt to get an answer from an upstream failed: `reason` of FAILED. The names are backends.relay's.
(
    FAILURE_CONNECT,
    FAILURE_CONNECT_TIMEOUT,
    FAILURE_CERTIFICATE,
    FAILURE_RESET,
    FAILURE_HEAD_TIMEOUT,
    FAILURE_HEAD_MALFORMED,
    FAILURE_HEAD_TOO_LARGE,
    FAILURE_HTTP_VERSION,
    FAILURE_STATUS,
    FAILURE_REDIRECT,
    FAILURE_NOT_A_STREAM,
    FAILURE_COMPRESSED,
    FAILURE_FIRST_TOKEN_TIMEOUT,
    FAILURE_SILENCE_TIMEOUT,
    FAILURE_CUT,
    FAILURE_ERROR_EVENT,
    FAILURE_MALFORMED,
    FAILURE_EVENT_TOO_LARGE,
    FAILURE_NO_RESOURCES,
) = range(19)
FAILURES = (
    "connect_failed",
    "connect_timeout",
    "certificate",
    "reset",
    "head_timeout",
    "head_malformed",
    "head_too_large",
    "http_version",
    "status",
    "redirect",
    "not_a_stream",
    "compressed",
    "first_token_timeout",
    "silence_timeout",
    "cut",
    "error_event",
    "malformed",
    "event_too_large",
    "no_resources",
)
