"""The events that the plane sends: a record of 64 bytes for each kind, with that kind's own fields behind its number.

`EVENT_LAYOUTS` maps each kind of daemon/plane/messages.py to its record. Times are CLOCK_MONOTONIC in nanoseconds.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from daemon.plane import messages as m
from daemon.plane.message_layout import I32, I64, U16, U32, Field, Text48, dtype_of, place, struct_of


class HandoffEvent(NamedTuple):
    """To the control plane: a socket arrived, or was adopted. OPEN answers it."""

    flags: U16  # DATA_TRUNCATED, CONTROL_TRUNCATED, EXTRA_DESCRIPTORS, ADOPTED, OPENED
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    client_fd: I32  # the socket to stream on
    peer_fd: I32  # the connection that it came through; -1 where there is none
    data_address: I64  # where the message lies, in a buffer that is lent until OPEN
    data_bytes: I64  # its size
    accepted_ns: I64  # when it was accepted
    cookie: I64  # ADOPTED: that of the ADOPT


class ExpiredEvent(NamedTuple):
    """To the control plane: a deadline of an open stream has passed. STOP answers it."""

    reason: U16  # which deadline, as in REASONS
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before


class EndedEvent(NamedTuple):
    """To the control plane: both descriptors are closed and the slot is free."""

    reason: U16  # how the stream ended, as in REASONS
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    accepted_ns: I64  # when its socket was accepted
    ended_ns: I64  # when a relayed stream was over; 0 for others
    first_byte_after_ns: I64  # from the accept to the first byte that left; -1 = none has left
    sent_bytes: I64  # that the client's socket has taken
    message_count: I64  # of the source: pushes, or messages of a script


class ReleasedEvent(NamedTuple):
    """To the worker: bytes and ranges that are the sender's again. Both count from the stream's beginning."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    released_bytes: I64  # sent inside messages; of an upstream's body (RAW): since the START of the attempt
    released_ranges: I64  # sent by address


class BodyEvent(NamedTuple):
    """To the worker: a piece of the upload, or its end. BODY_RETURN answers it."""

    flags: U16  # BODY_LAST, BODY_TRUNCATED, BODY_MALFORMED
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    piece_address: I64  # where it lies, in a buffer that is lent until BODY_RETURN
    piece_bytes: I64  # its size


class StoppedEvent(NamedTuple):
    """To the worker: the last event of a stream. All bytes and ranges are the sender's again."""

    flags: U16  # COMPLETE: the true end had been reached, whatever the stream's reason is
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    reason: U16  # how the stream ended, as in REASONS
    released_bytes: I64  # as in RELEASED
    released_ranges: I64  # as in RELEASED


class ListenerIdleEvent(NamedTuple):
    """To the control plane: no accept is in flight any more, so the listener may be closed."""


class PongEvent(NamedTuple):
    """To the control plane: the answer to PING."""

    cookie: I64  # that of the PING


class TableReadyEvent(NamedTuple):
    """To the control plane: the copy that TABLE asked for is complete."""


class AcceptPausedEvent(NamedTuple):
    """To the control plane: accepting has stopped, because descriptors or slots have run out."""

    error: I32  # errno of the accept; 0 = no slot is free


class AcceptResumedEvent(NamedTuple):
    """To the control plane: accepting goes on."""


class KeepAliveDueEvent(NamedTuple):
    """To the control plane: no head has left and `keep_alive_ms` have passed. PUSH with KEEP_ALIVE may answer it."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before


class AnsweredEvent(NamedTuple):
    """To the control plane: the upstream's first token, once for each attempt; also one that is not for the client."""

    model_bytes: U16  # length of the name
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    model: Text48  # the name that the upstream gave, cut to what fits


