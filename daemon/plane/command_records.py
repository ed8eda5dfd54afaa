"""The commands that the plane takes: a header, then the fields of its kind, 128 bytes together, then the payload.

`COMMAND_LAYOUTS` maps each kind of daemon/plane/messages.py to its record. Timeouts are in milliseconds; 0 = none.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from daemon.plane import messages as m
from daemon.plane.message_layout import I32, I64, U16, U32, Field, dtype_of, place, struct_of


class OpenCommand(NamedTuple):
    """From the control plane: the answer to HANDOFF. What to stream or, with SOURCE_NONE, the response that refuses.

    The payload is the script's two texts, then head, then the first bytes of the stream, then body already read.
    """

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    head_bytes: U16 = 0  # part of the payload that is head: never in chunks
    text_bytes: U16 = 0  # leading part of the payload that is the script's text
    closing_bytes: U16 = 0  # part behind it that is the script's second text
    flags: U16 = 0  # STANDARD_HEAD, CHUNKED, QUEUED, KEEP_HALF_OPEN, REFUSAL, BODY_*, CONTINUE_100
    prefix_bytes: U16 = 0  # BODY_PREFIX: trailing part of the payload that is body already read
    source: U16 = 0  # SOURCE_NONE, SOURCE_PACED, SOURCE_PUSHED, SOURCE_UPSTREAM
    reason: U16 = 0  # SOURCE_NONE: what ENDED will say, as in REASONS; 0 = refused
    script: U16 = 0  # paced: number of the script
    content_length: I64 = 0  # BODY_LENGTH: how many bytes of body there are, those already read included
    message_count: I64 = 0  # paced: how many messages
    interval_ps: I64 = 0  # paced: picoseconds between messages; 0 = as fast as the socket takes them
    latency_ms: U32 = 0  # paced: silence before anything leaves, the head included
    stream_timeout_ms: U32 = 0  # for the whole stream
    queue_timeout_ms: U32 = 0  # in llm_queued
    first_byte_timeout_ms: U32 = 0  # in llm_pending
    silence_timeout_ms: U32 = 0  # between two pieces of a source
    keep_alive_ms: U32 = 0  # silence after which a comment is sent
    write_timeout_ms: U32 = 0  # for a send that the client does not take
    linger_timeout_ms: U32 = 0  # for the client to read the end


class AdoptCommand(NamedTuple):
    """From the control plane: take a socket of this process as if it had been handed over.

    These fields follow those of OPEN. Where these name a source, the stream is opened at once if a slot is free.
    """

    client_fd: I32  # the socket, the plane's from now
    cookie: I64  # for the HANDOFF that follows


class StartCommand(NamedTuple):
    """From the worker: it has taken the stream from the queue, or its upstream has answered."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    channel: U16  # the worker's event channel
    attempt: U32 = 0  # of a relayed stream: number of the attempt


class PushCommand(NamedTuple):
    """From the worker: bytes for the client, in the payload. With KEEP_ALIVE from the control plane."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    head_bytes: U16 = 0  # leading part of the payload that is head: never in chunks
    flags: U16 = 0  # STANDARD_HEAD, PARTIAL, KEEP_ALIVE, RAW
    attempt: U32 = 0  # RAW: number of the attempt


class PushRangeCommand(NamedTuple):
    """From the worker: bytes for the client, by address. They are lent until RELEASED or STOPPED gives them back."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    flags: U16  # PARTIAL
    range_address: I64  # where they lie
    range_bytes: I64  # how many


class FinishCommand(NamedTuple):
    """From the worker: the source's end. The payload is sent, then the stream closes."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    head_bytes: U16 = 0  # leading part of the payload that is head: never in chunks
    flags: U16 = 0  # STANDARD_HEAD, COMPLETE, RAW
    attempt: U32 = 0  # RAW: number of the attempt
    reason: U16 = 0  # what ENDED will say, as in REASONS


class StopCommand(NamedTuple):
    """From the control plane or the worker: end now. The payload has both endings."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    head_bytes: U16  # leading part of the payload: a response, for when no head has left; otherwise the rest is sent
    reason: U16  # what ENDED will say, as in REASONS


