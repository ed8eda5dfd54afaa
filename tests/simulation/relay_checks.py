"""What must hold of relayed streams: each attempt and its answers, the bytes for the client, and what is told of them.

Everything here happens right after a turn, in the order in which the plane was given what it acted upon: `Exchange`
follows one answer on one connection, `Attempt` one ATTEMPT, `RelayCheck` one stream.
"""

from __future__ import annotations

import ctypes
from collections import deque
from typing import TYPE_CHECKING, Any

from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.relay_table import ASSEMBLY_BYTES, LARGE_ASSEMBLY_BYTES
from daemon.plane.table import RANGE_ENTRIES
from tests.simulation.checks import LAST_CHUNK
from tests.simulation.invariant import check
from tests.simulation.reference import ERROR_BYTES_MAX, ResponseReader, StreamReader
from tests.simulation.wire import chunk

if TYPE_CHECKING:
    from daemon.plane.event_records import AnsweredEvent, FailedEvent, UsageEvent
    from daemon.plane.table import Plane
    from tests.simulation.checks import StreamCheck
    from tests.simulation.objects import UpstreamSocket
    from tests.simulation.raw_feed import RawFeed
    from tests.simulation.upstreams import Request

SECOND = 1_000_000_000
CONNECT, HEAD, TOKEN, SILENCE = "connect", "head", "token", "silence"
TIMEOUTS = {
    st.FAILURE_CONNECT_TIMEOUT: CONNECT,
    st.FAILURE_HEAD_TIMEOUT: HEAD,
    st.FAILURE_FIRST_TOKEN_TIMEOUT: TOKEN,
    st.FAILURE_SILENCE_TIMEOUT: SILENCE,
}
NO_STREAM = (st.FAILURE_STATUS, st.FAILURE_REDIRECT, st.FAILURE_NOT_A_STREAM, st.FAILURE_COMPRESSED)
ANY_TROUBLE = frozenset((st.FAILURE_CONNECT, st.FAILURE_NO_RESOURCES))


class Exchange:
    """One attempt on one connection, as the plane has seen it."""

    def __init__(self, attempt: Attempt, socket: UpstreamSocket) -> None:
        self.attempt = attempt
        self.socket = socket
        self.was_kept = socket.served > 0
        self.reader = ResponseReader()
        socket.delivered_bytes = 0
        self.is_detached = False  # the plane has let go of it; what is left may still be read
        self.is_abandoned = False

    def feed(self, data: bytes) -> None:
        """The plane has been given bytes of the answer."""
        reader, attempt = self.reader, self.attempt
        if attempt.kernel.trace is not None:
            attempt.kernel.log(f"   answer on descriptor {self.socket.fd}: {data[:300]!r}")
        self.socket.delivered_bytes += len(data)
        had_head = reader.has_head
        reader.feed(data)
        if self.is_detached:
            reader.body.clear()
            return
        if reader.has_head and not had_head and reader.is_stream:
            attempt.enter(TOKEN)
        self._pass_on()

    def _pass_on(self) -> None:
        reader, attempt = self.reader, self.attempt
        if reader.is_stream:
            attempt.feed(bytes(reader.body))
            reader.body.clear()
            if reader.is_over:
                attempt.end_body(clean=True)
            elif reader.is_malformed or reader.is_cut:
                attempt.end_body(clean=False, malformed=reader.is_malformed)
        elif reader.failure in NO_STREAM:
            attempt.take_answer(reader)
        elif reader.failure >= 0:
            attempt.fail_as({reader.failure})

    def end(self, *, with_fin: bool) -> None:
        """The plane has been told that the connection ended."""
        reader = self.reader
        if with_fin:
            reader.fin()
        else:
            reader.end()
        if self.is_detached:
            return
        if reader.received_bytes == 0 and self.was_kept:
            self.is_abandoned = True  # stale: a fresh connection takes its place
            self.attempt.enter(CONNECT)
            return
        self._pass_on()

    @property
    def can_be_kept(self) -> bool:
        """The answer is whole, says that the connection stays, and nothing came after it."""
        reader = self.reader
        return reader.is_over and reader.keeps and not reader.has_excess


