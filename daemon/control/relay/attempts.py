"""Relayed streams, from the control plane's side: attempts are begun, failures told to the backend, ends accounted for.

The data plane carries plain HTTP/1.1 attempts out, `Transfers` the others. Everything a command names by address (the
request, a head of one's own) is kept in the stream's record until ENDED. Main thread.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from backends.relay import Failure, FailureKind, Outcome, RelayError
from daemon.control.channel.commands import pack
from daemon.control.channel.events import Handler, handler
from daemon.control.channel.responses import Ending, answer_of, either
from daemon.control.process.rate_limited_log import RateLimitedLog
from daemon.control.process.supervision import essential
from daemon.control.relay.endpoints import Endpoints
from daemon.control.relay.outcomes import outcome_of, unopened_outcome
from daemon.control.stream.relayed import Relayed
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.command_records import AttemptCommand, ReleaseCommand, StopCommand
from daemon.plane.event_records import AnsweredEvent, EndedEvent, FailedEvent, UsageEvent
from daemon.plane.relay_table import SERIES_COUNT_MAX

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from backends.relay import Attempt, Origin, Relay
    from daemon.control.channel.command_pipe import CommandWriter
    from daemon.control.relay.reachability import Reachability
    from daemon.control.relay.resolver import Resolver
    from daemon.control.stream.client_outcome import Told
    from daemon.control.stream.stream import Stream
    from daemon.control.transfers.client import Transfers

logger = logging.getLogger(__name__)

_OTHER = ("other", "other")  # the series of those beyond SERIES_COUNT_MAX
_KINDS = tuple(FailureKind(name) for name in st.FAILURES)
_UNREACHED = frozenset({FailureKind.CONNECT, FailureKind.CONNECT_TIMEOUT})
# What a stream ends with that failed for good.
_REASONS = {
    FailureKind.CONNECT: st.UPSTREAM_UNREACHABLE,
    FailureKind.CERTIFICATE: st.UPSTREAM_UNREACHABLE,
    FailureKind.CONNECT_TIMEOUT: st.CONNECT_TIMEOUT,
    FailureKind.HEAD_TIMEOUT: st.HEAD_TIMEOUT,
    FailureKind.FIRST_TOKEN_TIMEOUT: st.FIRST_TOKEN_TIMEOUT,
    FailureKind.SILENCE_TIMEOUT: st.SILENCE_TIMEOUT,
    FailureKind.RESET: st.UPSTREAM_CUT,
    FailureKind.CUT: st.UPSTREAM_CUT,
}


class _Parts(NamedTuple):
    """What relays are made with."""

    loop: asyncio.AbstractEventLoop
    writer: CommandWriter
    resolver: Resolver
    reachability: Reachability
    stream_of: Callable[[int], Stream | None]


class Relays:
    """All relayed streams. `transfers` is set once it is there."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        writer: CommandWriter,
        resolver: Resolver,
        reachability: Reachability,
        stream_of: Callable[[int], Stream | None],
    ) -> None:
        """`stream_of` finds the stream of a slot."""
        self._parts = _Parts(loop, writer, resolver, reachability, stream_of)
        self.transfers: Transfers | None = None
        self.series: list[tuple[str, str]] = [_OTHER]
        self.count = 0
        self._series_numbers: dict[tuple[str, str], int] = {_OTHER: 0}
        self._endpoints = Endpoints(writer.add)
        self._untold: dict[Told, tuple[Relay, Outcome]] = {}  # over, but not what their clients get
        self._rare = RateLimitedLog(logger)
        resolver.changed = self._forget

    @property
    def handlers(self) -> list[Handler]:
        """For the EventReader."""
        return [
            handler(AnsweredEvent, self._on_response),
            handler(FailedEvent, self._on_failed),
            handler(UsageEvent, self._on_usage),
        ]

    # ---- a stream's beginning

    def first(self, relay: Relay) -> Relayed:
        """The stream's first attempt is chosen. Raises RelayError; the relay has been told then that it is over."""
        relayed = Relayed(relay)
        try:
            relayed.attempt = relay.first()
        except RelayError:
            relay.ended(unopened_outcome(st.REFUSED))
            raise
        return relayed

    def abandon(self, relayed: Relayed, reason: int = st.REFUSED) -> None:
        """The stream is not opened, because its client has left meanwhile, or for another reason of the plane's."""
        relayed.attempt = None
        self._account(relayed, unopened_outcome(reason))

    def begin(self, stream: Stream) -> None:
        """Its OPEN is on its way: make the attempt that was chosen."""
        assert stream.relayed is not None
        assert stream.relayed.attempt is not None
        self.count += 1
        self._begin(stream, stream.relayed, stream.relayed.attempt)

    def _begin(self, stream: Stream, relayed: Relayed, attempt: Attempt) -> None:
        relayed.attempt = attempt
        relayed.addresses = ()
        if attempt.delay_ms > 0:
            loop = self._parts.loop
            relayed.timer = loop.call_later(
                attempt.delay_ms / 1000, essential("relays", self._later), stream, relayed, attempt
            )
        else:
            self._start(stream, relayed, attempt)

    def _later(self, stream: Stream, relayed: Relayed, attempt: Attempt) -> None:
        """A delay, or a lookup, is over."""
        if self._parts.stream_of(stream.slot) is stream and relayed.attempt is attempt:
            self._start(stream, relayed, attempt)
            self._parts.writer.flush()

    def _start(self, stream: Stream, relayed: Relayed, attempt: Attempt) -> None:
        origin = attempt.origin
        relayed.by_worker = not origin.is_plain
        if relayed.by_worker:
            self._send(stream, relayed, attempt, 0, b"")
            assert self.transfers is not None
            begin = functools.partial(self.transfers.begin, stream.slot, stream.generation, relayed.number, attempt)
            self._parts.writer.after_flush(begin)
            return
        addresses = self._parts.resolver.addresses(origin)
        if addresses is None:
            self._parts.resolver.wanted(origin, functools.partial(self._later, stream, relayed, attempt))
        elif not addresses:
            self._failed(stream, relayed, Failure(FailureKind.CONNECT, detail="its name cannot be resolved"))
        else:
            relayed.addresses = addresses
            self._try_address(stream, relayed, attempt, 0)

    def _try_address(self, stream: Stream, relayed: Relayed, attempt: Attempt, first: int) -> None:
        """Have the plane ask at the first address, from this one on, that there is an endpoint for."""
        assert relayed.endpoint < 0
        for index in range(first, len(relayed.addresses)):
            endpoint = self._endpoints.take(attempt.origin, relayed.addresses[index])
            if endpoint >= 0:
                relayed.address_index, relayed.endpoint = index, endpoint
                self._send(stream, relayed, attempt, endpoint, _request(attempt))
                return
        self._failed(stream, relayed, Failure(FailureKind.NO_RESOURCES, detail="too many addresses of upstreams"))

    def _release_endpoint(self, relayed: Relayed) -> None:
        """The plane's attempt is over, if it made one."""
        if relayed.endpoint >= 0:
            self._endpoints.give_back(relayed.endpoint)
            relayed.endpoint = -1

    def _send(self, stream: Stream, relayed: Relayed, attempt: Attempt, endpoint: int, request: bytes) -> None:
        """The command that makes the attempt."""
        relay, origin = relayed.relay, attempt.origin
        relayed.number += 1
        head = stream.head or b""
        relayed.kept.append(request)  # an earlier one may still be read by a send that is being cancelled
        flags = m.BY_WORKER if relayed.by_worker else 0
        flags |= m.AS_CONTENT if relay.format == "content" else 0
        flags |= m.PASS_USAGE if relay.passes_usage else 0
        command = AttemptCommand(
            slot=stream.slot,
            generation=stream.generation,
            flags=flags,
            endpoint=endpoint,
            attempt=relayed.number,
            request_address=_address(request),
            request_bytes=len(request),
            head_address=_address(head),
            head_bytes=len(head),
            series=self._series(origin.name, attempt.model),
            connect_timeout_ms=origin.connect_timeout_ms,
            head_timeout_ms=origin.head_timeout_ms,
            first_token_timeout_ms=origin.first_token_timeout_ms,
            silence_timeout_ms=origin.silence_timeout_ms,
            drain_timeout_ms=origin.drain_timeout_ms,
        )
        self._parts.writer.add(pack(command))

    def _series(self, upstream: str, model: str) -> int:
        key = (upstream, model)
        number = self._series_numbers.get(key)
        if number is None:
            if len(self.series) >= SERIES_COUNT_MAX:
                return 0
            number = self._series_numbers[key] = len(self.series)
            self.series.append(key)
        return number

    def _forget(self, _origin: Origin, removed: tuple[bytes, ...]) -> None:
        """Addresses that a name no longer has: connections kept there are closed."""
        self._endpoints.forget(removed)
        self._parts.writer.flush()

    def forget_others(self, origins: Iterable[Origin]) -> None:
        """After a reload: connections kept for upstreams that are asked no more are closed."""
        wanted: set[bytes] = set()
        for origin in origins:
            wanted.update(self._parts.resolver.addresses(origin) or ())
        self._endpoints.forget_others(wanted)
        self._parts.writer.flush()

    # ---- what the plane and the transfers tell

    def _find(self, slot: int, generation: int) -> tuple[Stream, Relayed] | None:
        stream = self._parts.stream_of(slot)
        if stream is None or stream.generation != generation or stream.relayed is None:
            return None
        return stream, stream.relayed

    def _on_response(self, event: AnsweredEvent) -> None:
        found = self._find(event.slot, event.generation)
        if found is None:
            return
        _, relayed = found
        assert relayed.attempt is not None
        model = event.model[: event.model_bytes].decode(errors="replace")
        self._parts.reachability.saw(relayed.attempt.origin.name, reachable=True)
        relayed.relay.answered(model)

    def _on_failed(self, event: FailedEvent) -> None:
        """An attempt in the plane failed. What it lends is copied, and given back whatever has become of the stream."""
        slot, generation, head_bytes = event.slot, event.generation, event.head_bytes
        lent = ctypes.string_at(event.lent_address, event.lent_bytes) if event.lent_bytes > 0 else b""
        self._parts.writer.add(pack(ReleaseCommand(slot, generation)))
        found = self._find(slot, generation)
        if found is None or found[1].number != event.attempt:
            return
        stream, relayed = found
        assert relayed.attempt is not None
        self._release_endpoint(relayed)
        kind = _KINDS[event.failure]
        is_streaming = bool(event.flags & m.FAILED_STREAMING)
        if kind is not FailureKind.NO_RESOURCES and not relayed.by_worker:
            self._saw(relayed.attempt, kind)
        if kind in _UNREACHED and relayed.address_index + 1 < len(relayed.addresses):
            self._try_address(stream, relayed, relayed.attempt, relayed.address_index + 1)
            return
        if relayed.by_worker and self.transfers is not None:
            self.transfers.cancel(slot, generation)
        headers = _headers(lent[:head_bytes])
        detail = "" if event.error == 0 else os.strerror(event.error)
        failure = Failure(kind, event.status, headers, lent[head_bytes:], detail, is_streaming)
        self._failed(stream, relayed, failure)

    def transfer_failed(self, slot: int, generation: int, number: int, failure: Failure) -> None:
        """An attempt by libcurl failed before its body."""
        found = self._find(slot, generation)
        if found is None or found[1].number != number:
            return
        stream, relayed = found
        assert relayed.attempt is not None
        self._saw(relayed.attempt, failure.kind)
        self._failed(stream, relayed, failure)
        self._parts.writer.flush()

    def _saw(self, attempt: Attempt, kind: FailureKind) -> None:
        """What a failure says of whether its upstream can be reached."""
        self._parts.reachability.saw(attempt.origin.name, reachable=kind not in _UNREACHED)

    def _failed(self, stream: Stream, relayed: Relayed, failure: Failure) -> None:
        """Ask the backend whom to ask next, or say what it has to say."""
        try:
            attempt = relayed.relay.failed(failure)
        except RelayError as error:
            self._give_up(stream, failure.kind, error)
            return
        self._begin(stream, relayed, attempt)

    def _give_up(self, stream: Stream, kind: FailureKind, error: RelayError) -> None:
        ending = _ending(error, stream)
        reason = _REASONS.get(kind, st.UPSTREAM_ERROR)
        assert stream.relayed is not None
        attempt, request_id = stream.relayed.attempt, stream.relayed.relay.request_id
        upstream = "" if attempt is None else attempt.origin.name
        told = {"upstream": upstream, "request_id": request_id, "status": error.status, "detail": error.message}
        # By upstream, as there are few: what one does must not hide what another does.
        self._rare.warn("relay failed", f"{kind.value} {upstream}", **told)
        stop = StopCommand(stream.slot, stream.generation, ending.head_bytes, reason)
        self._parts.writer.add(pack(stop, ending.payload))

    def _on_usage(self, event: UsageEvent) -> None:
        found = self._find(event.slot, event.generation)
        if found is not None:
            found[1].usage = event

    # ---- a stream's end

    def ended(self, stream: Stream, event: EndedEvent) -> None:
        """ENDED has come: nothing refers to the stream's bytes any more."""
        relayed = stream.relayed
        assert relayed is not None
        self.count -= 1
        if relayed.timer is not None:
            relayed.timer.cancel()
        if relayed.by_worker and self.transfers is not None:
            # The plane knows how long closing took of its own connections only.
            closed = relayed.relay.cancelled if event.reason == st.CLIENT_GONE else None
            self.transfers.cancel(stream.slot, stream.generation, closed)
        self._release_endpoint(relayed)
        relayed.attempt = None
        self._account(relayed, outcome_of(event, relayed.usage))
        relayed.kept.clear()

    def _account(self, relayed: Relayed, outcome: Outcome) -> None:
        """Have the backend account for it: with what its client was told, once somebody knows."""
        if relayed.told is None:
            relayed.relay.ended(outcome)
            return
        self._untold[relayed.told] = relayed.relay, outcome
        relayed.told.when_known(self._on_told)

    def _on_told(self, told: Told) -> None:
        found = self._untold.pop(told, None)
        if found is not None:  # otherwise the daemon has ended meanwhile
            relay, outcome = found
            relay.ended(outcome._replace(status=told.status, error=told.error))

    def settle(self) -> None:
        """The daemon ends, and nobody tells any more: what is left has ended as the plane saw it."""
        while self._untold:
            relay, outcome = self._untold.popitem()[1]
            relay.ended(outcome)


def _request(attempt: Attempt) -> bytes:
    """The whole HTTP/1.1 request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in attempt.headers)
    head = f"POST {attempt.path} HTTP/1.1\r\nHost: {attempt.origin.authority}\r\n{lines}"
    return f"{head}Content-Length: {len(attempt.body)}\r\n\r\n".encode("ascii") + attempt.body


def _address(data: bytes) -> int:
    """Where bytes lie; they must be kept."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0 if data else 0


def _headers(head: bytes) -> dict[str, str]:
    """Fields of a response head that has been found well-formed, names in lower case; of several, the last."""
    headers: dict[str, str] = {}
    for line in head.split(b"\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
    return headers


def _ending(error: RelayError, stream: Stream) -> Ending:
    """Both ways to say why a relay failed. An upstream's own body is passed on where it fits a command."""
    lines = stream.lines
    ending = either(error.status, error.code, error.message, stream.style, error.retry_after_s, lines=lines)
    if not error.body:
        return ending
    response = answer_of(error.status, error.content_type, error.body, error.retry_after_s, lines or b"")
    event = ending.payload[ending.head_bytes :]
    if len(response) + len(event) > m.PAYLOAD_BYTES_MAX:
        return ending
    return Ending(response + event, len(response))