class BodyReturnCommand(NamedTuple):
    """From the worker: the buffer of the last BODY is the plane's again."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before


class DrainCommand(NamedTuple):
    """From the control plane: accept no more. LISTENER_IDLE follows."""


class ShutdownPlaneCommand(NamedTuple):
    """From the control plane: leave the loop. Every slot is free, or FORCE is set."""

    flags: U16 = 0  # FORCE


class PingCommand(NamedTuple):
    """From the control plane: PONG follows."""

    cookie: I64  # for the PONG


class TableCommand(NamedTuple):
    """From the control plane: copy the stream table for reading. TABLE_READY follows."""


class ConfigureCommand(NamedTuple):
    """From the control plane: the limits of the plane that a reload may change."""

    handoff_timeout_ms: U32  # for a peer to send its message


class EndpointCommand(NamedTuple):
    """From the control plane: where connections of this number lead. The payload is a sockaddr; empty = nowhere."""

    endpoint: U16  # the number
    idle_max: U32 = 0  # idle connections that are kept
    idle_timeout_ms: U32 = 0  # how long each is kept


class AttemptCommand(NamedTuple):
    """From the control plane: ask an upstream for the stream's bytes."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before
    flags: U16  # BY_WORKER, AS_CONTENT, PASS_USAGE
    endpoint: U16  # number of an ENDPOINT
    attempt: U32  # number of the attempt, from 1 for each stream
    request_address: I64  # where the whole request lies, lent until ENDED
    request_bytes: I64  # its size
    head_address: I64  # where the head for the client lies, lent until ENDED
    head_bytes: U32  # its size; 0 = the standard head
    series: U32  # which histogram of inter-token times counts it
    connect_timeout_ms: U32  # for a connection
    head_timeout_ms: U32  # from the request to the answer's head
    first_token_timeout_ms: U32  # from the head to the first token
    silence_timeout_ms: U32  # between two tokens
    drain_timeout_ms: U32  # how long the answer is read on when the client has left


class ReleaseCommand(NamedTuple):
    """From the control plane: what FAILED lent is the plane's again."""

    slot: U32  # index in the stream table
    generation: U32  # how often the slot was used before


Command = (
    OpenCommand
    | StartCommand
    | PushCommand
    | PushRangeCommand
    | FinishCommand
    | StopCommand
    | BodyReturnCommand
    | DrainCommand
    | ShutdownPlaneCommand
    | PingCommand
    | TableCommand
    | ConfigureCommand
    | EndpointCommand
    | AttemptCommand
    | ReleaseCommand
)

SLOT_OFFSET = 8
GENERATION_OFFSET = 12
HEADER_FIELDS = (
    Field("kind", "<u2", 0),
    Field("total_bytes", "<u2", 2),  # header, fields, payload and padding
    Field("payload_bytes", "<u2", 4),
)
# What all kinds have in common; `slot` and `generation` in those that name a stream.
COMMAND_HEADER = dtype_of(
    (*HEADER_FIELDS, Field("slot", "<u4", SLOT_OFFSET), Field("generation", "<u4", GENERATION_OFFSET)),
    m.COMMAND_BYTES,
)


class CommandLayout(NamedTuple):
    """How one kind of command lies in its 128 bytes."""

    record: type[Any]
    fields: tuple[Field, ...]
    dtype: Any  # header included
    struct: struct.Struct  # header included: kind, total_bytes, payload_bytes, then the record's fields


def _layout(record: type[Any], begin: int = SLOT_OFFSET) -> CommandLayout:
    fields = place(record, begin)
    for field in fields:
        expected = {"slot": SLOT_OFFSET, "generation": GENERATION_OFFSET}.get(field.name, field.offset)
        assert field.offset == expected, f"{field.name} of {record.__name__} lies at another offset than elsewhere"
    whole = (*HEADER_FIELDS, *fields)
    return CommandLayout(record, fields, dtype_of(whole, m.COMMAND_BYTES), struct_of(whole, 0, m.COMMAND_BYTES))


_open = _layout(OpenCommand)
COMMAND_LAYOUTS: dict[int, CommandLayout] = {
    m.OPEN: _open,
    m.START: _layout(StartCommand),
    m.PUSH: _layout(PushCommand),
    m.PUSH_RANGE: _layout(PushRangeCommand),
    m.FINISH: _layout(FinishCommand),
    m.STOP: _layout(StopCommand),
    m.BODY_RETURN: _layout(BodyReturnCommand),
    m.ADOPT: _layout(AdoptCommand, begin=_open.fields[-1].end),
    m.DRAIN: _layout(DrainCommand),
    m.SHUTDOWN_PLANE: _layout(ShutdownPlaneCommand),
    m.PING: _layout(PingCommand),
    m.TABLE: _layout(TableCommand),
    m.CONFIGURE: _layout(ConfigureCommand),
    m.ENDPOINT: _layout(EndpointCommand),
    m.ATTEMPT: _layout(AttemptCommand),
    m.RELEASE: _layout(ReleaseCommand),
}
