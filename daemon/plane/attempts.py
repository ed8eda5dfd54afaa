"""Attempts: what the control plane and workers ask of a relayed stream, and the connection that an attempt takes."""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import connections as c
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.assembly import give_assembly
from daemon.plane.command_records import COMMAND_LAYOUTS
from daemon.plane.counters import COMMANDS_STALE, UPSTREAM_BYTES
from daemon.plane.entries import (
    EMFILE,
)
from daemon.plane.lists import ready_push
from daemon.plane.memory import copy_bytes
from daemon.plane.records import record_accessor
from daemon.plane.relay import advance, body_ended, take
from daemon.plane.relay_failure import (
    BY_WORKER,
    CONNECTING,
    EVENTS,
    FAILED,
    HEAD,
    NONE,
    fail,
)
from daemon.plane.relay_table import (
    ENDPOINT_ADDRESS_BYTES,
    ENDPOINT_ADDRESS_OFFSET,
    ENDPOINT_BYTES,
    ENDPOINT_COUNT_MAX,
    endpoint_of,
    relay_of,
)
from daemon.plane.table import count, stream_of
from daemon.plane.timers import TICK_NS, timer_set

MILLISECOND_NS = 1_000_000
CONNECT_RETRY_NS = 5 * TICK_NS
_attempt_at = record_accessor(COMMAND_LAYOUTS[m.ATTEMPT].dtype)
_endpoint_command_at = record_accessor(COMMAND_LAYOUTS[m.ENDPOINT].dtype)


@compiled
def open_relay(plane: Any, slot: int, queue_timeout_ms: int) -> None:
    """A stream with an upstream source is admitted: first values of its relay."""
    relay = relay_of(plane, slot)
    relay.queue_timeout_ns = queue_timeout_ms * MILLISECOND_NS
    relay.connection = relay.assembly = relay.large = -1
    relay.phase = NONE
    relay.number = relay.closing_count = relay.assembly_bytes = relay.lent_bytes = relay.is_lent = 0
    relay.drain_timeout_ns = relay.first_token_timeout_ns = relay.silence_timeout_ns = 0
    relay.failure = relay.status = relay.error = relay.kept_head_bytes = 0
    relay.token_count = relay.first_token_ns = relay.last_token_ns = relay.left_ns = relay.cancel_ns = 0
    relay.prompt_tokens = relay.completion_tokens = -1
    relay.wake_ns = relay.raw_taken = relay.raw_reported = 0
    relay.malformed = relay.stale = relay.model_bytes = 0
    relay.is_draining = relay.is_answered = relay.is_done = relay.is_held = 0


@compiled
def set_endpoint(plane: Any, address: int) -> None:
    """ENDPOINT: where connections of a number lead from now; nowhere, where the payload is empty."""
    command = _endpoint_command_at(address)
    number, address_bytes = int(command.endpoint), int(command.payload_bytes)
    assert 0 <= number < ENDPOINT_COUNT_MAX
    endpoint = endpoint_of(plane, number)
    if plane.endpoints_used <= number:
        for index in range(int(plane.endpoints_used), number + 1):
            endpoint_of(plane, index).idle_first = endpoint_of(plane, index).idle_last = -1
        plane.endpoints_used = number + 1
    if address_bytes == 0:
        c.forget_endpoint(plane, number)
        return
    assert address_bytes <= ENDPOINT_ADDRESS_BYTES
    endpoint.address_bytes = address_bytes
    endpoint.idle_max = command.idle_max
    endpoint.idle_timeout_ns = int(command.idle_timeout_ms) * MILLISECOND_NS
    target = plane.endpoints + number * ENDPOINT_BYTES + ENDPOINT_ADDRESS_OFFSET
    copy_bytes(target, address + m.COMMAND_BYTES, address_bytes)