class Attempt:
    """One ATTEMPT: what was asked, what has come of it, and what the plane may say."""

    def __init__(self, check_of: RelayCheck, number: int, timeouts: dict[str, int]) -> None:
        self.relay = check_of
        self.kernel = check_of.stream.kernel
        self.number = number
        self.timeouts_ns = timeouts
        self.by_worker = False
        self.request: Request | None = None
        self.events = StreamReader(as_content=check_of.as_content, passes_usage=check_of.passes_usage)
        self.is_applied = False
        self.is_over = False  # the plane listens no more
        self.failed_at_ns = -1
        self.expected: set[int] = set()  # failures of which one must follow
        self.expected_active_ns = 0
        self.trouble: dict[int, int] = {}  # failures that may follow, of operations: kind -> errno
        self.failed_as = -1  # the plane's own word
        self.stale = 0
        self.status = 0
        self.no_stream = -1
        self.answer_head = b""
        self.answer_body = b""
        self.phase = ""
        self.phase_ns = self.phase_active_ns = 0
        self.failure_told: FailedEvent | None = None
        self.body_over = False

    def enter(self, phase: str) -> None:
        """Another wait begins."""
        self.phase = phase
        self.phase_ns, self.phase_active_ns = self.kernel.now_ns, self.kernel.active_ns

    def fail_as(self, kinds: set[int]) -> None:
        if not self.expected and not self.is_over and not self.events.is_done:
            self.expected = kinds
            self.expected_active_ns = self.kernel.active_ns

    def take_answer(self, reader: ResponseReader) -> None:
        """An answer that is no stream: of an error the body is collected, of anything else the head is enough."""
        if self.expected or self.is_over:
            return
        self.status, self.no_stream = reader.status, reader.failure
        self.answer_head, self.answer_body = reader.head, bytes(reader.body)
        enough = reader.is_over or reader.is_cut or reader.is_malformed or len(reader.body) >= ERROR_BYTES_MAX
        if enough or reader.failure != st.FAILURE_STATUS:
            self.fail_as({reader.failure})

    def feed(self, body: bytes) -> None:
        """Decoded bytes of the body."""
        if self.is_over or self.body_over:
            return
        events = self.events
        tokens = events.tokens
        events.feed(body)
        if events.tokens > tokens:
            self.enter(SILENCE)
        self._look()

    def end_body(self, *, clean: bool, malformed: bool = False) -> None:
        if not self.is_over and not self.body_over:
            self.body_over = True
            self.events.end(clean=clean, malformed=malformed)
            self._look()

    def _look(self) -> None:
        """What the events say for the client goes to the check of the stream."""
        events = self.events
        emissions, events.emissions = events.emissions, []
        self.relay.emit([emission.data for emission in emissions], is_done=events.is_done)
        if events.failure >= 0:
            self.fail_as({events.failure})

    # ---- deadlines

    def check_on_time(self, slack_ns: int) -> None:
        """Nobody waits for longer than was agreed, and no failure stays untold."""
        if not self.is_applied or self.is_over or self.relay.is_excused:
            return
        now_ns = self.kernel.active_ns
        if self.expected:
            waited_ns = now_ns - max(self.expected_active_ns, self.relay.held_active_ns)
            kinds = [st.FAILURES[kind] for kind in self.expected]
            check(waited_ns < slack_ns, f"{self.relay.stream.key}: {kinds} was due {waited_ns / 1e9:.1f} s ago")
            return
        limit_ns = self.timeouts_ns.get(self.phase, 0)
        if limit_ns and not self.events.is_done and (not self.by_worker or self.phase in {TOKEN, SILENCE}):
            waited_ns = now_ns - max(self.phase_active_ns, self.relay.held_active_ns) - limit_ns
            check(waited_ns < slack_ns, f"{self.relay.stream.key}: {self.phase} is {waited_ns / 1e9:.1f} s overdue")

    def fail(self) -> None:
        """The plane has given up: it must have a reason."""
        self.is_over = True
        self.failed_at_ns = self.kernel.now_ns

    def check_failure(self, event: FailedEvent) -> None:
        """FAILED has come."""
        kind = event.failure
        where = f"{self.relay.stream.key}: attempt {self.number} failed with {st.FAILURES[kind]}"
        check(self.failure_told is None, f"{where}, and failed before")
        self.failure_told = event
        check(self.is_over, f"{where}, but goes on")
        if kind in self.expected:
            self._check_told(event, where)
            return
        if kind in self.trouble:
            return
        phase = TIMEOUTS.get(kind)
        expected = [st.FAILURES[one] for one in (*self.expected, *self.trouble)]
        if kind == self.no_stream:  # its body was still coming when the time was over
            phase = HEAD
            self._check_told(event, where)
        check(phase is not None and phase == self.phase, f"{where}, but it was to be {expected} (in {self.phase})")
        waited_ns = self.failed_at_ns - max(self.phase_ns, self.relay.held_ns)
        check(waited_ns >= self.timeouts_ns.get(self.phase, 0) > 0, f"{where}, {waited_ns / 1e6:.1f} ms after it began")

    def _check_told(self, event: FailedEvent, where: str) -> None:
        """Status and bytes that a failure lends."""
        lent = ctypes.string_at(event.lent_address, event.lent_bytes) if event.lent_bytes else b""
        kind = event.failure
        if kind in NO_STREAM:
            check(event.status == self.status, f"{where} and status {event.status}, not {self.status}")
            head, body = lent[: event.head_bytes], lent[event.head_bytes :]
            check(head == self.answer_head, f"{where}, and lends the head {head[:60]!r}")
            check(body == self.answer_body, f"{where}, and lends {len(body)} bytes, not {len(self.answer_body)}")
        elif kind == st.FAILURE_ERROR_EVENT:
            check(lent == self.events.lent, f"{where}, and lends {lent[:60]!r}, not {self.events.lent[:60]!r}")