class FailedEvent(NamedTuple):
    """To the control plane: an attempt has failed. RELEASE follows at once, then ATTEMPT or STOP."""

    flags: U16  # FAILED_STREAMING: the client has had content, so no other attempt can be made
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    failure: U16  # what happened, as in FAILURES
    status: I32  # HTTP status of the answer; 0 = none
    error: I32  # errno; 0 = none
    lent_address: I64  # where the answer (head, decoded body) or the error event's data lies, lent until RELEASE
    lent_bytes: I64  # its size, 64 KiB at most; 0 = nothing is lent
    head_bytes: I64  # how much of it is the answer's head
    attempt: I64  # number of the attempt


class UsageEvent(NamedTuple):
    """To the control plane: what is known of a relayed stream, right before its ENDED."""

    is_done: U16  # 1: the upstream's own end was seen
    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    malformed_count: I32  # events that are not JSON
    stale_count: I32  # kept connections that were dead
    prompt_tokens: I64  # -1 = the upstream did not say
    completion_tokens: I64  # -1 = the upstream did not say
    first_token_after_ns: I64  # from the accept to the first token; -1 = none
    cancel_ns: I64  # from the client's leaving to the upstream's closing; -1 = it did not leave
    token_count: I64  # events that carried a token


StreamEvent = (
    HandoffEvent
    | ExpiredEvent
    | EndedEvent
    | ReleasedEvent
    | BodyEvent
    | StoppedEvent
    | KeepAliveDueEvent
    | AnsweredEvent
    | FailedEvent
    | UsageEvent
)
WorkerEvent = ReleasedEvent | BodyEvent | StoppedEvent
Event = StreamEvent | ListenerIdleEvent | PongEvent | TableReadyEvent | AcceptPausedEvent | AcceptResumedEvent

KIND_BYTES = 2
SLOT_OFFSET = 4
GENERATION_OFFSET = 8


class EventLayout(NamedTuple):
    """How one kind of event lies in its 64 bytes."""

    record: type[Any]
    fields: tuple[Field, ...]
    dtype: Any
    struct: struct.Struct  # of the whole record; the kind is skipped


def _layout(record: type[Any]) -> EventLayout:
    fields = place(record, KIND_BYTES)
    for field in fields:
        expected = {"slot": SLOT_OFFSET, "generation": GENERATION_OFFSET}.get(field.name, field.offset)
        assert field.offset == expected, f"{field.name} of {record.__name__} lies at another offset than elsewhere"
    return EventLayout(record, fields, dtype_of(fields, m.EVENT_BYTES), struct_of(fields, 0, m.EVENT_BYTES))


EVENT_LAYOUTS: dict[int, EventLayout] = {
    m.HANDOFF: _layout(HandoffEvent),
    m.EXPIRED: _layout(ExpiredEvent),
    m.ENDED: _layout(EndedEvent),
    m.RELEASED: _layout(ReleasedEvent),
    m.BODY: _layout(BodyEvent),
    m.STOPPED: _layout(StoppedEvent),
    m.LISTENER_IDLE: _layout(ListenerIdleEvent),
    m.PONG: _layout(PongEvent),
    m.TABLE_READY: _layout(TableReadyEvent),
    m.ACCEPT_PAUSED: _layout(AcceptPausedEvent),
    m.ACCEPT_RESUMED: _layout(AcceptResumedEvent),
    m.KEEP_ALIVE_DUE: _layout(KeepAliveDueEvent),
    m.ANSWERED: _layout(AnsweredEvent),
    m.FAILED: _layout(FailedEvent),
    m.USAGE: _layout(UsageEvent),
}
# What all kinds have in common; `slot` and `generation` in those that name a stream.
EVENT_HEADER = dtype_of(
    (Field("kind", "<u2", 0), Field("slot", "<u4", SLOT_OFFSET), Field("generation", "<u4", GENERATION_OFFSET)),
    m.EVENT_BYTES,
)
assert EVENT_LAYOUTS[m.ANSWERED].dtype["model"].itemsize == m.MODEL_BYTES_MAX