@compiled
def attempt(plane: Any, slot: int, address: int) -> None:
    """ATTEMPT: ask an upstream; the stream waits in the queue, and nothing of an earlier attempt is lent any more."""
    stream, relay, command = stream_of(plane, slot), relay_of(plane, slot), _attempt_at(address)
    waits = stream.state == st.LLM_QUEUED and (relay.phase == NONE or relay.phase == FAILED)
    # A worker's attempt that failed before its START is only known to the control plane.
    waits = waits or (stream.state == st.LLM_PENDING and relay.phase == BY_WORKER)
    ready = stream.source == m.SOURCE_UPSTREAM and waits
    if not ready or relay.is_lent or stream.flags & (m.FLAG_SOURCE_DONE | m.FLAG_EXPIRED):
        count(plane, COMMANDS_STALE, 1)
        return
    relay.request_address = command.request_address
    relay.request_bytes = command.request_bytes
    relay.head_address = command.head_address
    relay.head_bytes = command.head_bytes
    relay.endpoint = command.endpoint
    relay.number = command.attempt
    relay.flags = command.flags
    relay.series = command.series
    relay.connect_timeout_ns = int(command.connect_timeout_ms) * MILLISECOND_NS
    relay.head_timeout_ns = int(command.head_timeout_ms) * MILLISECOND_NS
    relay.first_token_timeout_ns = int(command.first_token_timeout_ms) * MILLISECOND_NS
    relay.silence_timeout_ns = int(command.silence_timeout_ms) * MILLISECOND_NS
    relay.drain_timeout_ns = int(command.drain_timeout_ms) * MILLISECOND_NS
    give_assembly(plane, slot)
    _restart(relay)
    stream.paused = 0
    if stream.state != st.LLM_PENDING:
        st.change_state(stream, st.LLM_PENDING)
    if relay.flags & m.BY_WORKER:
        relay.phase = BY_WORKER
        stream.phase_deadline_ns = 0
    else:
        connect(plane, slot, True)
    ready_push(plane, slot)


@inlined
def _restart(relay: Any) -> None:
    """Nothing has been read of the answer."""
    relay.scan_resume = relay.kept_head_bytes = relay.body_ended = relay.began = relay.lent_bytes = 0
    relay.failure = relay.status = relay.error = 0
    relay.raw_taken = relay.raw_reported = relay.wake_ns = 0
    relay.finish = relay.valid = relay.is_held = relay.model_bytes = 0
    relay.prompt_tokens = relay.completion_tokens = -1
    relay.malformed_before = relay.malformed
    relay.is_answered = 0
    relay.token_count = relay.first_token_ns = relay.last_token_ns = 0


@inlined
def set_deadline(plane: Any, slot: int, timeout_ns: int) -> None:
    stream = stream_of(plane, slot)
    if not stream.flags & m.FLAG_EXPIRED:
        stream.phase_deadline_ns = plane.now_ns + timeout_ns if timeout_ns else 0
        ready_push(plane, slot)


@inlined
def try_again(plane: Any, slot: int) -> None:
    """Connecting could not go on, and may soon: the connect timeout bounds how often."""
    relay = relay_of(plane, slot)
    relay.wake_ns = plane.now_ns + CONNECT_RETRY_NS
    timer_set(plane, slot, relay.wake_ns)


@compiled
def connect(plane: Any, slot: int, may_reuse: bool) -> None:
    """Give the stream a connection: one that is kept, or a fresh one."""
    relay = relay_of(plane, slot)
    if endpoint_of(plane, relay.endpoint).address_bytes == 0:
        fail(plane, slot, st.FAILURE_CONNECT, 0, 0)
        return
    if may_reuse and c.reuse_connection(plane, slot, relay.endpoint) >= 0:
        relay.phase = HEAD
        set_deadline(plane, slot, relay.head_timeout_ns)
        return
    if c.open_connection(plane, slot, relay.endpoint) < 0:
        if not c.evict_idle(plane):
            fail(plane, slot, st.FAILURE_NO_RESOURCES, 0, EMFILE)
            return
        try_again(plane, slot)
    if relay.phase != CONNECTING:
        relay.phase = CONNECTING
        set_deadline(plane, slot, relay.connect_timeout_ns)


@compiled
def start_by_worker(plane: Any, slot: int, channel: int, number: int) -> None:
    """A worker's upstream has answered: its body follows."""
    stream, relay = stream_of(plane, slot), relay_of(plane, slot)
    if relay.phase != BY_WORKER or relay.number != number or stream.flags & m.FLAG_SOURCE_DONE:
        count(plane, COMMANDS_STALE, 1)
        return
    stream.channel = channel
    relay.phase = EVENTS
    set_deadline(plane, slot, relay.first_token_timeout_ns)


@compiled
def take_raw(plane: Any, slot: int, number: int, address: int, byte_count: int) -> None:
    """Body bytes that a worker has received."""
    relay = relay_of(plane, slot)
    if relay.phase != EVENTS or relay.number != number or relay.body_ended:
        count(plane, COMMANDS_STALE, 1)
        return
    relay.raw_taken += byte_count
    count(plane, UPSTREAM_BYTES, byte_count)
    take(plane, slot, address, byte_count)
    advance(plane, slot)


@compiled
def end_raw(plane: Any, slot: int, number: int, is_clean: bool) -> None:
    """The body that a worker receives is over."""
    relay = relay_of(plane, slot)
    if relay.phase != EVENTS or relay.number != number or relay.body_ended:
        count(plane, COMMANDS_STALE, 1)
        return
    body_ended(plane, slot, is_clean)