class RelayCheck:
    """The bytes of one relayed stream, and its story."""

    def __init__(self, stream: StreamCheck, *, as_content: bool, passes_usage: bool, head: bytes) -> None:
        self.stream = stream
        self.as_content = as_content
        self.passes_usage = passes_usage
        self.head = head
        self.head_memory = ctypes.create_string_buffer(head, max(len(head), 1))
        self.attempts: list[Attempt] = []
        self.is_stopped = False
        self.closing_active_ns = -1  # since when it has been closing
        self.is_done = False
        self.last_start: RawFeed | None = None  # who hears of STOPPED
        self.answered_count = 0
        self.usage: UsageEvent | None = None
        self.drain_ns = 0
        self.is_held = False
        self.held_ns = self.held_active_ns = 0  # until when the client was too slow for more to be read
        self._waiting: deque[tuple[int, int]] = deque()  # where in the client's text each event ends, and its size
        self._waiting_bytes = 0
        self._largest = 0

    @property
    def is_excused(self) -> bool:
        """Other rules apply: it has been told to end, has expired, or waits for its client."""
        slot, _ = self.stream.key
        plane = self.stream.kernel.plane
        if self.is_stopped or self.is_held or self.stream.ended is not None or self.is_closing:
            return True
        return bool(int(plane.streams[slot]["flags"]) & m.FLAG_EXPIRED or plane.relays[slot].is_draining)

    @property
    def is_closing(self) -> bool:
        slot, generation = self.stream.key
        record = self.stream.kernel.plane.streams[slot]
        return bool(record.generation != generation or record.state in (st.CLOSING, st.FREE))

    @property
    def present(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    # ---- bytes

    def emit(self, events: list[bytes], *, is_done: bool) -> None:
        """Events that the client is to get, next."""
        stream = self.stream
        if self.is_stopped or self.is_done or stream.finished:
            return
        for event in events:
            if not stream.head_sent:
                stream.delivery.hand_over(self.head or stream.standard_head, pause=False)
                stream.head_sent = True
            stream.delivery.hand_over(chunk(event) if stream.chunked else event, pause=True)
            # A megabyte in pieces of forty bytes would be all that a seed has turns for.
            stream.socket.window = max(stream.socket.window, len(event) // 100)
            self._waiting.append((len(stream.delivery.text), len(event)))
            self._waiting_bytes += len(event)
            self._largest = max(self._largest, len(event))
        if is_done:
            self.is_done = True
            stream.true_end = True
            stream.finished, stream.end_reason = "finish", st.COMPLETE
            stream.first_finish_ns = stream.kernel.active_ns
            stream.stopped_ns = stream.kernel.now_ns
            if stream.chunked:
                stream.delivery.hand_over(LAST_CHUNK, pause=False)

    def check_bounded(self) -> None:
        """What was taken from the upstream and not sent fits in the plane's memory for one stream."""
        while self._waiting and self._waiting[0][0] <= self.stream.delivery.matched:
            self._waiting_bytes -= self._waiting.popleft()[1]
        bound = ASSEMBLY_BYTES + int(self.stream.kernel.shared.block_bytes)
        if self._largest > 4000:
            bound += LARGE_ASSEMBLY_BYTES
        check(
            self.as_content or self._waiting_bytes <= bound,
            f"{self.stream.key}: {self._waiting_bytes} bytes were read for a client that does not take them",
        )

    def may_end_with(self, reason: int) -> bool:
        """Whether the plane may end the stream by itself, with a reason that nobody gave it."""
        present = self.present
        if reason != st.UPSTREAM_ERROR or present is None or present.failed_as < 0:
            return False
        return self.stream.kernel.now_ns - present.failed_at_ns >= 5 * SECOND

    def stop(self, reason: int, head: bytes, error: bytes) -> None:
        """Right after the turn that read a STOP: how much was queued before it only the plane knows."""
        stream = self.stream
        slot, generation = stream.key
        plane = stream.kernel.plane
        record = plane.streams[slot]
        if self.is_stopped or not stream.opened or record.generation != generation:
            return
        flags = int(record["flags"])
        if flags & m.FLAG_TRUE_END or (record.state == st.CLOSING and record.reason != reason):
            return
        if not flags & m.FLAG_SOURCE_DONE:
            return
        self.is_stopped = True
        stream.finished, stream.end_reason, stream.true_end = "stop", reason, False
        stream.first_finish_ns, stream.stopped_ns = stream.kernel.active_ns, stream.kernel.now_ns
        if self.present is not None and not self.present.is_over:
            self.present.fail()  # perhaps in this very turn, just before
        self._cut(plane, slot, head, error)

    def _cut(self, plane: Plane, slot: int, head: bytes, error: bytes) -> None:
        """Everything that was queued is next for the client; then comes the ending, where there is one."""
        stream, delivery = self.stream, self.stream.delivery
        queued = unsent_bytes(plane, slot, len(stream.socket.taken))
        ending = (chunk(error) if stream.chunked else error) if stream.head_sent else head
        has_ending = queued.endswith(ending)
        if has_ending:
            queued = queued[: -len(ending)]
        if plane.relays[slot].is_draining:
            delivery.resume_with(queued)  # what the client has left behind may have been dropped
        elif not stream.head_sent:
            delivery.drop_unsent()
        else:
            reached = delivery.reaches(queued)
            failed = self.present is not None and self.present.failed_as >= 0
            check(not failed or reached == len(delivery.text), f"{stream.key}: it failed with events kept back")
            check(reached in (*delivery.pauses, 0, len(delivery.text)), f"{stream.key}: an event is cut by a stop")
            check(has_ending or stream.partial, f"{stream.key}: a stop without its error event")
            del delivery.text[reached:]
            delivery.pauses = {pause for pause in delivery.pauses if pause <= reached}
        if has_ending:
            delivery.hand_over(ending, pause=False)
            stream.head_sent = True

    # ---- events

    def answer(self, event: AnsweredEvent) -> None:
        """ANSWERED has come."""
        key = self.stream.key
        events = [attempt.events for attempt in self.attempts if attempt.events.tokens or attempt.events.is_done]
        self.answered_count += 1
        check(len(events) >= self.answered_count, f"{key}: ANSWERED more often than upstreams have")
        model = event.model[: event.model_bytes]
        known = events[-1].first_model[:48], events[-1].model[:48]  # it may be named in a later event than the first
        check(model in known, f"{key}: the model is said to be {model!r}, it is {events[-1].model!r}")

    def use(self, event: UsageEvent) -> None:
        """USAGE has come."""
        check(self.usage is None, f"{self.stream.key}: USAGE twice")
        check(self.stream.ended is None, f"{self.stream.key}: USAGE after ENDED")
        self.usage = event

    def end(self) -> None:
        """ENDED has come."""
        key, event = self.stream.key, self.usage
        check(event is not None, f"{key}: ENDED without USAGE")
        assert event is not None
        events = self.present.events if self.present is not None else None
        if event.is_done:
            check(self.is_done and events is not None, f"{key}: the upstream's own end was never seen")
        if self.stream.ended is not None and self.stream.ended.reason == st.COMPLETE:
            check(event.is_done, f"{key}: complete, and no end of the upstream's")
        tokens = sum(attempt.events.tokens for attempt in self.attempts)
        check(event.token_count <= tokens, f"{key}: {event.token_count} tokens, but only {tokens} came")
        first_ns = event.first_token_after_ns
        check((first_ns >= 0) == (event.token_count > 0), f"{key}: first token after {first_ns} ns")
        if event.is_done and events is not None:
            self._check_numbers(event, events)

    def _check_numbers(self, event: UsageEvent, events: StreamReader) -> None:
        """The upstream has come to its end, so everything it said was looked at."""
        key = self.stream.key
        check(event.token_count == events.tokens, f"{key}: {event.token_count} tokens, not {events.tokens}")
        told = event.prompt_tokens, event.completion_tokens
        numbers = events.prompt_tokens, events.completion_tokens
        check(told == numbers, f"{key}: usage is said to be {told}, it is {numbers}")
        malformed = sum(attempt.events.malformed for attempt in self.attempts)
        check(event.malformed_count == malformed, f"{key}: {event.malformed_count} malformed events, not {malformed}")


def unsent_bytes(plane: Plane, slot: int, taken_bytes: int) -> bytes:
    """What the plane has queued for a client and the kernel has not taken."""
    stream: Any = plane.streams[slot]
    size = int(plane.globals[0].block_bytes)
    inline = b""
    head, tail = int(stream.inline_head), int(stream.inline_tail)
    if tail > head:
        base = plane.blocks.ctypes.data + int(stream.block) * size
        block = ctypes.string_at(base, size)
        begin = head & (size - 1)
        inline = (block[begin:] + block[:begin])[: tail - head]
    parts: list[bytes] = []
    for index in range(int(stream.ranges_count)):
        place: Any = plane.ranges[slot * RANGE_ENTRIES + ((int(stream.ranges_first) + index) & (RANGE_ENTRIES - 1))]
        until = max(int(place.position) - head, 0)
        parts += [inline[:until], ctypes.string_at(int(place.address), int(place.remaining))]
        inline, head = inline[until:], head + until
    queued = b"".join((*parts, inline))
    return queued[taken_bytes - int(stream.sent_bytes) :]
