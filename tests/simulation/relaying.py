"""The control plane's and the workers' side of relayed streams, simulated, and the eyes on the plane's connections.

`Relaying` opens relayed streams, answers FAILED with another ATTEMPT or a STOP, and follows every connection: whom it
serves, what it was given, whether it may be kept. `RawFeed` is a worker that talks to an upstream in the plane's place.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from daemon.plane import connection_state as cs
from daemon.plane import counters
from daemon.plane import entries as e
from daemon.plane import messages as m
from daemon.plane import relay_failure as r
from daemon.plane import state as st
from daemon.plane import tag as t
from daemon.plane.event_records import AnsweredEvent, Event, FailedEvent, UsageEvent
from tests.simulation import wire
from tests.simulation.checks import walk
from tests.simulation.invariant import check
from tests.simulation.kernel import MILLISECOND, SECOND
from tests.simulation.objects import UpstreamSocket
from tests.simulation.planes import POISON, stop_command
from tests.simulation.raw_feed import RawFeed
from tests.simulation.relay_checks import CONNECT, HEAD, SILENCE, TOKEN, Attempt, Exchange, RelayCheck
from tests.simulation.upstreams import Request, Upstream

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from daemon.plane.table import Plane
    from tests.simulation.checks import StreamCheck
    from tests.simulation.kernel import Operation, SimulatedKernel
    from tests.simulation.planes import Sender, Worker

ATTEMPTS_MAX = 4
SLACK_NS = 3 * SECOND  # for what takes the kernel several operations, each of which may be late
DEADLINE_SLACK_NS = SECOND // 3  # for what only takes a turn
TRANSIENT = (e.EINTR, e.EAGAIN, e.ENOBUFS, e.ENOMEM, e.ECANCELED, e.EALREADY, e.EINPROGRESS, e.EISCONN)


class Relaying:
    """All relayed streams of a simulation."""

    def __init__(
        self, kernel: SimulatedKernel, plane: Plane, rng: random.Random, sender: Sender, workers: list[Worker]
    ) -> None:
        self.kernel = kernel
        self.plane = plane
        self.rng = rng
        self.send = sender.send
        self.workers = workers
        self.requests: dict[int, Request] = {}
        self.relays: dict[tuple[int, int], RelayCheck] = {}
        self.feeds: list[RawFeed] = []
        self.sockets: list[UpstreamSocket] = []  # those that are open
        self.live: list[RelayCheck] = []  # those that have not ended
        self.upstreams = [
            Upstream(kernel, rng, number, self.requests, calm=rng.random() < 0.5)
            for number in range(rng.choice((1, 1, 2, 4)))
        ]
        self.idle_timeouts_ns: dict[int, int] = {}
        self._opening: dict[int, Attempt] = {}  # by the tag of their SOCKET
        self._forgotten = False
        for upstream in self.upstreams:
            kernel.network[upstream.address] = upstream
            self._declare(upstream)
        kernel.on_submission = self._submitted
        kernel.on_connection = lambda operation, result: kernel.after_turn.append(
            lambda: self._delivered(operation, result)
        )
        kernel.each_turn.append(self._look)

    def _declare(self, upstream: Upstream) -> None:
        """ENDPOINT: before the first attempt that names it."""
        rng = self.rng
        idle_max, idle_timeout_ms = rng.choice((0, 1, 2, 50, 50)), rng.choice((50, 1000, 60_000))
        self.idle_timeouts_ns[upstream.number] = idle_timeout_ms * MILLISECOND
        data = wire.command(
            m.ENDPOINT,
            payload=upstream.address,
            endpoint=upstream.number,
            idle_max=idle_max,
            idle_timeout_ms=idle_timeout_ms,
        )
        self.send(data)

    def forget_endpoints(self) -> None:
        """Nothing is to be kept any more."""
        if not self._forgotten:
            self._forgotten = True
            for upstream in self.upstreams:
                self.send(wire.command(m.ENDPOINT, endpoint=upstream.number))

    # ---- the control plane

    def open(self, stream: StreamCheck, limits: dict[str, int]) -> tuple[dict[str, int], Callable[[], None]]:
        """The fields of an OPEN, and its effect."""
        rng = self.rng
        flags = rng.choice((0, m.CHUNKED)) | rng.choice((0, 0, m.KEEP_HALF_OPEN))
        head = b"" if rng.random() < 0.3 else b"HTTP/1.1 200 OK\r\nR: %s\r\n\r\n" % (b"r" * rng.randrange(1, 200))
        relay = RelayCheck(stream, as_content=rng.random() < 0.5, passes_usage=rng.random() < 0.5, head=head)
        stream.relayed = relay
        self.relays[stream.key] = relay
        self.live.append(relay)
        relay.drain_ns = rng.choice((0, 0, 0, 100, 3000)) * MILLISECOND
        self.kernel.at(rng.choice((0, 0, 0, 1, 50, 300, 4000)) * MILLISECOND, lambda: self._attempt(relay))
        fields = {
            "source": m.SOURCE_UPSTREAM,
            "flags": flags,
            "queue_timeout_ms": rng.choice((0, 30, 3000, 3000)),
            **limits,
        }
        return fields, lambda: stream.open(flags, b"", b"")

    def _attempt(self, relay: RelayCheck) -> None:
        """Ask an upstream, or have a worker ask."""
        rng, stream = self.rng, relay.stream
        if stream.ended is not None or relay.is_stopped:
            return
        present = relay.present
        again = present is not None and present.request is not None and rng.random() < 0.5
        upstream = (
            present.request.upstream
            if present is not None and present.request and again
            else rng.choice(self.upstreams)
        )
        timeouts = {
            CONNECT: rng.choice((0, 30, 1000, 1000)),
            HEAD: rng.choice((0, 30, 1000, 3000, 3000)),
            TOKEN: rng.choice((0, 30, 1000, 3000, 3000)),
            SILENCE: rng.choice((0, 50, 1000, 3000, 3000)),
        }
        attempt = Attempt(relay, len(relay.attempts) + 1, {name: ms * MILLISECOND for name, ms in timeouts.items()})
        attempt.by_worker = bool(self.workers) and rng.random() < 0.25
        number = len(self.requests) + 1
        size = rng.choice((0, 10, 500, 5000, 60_000))
        attempt.request = self.requests[number] = Request(number, size, upstream)
        relay.attempts.append(attempt)
        flags = (m.BY_WORKER if attempt.by_worker else 0) | (m.AS_CONTENT if relay.as_content else 0)
        flags |= m.PASS_USAGE if relay.passes_usage else 0
        data = wire.command(
            m.ATTEMPT,
            stream.key,
            flags=flags,
            endpoint=upstream.number,
            attempt=attempt.number,
            request_address=attempt.request.address,
            request_bytes=len(attempt.request.data),
            head_address=ctypes.addressof(relay.head_memory),
            head_bytes=len(relay.head),
            connect_timeout_ms=timeouts[CONNECT],
            head_timeout_ms=timeouts[HEAD],
            first_token_timeout_ms=timeouts[TOKEN],
            silence_timeout_ms=timeouts[SILENCE],
            drain_timeout_ms=relay.drain_ns // MILLISECOND,
            series=rng.randrange(0, 64),
        )
        self.send(data, lambda: self.kernel.after_turn.append(lambda: self._applied(relay, attempt)))
        if attempt.by_worker:
            feed = RawFeed(rng.choice(self.workers), relay, attempt, rng, self._worker_failed)
            self.feeds.append(feed)

    def _applied(self, relay: RelayCheck, attempt: Attempt) -> None:
        """The plane has read an ATTEMPT."""
        slot, _ = relay.stream.key
        record: Any = self.plane.relays[slot]
        if relay.is_closing or relay.is_stopped or int(record.number) != attempt.number:
            return
        for earlier in relay.attempts[:-1]:
            earlier.is_over = True
        attempt.is_applied = True
        attempt.enter(CONNECT)

    def _worker_failed(self, relay: RelayCheck, attempt: Attempt) -> None:
        """A worker could not even begin: the control plane hears of it from the worker itself."""
        if attempt is relay.present and relay.stream.ended is None:
            self._go_on(relay)

    def _go_on(self, relay: RelayCheck) -> None:
        """After a failure before the first content: another attempt, an end, or, now and then, nothing."""
        rng = self.rng
        delay_ns = rng.choice((0, 0, 1, 50, 1000)) * MILLISECOND
        what = rng.choices(("attempt", "stop", "nothing"), (12, 4, 1))[0]
        if what == "attempt" and len(relay.attempts) < ATTEMPTS_MAX:
            self.kernel.at(delay_ns, lambda: self._attempt(relay))
        elif what != "nothing":
            self._stop(relay, delay_ns)

    def _stop(self, relay: RelayCheck, delay_ns: int) -> None:
        def stop() -> None:
            if relay.stream.ended is None:
                self.send(*stop_command(relay.stream, st.UPSTREAM_ERROR))

        self.kernel.at(delay_ns, stop)

    # ---- events

    def handle(self, event: Event) -> bool:
        """An event of the control plane's channel. False when it is none of ours."""
        if not isinstance(event, AnsweredEvent | FailedEvent | UsageEvent):
            return False
        relay = self.relays.get(wire.key_of(event))
        check(relay is not None, f"{event} of no relayed stream")
        assert relay is not None
        if isinstance(event, AnsweredEvent):
            relay.answer(event)
        elif isinstance(event, FailedEvent):
            self._handle_failed(relay, event)
        else:
            relay.use(event)
        return True

    def _handle_failed(self, relay: RelayCheck, event: FailedEvent) -> None:
        attempt, key = relay.present, relay.stream.key
        check(attempt is not None and event.attempt == attempt.number, f"{key}: FAILED of attempt {event.attempt}")
        assert attempt is not None
        attempt.check_failure(event)
        lent = ctypes.string_at(event.lent_address, event.lent_bytes) if event.lent_bytes else b""
        delay_ns = self.rng.choice((0, 0, 0, 1, 300, 3000)) * MILLISECOND

        def release() -> None:
            now = ctypes.string_at(event.lent_address, event.lent_bytes) if event.lent_bytes else b""
            check(now == lent, f"{key}: what FAILED lent has changed")
            self.send(wire.command(m.RELEASE, key))
            if relay.stream.ended is not None or relay.is_stopped:
                return
            if not event.flags & m.FAILED_STREAMING:
                self._go_on(relay)
            elif self.rng.random() < 0.9:
                self._stop(relay, self.rng.choice((0, 1, 100)) * MILLISECOND)

        if delay_ns:
            self.kernel.at(delay_ns, release)
        else:
            release()

    def ended(self, key: tuple[int, int]) -> None:
        """ENDED has come: requests and heads are the control plane's again."""
        relay = self.relays.get(key)
        if relay is None:
            return
        relay.end()
        ctypes.memset(relay.head_memory, POISON, len(relay.head_memory))
        for attempt in relay.attempts:
            attempt.is_over = True
            assert attempt.request is not None
            for operation in self.kernel.operations.values():
                begin = attempt.request.address
                touches = operation.snapshot and begin <= operation.address < begin + len(attempt.request.data)
                check(not touches, f"{key}: ENDED while its request is being sent")
            ctypes.memset(attempt.request.memory, POISON, len(attempt.request.data))
        for socket in self.sockets:
            exchange = socket.exchange
            if exchange is not None and exchange.attempt.relay is relay:
                check(
                    exchange.is_detached or not socket.is_open, f"{key}: ENDED, but its upstream's connection is open"
                )

    # ---- connections

    def _record(self, socket: UpstreamSocket) -> Any:  # noqa: ANN401  (a record of NumPy's)
        """The plane's record of a connection, or None when it is another one's by now."""
        record: Any = self.plane.connections[socket.number]
        return record if record.generation == socket.generation else None

    def _attempt_of(self, slot: int) -> Attempt | None:
        """Whom a slot is serving."""
        relay = self.relays.get((slot, int(self.plane.streams[slot].generation)))
        return relay.present if relay is not None else None

    def _submitted(self, operation: Operation) -> None:
        """A connection's operation begins."""
        if operation.tag & 0xFF == t.CONNECTION_SOCKET:
            number = (operation.tag >> 8) & t.SLOT_NONE
            attempt = self._attempt_of(int(self.plane.connections[number].slot))
            check(attempt is not None, "a connection is opened for nobody")
            assert attempt is not None
            self._opening[operation.tag] = attempt

    def _delivered(self, operation: Operation, result: int) -> None:
        """The plane was given a connection's completion in the turn that has just been."""
        kind, socket = operation.tag & 0xFF, operation.target
        if kind == t.CONNECTION_SOCKET:
            attempt = self._opening.pop(operation.tag)
            if isinstance(socket, UpstreamSocket):
                socket.exchange = Exchange(attempt, socket)
                self.sockets.append(socket)
            elif result in (-e.EMFILE, -e.ENFILE) and self._is_any_kept():
                attempt.trouble[st.FAILURE_NO_RESOURCES] = -result  # or it is closed, and another try made
            else:
                attempt.fail_as({st.FAILURE_NO_RESOURCES})
            return
        if not isinstance(socket, UpstreamSocket):
            return
        exchange = socket.exchange
        if exchange is not None and exchange.is_detached and exchange.reader.is_over:
            exchange = self._exchange_of(socket)  # what came before belongs to the answer that was being read
        if kind == t.CONNECTION_CONNECT:
            self._connected(exchange, result)
        elif kind == t.CONNECTION_RECEIVE:
            self._received(socket, exchange, operation, result)

    def _is_any_kept(self) -> bool:
        """Whether there was an idle connection to close, when the turn that has just been began or within it."""
        for socket in self.sockets:
            record = self._record(socket)
            if socket.idle_active_ns >= 0 or (record is not None and record.state in (cs.IDLE, cs.CLOSING)):
                return True
        return False

    def _connected(self, exchange: Exchange | None, result: int) -> None:
        if exchange is None or exchange.is_abandoned:
            return
        if result in (0, -e.EISCONN):
            exchange.attempt.enter(HEAD)
        elif result == -e.ETIMEDOUT:
            exchange.attempt.fail_as({st.FAILURE_CONNECT_TIMEOUT})
        elif -result not in TRANSIENT:
            exchange.attempt.fail_as({st.FAILURE_CONNECT})

    def _exchange_of(self, socket: UpstreamSocket) -> Exchange | None:
        """The exchange a connection is at; a new one begins where it serves another stream."""
        record, exchange = self._record(socket), socket.exchange
        if exchange is None or record is None or record.slot < 0:
            return exchange
        attempt = self._attempt_of(int(record.slot))
        if not exchange.is_detached and (record.state != cs.BUSY or attempt is exchange.attempt):
            return exchange
        check(attempt is not None, f"descriptor {socket.fd} serves nobody")
        assert attempt is not None
        self._check_let_go(exchange)
        check(exchange.can_be_kept, f"descriptor {socket.fd} is used again, but its last answer has not ended well")
        socket.served += 1
        socket.idle_active_ns = -1
        socket.exchange = Exchange(attempt, socket)
        attempt.enter(HEAD)
        return socket.exchange

    def _check_let_go(self, exchange: Exchange) -> None:
        attempt = exchange.attempt
        ended = attempt.relay.is_done or attempt.no_stream >= 0
        check(ended, f"{attempt.relay.stream.key}: its connection is let go before the end")

    def _received(self, socket: UpstreamSocket, exchange: Exchange | None, operation: Operation, result: int) -> None:
        if exchange is None or exchange.is_abandoned:
            return
        if result > 0:
            exchange.feed(operation.snapshot)
        elif result == 0 or -result not in TRANSIENT:
            exchange.end(with_fin=result == 0)
            socket.ended_active_ns = self.kernel.active_ns

    def _look(self) -> None:
        """After each turn: whom does each connection serve, and which attempts has the plane given up?"""
        if self.sockets:
            self.sockets = [socket for socket in self.sockets if socket.is_open]
            records = self.plane.connections[: self.kernel.shared.connections_touched]
            states, slots = records["state"].tolist(), records["slot"].tolist()
            for socket in self.sockets:
                self._look_at(socket, states[socket.number], slots[socket.number])
        if self.live:
            self.live = [relay for relay in self.live if relay.stream.ended is None]
            streams, relays = self.plane.streams, self.plane.relays
            fields = (streams["generation"], streams["state"], streams["paused"], relays["phase"])
            rows = list(zip(*(field.tolist() for field in fields), strict=True))
            for relay in self.live:
                if relay.stream.opened:
                    self._look_at_relay(relay, *rows[relay.stream.key[0]])

    def _look_at(self, socket: UpstreamSocket, state: int, slot: int) -> None:
        """An open descriptor: its record is its own, as long as it is not closed."""
        exchange = self._exchange_of(socket) if state == cs.BUSY else socket.exchange
        assert exchange is not None
        if state == cs.CLOSING:
            exchange.is_abandoned = True
            exchange.is_detached |= slot < 0
        elif slot < 0 and not exchange.is_detached:
            exchange.is_detached = True
            self._check_let_go(exchange)
        if state != cs.IDLE:
            socket.idle_active_ns = -1
        elif socket.idle_active_ns < 0:
            check(exchange.can_be_kept, f"descriptor {socket.fd} is kept, but its answer has not ended well")
            socket.idle_active_ns = self.kernel.active_ns

    def _look_at_relay(self, relay: RelayCheck, generation: int, state: int, paused: int, phase: int) -> None:
        attempt = relay.present
        if generation != relay.stream.key[1] or state in (st.CLOSING, st.FREE):
            if relay.closing_active_ns < 0:
                relay.closing_active_ns = self.kernel.active_ns
            if attempt is not None:
                attempt.is_over = True
            return
        if paused or relay.is_held:
            relay.is_held = bool(paused)
            relay.held_ns, relay.held_active_ns = self.kernel.now_ns, self.kernel.active_ns
        if attempt is None or not attempt.is_applied or attempt.is_over:
            return
        if phase == r.FAILED:
            attempt.failed_as = int(self.plane.relays[relay.stream.key[0]].failure)
            attempt.fail()
        relay.check_bounded()

    def watch(self) -> None:
        """Now and then: is anything overdue?"""
        now_ns = self.kernel.active_ns
        for relay in self.live:
            if relay.present is not None:
                relay.present.check_on_time(DEADLINE_SLACK_NS)
        for socket in self.sockets:
            if not socket.is_open or socket.exchange is None:
                continue
            self._check_closed_in_time(socket, socket.exchange, now_ns)

    def _check_closed_in_time(self, socket: UpstreamSocket, exchange: Exchange, now_ns: int) -> None:
        relay = exchange.attempt.relay
        left_ns = relay.stream.socket.left_at_ns
        gone = left_ns >= 0 and not exchange.is_detached and relay.is_closing
        if gone:
            waited_ns = now_ns - max(left_ns, relay.closing_active_ns)
            check(waited_ns < SLACK_NS, f"{relay.stream.key}: its client has left, and its upstream is still connected")
        assert socket.upstream is not None or socket.idle_active_ns < 0
        if socket.idle_active_ns >= 0 and socket.upstream is not None:
            waited_ns = now_ns - socket.idle_active_ns - self.idle_timeouts_ns[socket.upstream.number]
            check(waited_ns < SLACK_NS, f"descriptor {socket.fd} has been idle for too long")
            ended_ns = socket.ended_active_ns
            check(ended_ns < 0 or now_ns - ended_ns < SLACK_NS, f"descriptor {socket.fd} is kept, but dead")

    def check_at_rest(self) -> None:
        """Everything that was taken is back: connections, buffers, and what events were put together in."""
        plane, shared = self.plane, self.kernel.shared
        for thing in self.kernel.things.values():
            left = isinstance(thing, UpstreamSocket) and thing.is_open
            check(not left, f"descriptor {thing.fd} of a connection is open")
        check(shared.connections_open == 0, f"{shared.connections_open} connections are open")
        touched = int(shared.connections_touched)
        check(not plane.connections["state"][:touched].any(), "a connection is not free")
        check(not plane.connections["in_flight"][:touched].any(), "something is in flight of a free connection")
        free = walk(plane.connections["next"], int(shared.connection_free))
        check(sorted(free) == list(range(touched)), f"free connections are {sorted(free)}")
        for name, links, head in (
            ("assembly", plane.assembly_links, shared.assembly_free),
            ("large assembly", plane.large_links, shared.large_free),
        ):
            numbers = walk(links["next"], int(head))
            check(sorted(numbers) == list(range(len(links))), f"of the {name} buffers only {sorted(numbers)} are free")
        check(not plane.endpoints["idle_count"].any(), "an endpoint keeps a connection")
        check(not plane.relays["closing_count"].any(), "a relay waits for a connection to close")
        check(plane.counters[counters.CONNECTIONS_IDLE] == 0, "a connection is counted as idle")
        check(shared.connection_ready_head < 0 and shared.draining_first < 0, "a connection is left on a list")
        self.kernel.buffers.check_at_rest()

    @property
    def is_over(self) -> bool:
        """Every feed has heard that its stream is gone."""
        return all(feed.is_over for feed in self.feeds)
