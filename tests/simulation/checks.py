"""What must hold: of each stream (`Delivery`, `StreamCheck`), and of the plane when all is over (`check_at_rest`).

A `StreamCheck` follows the commands in the order in which the plane reads them and says which bytes may reach the
client; every send is compared at once. Events are checked as the control plane and the workers receive them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.plane import counters
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane import tag as t
from daemon.plane.table import BUCKET_COUNT
from tests.simulation.kernel import MILLISECOND, SECOND, ViolationError, check
from tests.simulation.wire import chunk

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from daemon.plane.event_records import EndedEvent
    from daemon.plane.table import Plane
    from tests.simulation.kernel import SimulatedKernel
    from tests.simulation.objects import ClientSocket
    from tests.simulation.relay_checks import RelayCheck

KEEP_ALIVE = b": keep-alive\n\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Delivery:
    """The bytes that were handed over for one client, and how far they have left, keep-alives between them allowed."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.matched = 0
        self.pauses: set[int] = set()  # where a keep-alive may stand
        self.keep_alive = KEEP_ALIVE
        self._in_keep_alive: int = 0
        self.keep_alives: int = 0
        self.optional_from = -1  # a stop's error event may be missing, but not in part

    def hand_over(self, data: bytes, *, pause: bool) -> None:
        self.text += data
        if pause:
            self.pauses.add(len(self.text))
        else:
            self.pauses.discard(len(self.text))

    def drop_unsent(self) -> None:
        """Forget what has not left: a stop before the head discards it."""
        del self.text[self.matched :]

    def feed(self, data: bytes) -> None:
        """Bytes the kernel has taken: each must be next."""
        index = 0
        while index < len(data):
            if self._in_keep_alive:
                index = self._feed_keep_alive(data, index)
                continue
            size = min(len(data) - index, len(self.text) - self.matched)
            stop = self._next_pause(self.matched, size)
            piece = data[index : index + stop]
            if stop and bytes(self.text[self.matched : self.matched + stop]) == piece:
                self.matched += stop
                index += stop
            elif self._may_be_keep_alive(data[index]):
                index = self._feed_keep_alive(data, index)
            else:
                self._refuse(data, index)

    def _may_be_keep_alive(self, byte: int) -> bool:
        """Whether a keep-alive began at the last pause: an equal chunk size made it look like the next piece."""
        pause = max((pause for pause in self.pauses if pause <= self.matched), default=-1)
        since = self.matched - pause
        if pause < 0 or since >= len(self.keep_alive) or self.keep_alive[since] != byte:
            return False
        if bytes(self.text[pause : self.matched]) != self.keep_alive[:since]:
            return False
        self.matched, self._in_keep_alive = pause, since
        return True

    def _next_pause(self, start: int, size: int) -> int:
        later = [pause - start for pause in self.pauses if start < pause <= start + size]
        return min(later, default=size)

    def _feed_keep_alive(self, data: bytes, index: int) -> int:
        rest = self.keep_alive[self._in_keep_alive :]
        size = min(len(rest), len(data) - index)
        if data[index : index + size] != rest[:size]:
            self._refuse(data, index)
        self._in_keep_alive += size
        if self._in_keep_alive == len(self.keep_alive):
            self._in_keep_alive = 0
            self.keep_alives += 1
        return index + size

    def resume_with(self, data: bytes) -> None:
        """Forget what has not left: these bytes are next."""
        if self._in_keep_alive:
            data = data[len(self.keep_alive) - self._in_keep_alive :]
        del self.text[self.matched :]
        self.text += data
        self.pauses = {pause for pause in self.pauses if pause <= self.matched}

    def reaches(self, data: bytes) -> int:
        """How far these bytes lead from here, each being next; nothing is changed."""
        before: tuple[int, int, int] = (self.matched, self._in_keep_alive, self.keep_alives)
        self.feed(data)
        reached = self.matched
        self.matched, self._in_keep_alive, self.keep_alives = before
        return reached

    def _refuse(self, data: bytes, index: int) -> None:
        expected, sent = bytes(self.text[self.matched :]), data[index:]
        same = next((n for n, (a, b) in enumerate(zip(expected, sent, strict=False)) if a != b), len(expected))
        where = self.matched + same
        message = f"the client was sent {sent[same:][:40]!r}, next was {expected[same:][:40]!r} (byte {where})"
        raise ViolationError(message)

    @property
    def is_whole(self) -> bool:
        """Everything that was handed over has left."""
        return self._in_keep_alive == 0 and self.matched in (len(self.text), self.optional_from)


class StreamCheck:
    """One stream from its OPEN on: what it may send, how it may end, and what was said of it."""

    def __init__(self, kernel: SimulatedKernel, key: tuple[int, int], socket: ClientSocket, head: bytes) -> None:
        self.kernel = kernel
        self.key = key
        self.socket = socket
        self.standard_head = head
        self.delivery = Delivery()
        socket.on_taken = self._taken
        self.chunked = False
        self.opened = False
        self.opened_active_ns = 0
        self.started = False
        self.head_sent = False
        self.head_by_control = False
        self.partial = False
        self.finished: str = ""  # "", "finish" or "stop"
        self.true_end = False
        self.end_reason = -1
        self.expired: list[int] = []
        self.expired_active_ns = 0
        self.patient = False  # the client reads at once, and lingering is long enough for it
        self.ended: EndedEvent | None = None
        self.stopped = False
        self.write_timeout_ns = 0
        self.stream_timeout_ns = 0
        self.opened_ns = 0
        self.paced: Paced | None = None
        self.relayed: RelayCheck | None = None
        self.keep_half_open = False
        self.has_body = False  # and the plane still waits for some of it
        self.body_over_active_ns = 0
        self.first_finish_ns = -1
        self.stopped_ns = 0
        self.refused_descriptor = False

    def _taken(self, data: bytes) -> None:
        self.delivery.feed(data)
        if self.paced is not None:
            self.paced.check_not_early(self.delivery.matched, self.kernel.now_ns)

    def _body(self, data: bytes) -> bytes:
        return chunk(data) if self.chunked else data

    def limit(self, fields: Mapping[str, int]) -> None:
        """Its command, with these fields, has been sent."""
        self.write_timeout_ns = fields.get("write_timeout_ms", 0) * MILLISECOND
        self.stream_timeout_ns = fields.get("stream_timeout_ms", 0) * MILLISECOND
        self.opened_ns = self.kernel.now_ns

    # ---- commands, as the plane reads them

    def open(self, flags: int, head: bytes, body: bytes) -> None:
        self.opened = True
        self.opened_active_ns = self.kernel.active_ns
        self.socket.belongs_to_control = False
        self.chunked = bool(flags & m.CHUNKED)
        self.keep_half_open = bool(flags & m.KEEP_HALF_OPEN)
        if self.chunked:
            self.delivery.keep_alive = chunk(KEEP_ALIVE)
        if flags & m.CONTINUE_100:
            self.delivery.hand_over(CONTINUE, pause=False)
        self._hand_over(flags, head, body)

    def _hand_over(self, flags: int, head: bytes, body: bytes) -> None:
        pause = not flags & m.PARTIAL
        head = (self.standard_head if flags & m.STANDARD_HEAD else b"") + head
        if head and not self.head_by_control:
            self.delivery.hand_over(head, pause=pause)
            self.head_sent = True
        if body:
            self.delivery.hand_over(self._body(body), pause=pause)

    def push(self, flags: int, head: bytes, body: bytes) -> None:
        if self.relayed is not None:
            self.kernel.after_turn.append(lambda: self._push(flags, head, body))
        else:
            self._push(flags, head, body)

    def _push(self, flags: int, head: bytes, body: bytes) -> None:
        if self.finished:
            return
        if not flags & m.KEEP_ALIVE:
            self._hand_over(flags, head, body)
            self.partial = bool(flags & m.PARTIAL)
        elif not self.head_sent:
            self._hand_over(flags, head, body)
            self.head_by_control = True

    def push_range(self, flags: int, body: bytes) -> None:
        if not self.finished:
            self.delivery.hand_over(self._body(body), pause=not flags & m.PARTIAL)
            self.partial = bool(flags & m.PARTIAL)

    def finish(self, flags: int, reason: int, head: bytes, body: bytes) -> None:
        if self.finished:
            return
        self._hand_over(flags, head, body)
        self.finished, self.end_reason = "finish", reason
        if flags & m.COMPLETE:
            self.true_end = True
            if self.chunked:
                self.delivery.hand_over(LAST_CHUNK, pause=False)
        self.first_finish_ns = self.kernel.active_ns
        self.stopped_ns = self.kernel.now_ns

    def stop(self, reason: int, head: bytes, error: bytes) -> None:
        if self.relayed is None and (self.finished or not self.opened):
            return
        if self.paced is not None:
            self.kernel.after_turn.append(lambda: self._stop_paced(reason, error))
            return
        if self.relayed is not None:
            relayed = self.relayed
            self.kernel.after_turn.append(lambda: relayed.stop(reason, head, error))
            return
        self.finished, self.end_reason = "stop", reason
        delivery = self.delivery
        if not self.head_sent:
            if delivery.matched == 0 and not self._send_in_flight():
                delivery.drop_unsent()
            delivery.optional_from = len(delivery.text)
            delivery.hand_over(head, pause=False)
            self.head_sent = True
        elif not self.partial:
            delivery.optional_from = len(delivery.text)
            delivery.hand_over(self._body(error), pause=False)
        self.first_finish_ns = self.kernel.active_ns
        self.stopped_ns = self.kernel.now_ns

    def _send_in_flight(self) -> bool:
        return any(other.fd == self.socket.fd and other.length for other in self.kernel.operations.values())

    def _stop_paced(self, reason: int, error: bytes) -> None:
        """Right after the turn that read the stop: how many messages it made only the plane knows."""
        slot, generation = self.key
        stream = self.kernel.plane.streams[slot]
        assert self.paced is not None
        if self.finished or stream.generation != generation or int(stream["flags"]) & m.FLAG_TRUE_END:
            return
        self.finished, self.end_reason, self.true_end = "stop", reason, False
        delivery = self.delivery
        del self.paced.ends[int(stream.message_index) + 1 :]
        del delivery.text[self.paced.ends[-1] :]
        check(len(delivery.text) >= delivery.matched, "messages were taken back")
        delivery.pauses = {pause for pause in delivery.pauses if pause <= len(delivery.text)}
        delivery.optional_from = len(delivery.text)
        delivery.hand_over(self._body(error), pause=False)
        self.first_finish_ns = self.kernel.active_ns
        self.stopped_ns = self.kernel.now_ns

    # ---- the end

    def end(self, event: EndedEvent) -> None:
        """ENDED has come."""
        socket, reason = self.socket, event.reason
        check(self.ended is None, f"{self.key}: ENDED twice")
        check(self.opened, f"{self.key}: ENDED before its OPEN")
        self.ended = event
        check(not socket.is_open, f"{self.key}: ENDED, but the client's descriptor is open")
        check(
            event.sent_bytes == len(socket.taken),
            f"{self.key}: ENDED says {event.sent_bytes} bytes, {len(socket.taken)} left",
        )
        first_ns = event.first_byte_after_ns
        check((first_ns >= 0) == bool(socket.taken), f"{self.key}: first byte after {first_ns} ns")
        if self.patient and self.finished and reason == self.end_reason:
            lost = socket.destroyed_bytes
            check(lost == 0, f"{self.key}: closed over unread input, {lost} bytes of the answer are lost")
        if reason == st.COMPLETE:
            self._check_complete()
            told = self.paced is None or event.message_count == self.paced.count
            check(told, f"{self.key}: complete with {event.message_count} messages")
        elif reason == st.CLIENT_GONE:
            gone = socket.was_reset or socket.finished or socket.closed_by_client
            check(gone or socket.fault_injected, f"{self.key}: client_gone, but the client is there")
        elif reason == st.WRITE_TIMEOUT:
            waited_ns = self.kernel.now_ns - socket.last_attempt_ns
            # A jump may fall between filling a send and the kernel's taking it.
            on_time = waited_ns >= self.write_timeout_ns or self.kernel.hostility.jump > 0
            check(self.write_timeout_ns and on_time, f"{self.key}: write_timeout too early")
        elif reason == st.REFUSED == self.end_reason:
            # However a refused client leaves, refused is the reason.
            gone = socket.was_reset or socket.finished or self.kernel.now_ns - socket.last_attempt_ns >= SECOND // 20
            check(self.delivery.is_whole or gone, f"{self.key}: refused, but not with the whole answer")
        elif self.relayed is not None and self.relayed.may_end_with(reason):
            pass
        elif reason == st.STREAM_TIMEOUT and reason not in self.expired:
            # The client did not take the end in the stream's time, or, after a STOP, in that of one write.
            now_ns = self.kernel.now_ns
            of_stream = self.stream_timeout_ns and now_ns - self.opened_ns >= self.stream_timeout_ns
            stopped = self.finished == "stop" and self.kernel.now_ns - self.stopped_ns >= self.write_timeout_ns
            check(bool(of_stream or stopped), f"{self.key}: stream_timeout too early")
        elif self.finished and reason == self.end_reason and reason not in self.expired:
            check(self.delivery.is_whole, f"{self.key}: reason {st.REASONS[reason]}, but not everything left")
        else:
            check(reason in self.expired, f"{self.key}: ended for {st.REASONS[reason]}, which nobody asked for")

    def _check_complete(self) -> None:
        check(self.true_end, f"{self.key}: complete, but its source never said so")
        check(self.delivery.is_whole, f"{self.key}: complete, but not everything left")

    def check_notices_leaving(self) -> None:
        """A client that has left ends its stream soon, whatever it waited for."""
        left_ns = self.socket.left_at_ns
        if left_ns < 0 or self.ended is not None or not self.opened or self.first_finish_ns >= 0:
            return
        if self.has_body or self.keep_half_open:
            if not self.socket.was_reset:
                return
            left_ns = self.socket.reset_at_ns  # its FIN said nothing
        slot, generation = self.key
        stream = self.kernel.plane.streams[slot]
        open_still = stream.generation == generation and st.PARSING < stream.state < st.CLOSING
        since_ns = max(left_ns, self.opened_active_ns, self.body_over_active_ns)
        drain_ns = self.relayed.drain_ns if self.relayed is not None else 0
        late = self.kernel.active_ns - since_ns > 2_000_000_000 + drain_ns
        if open_still and late and not int(stream["flags"]) & m.FLAG_SOURCE_DONE:
            message = f"{self.key}: the client left 2 s ago and nobody noticed (state {st.STATES[int(stream.state)]})"
            raise ViolationError(message)

    def check_expiry(self) -> None:
        """A stream whose deadline has passed ends within the grace of 5 s, whether or not anybody answers."""
        if self.expired and not self.finished and self.ended is None:
            waited_ns = self.kernel.active_ns - self.expired_active_ns
            slot, generation = self.key
            stream = self.kernel.plane.streams[slot]
            open_still = stream.generation == generation and st.PARSING < stream.state < st.CLOSING
            # What a source that is done has left behind is bounded by the write timeout alone.
            waiting = open_still and not int(stream["flags"]) & m.FLAG_SOURCE_DONE
            check(not waiting or waited_ns < 7_000_000_000, f"{self.key}: expired 7 s ago, and still open")

    def check_pace(self) -> None:
        """Something brings a paced stream on: bytes on their way, or a timer for when its next message is due."""
        slot, generation = self.key
        stream: Any = self.kernel.plane.streams[slot]
        if self.paced is None or stream.generation != generation or stream.state != st.STREAMING:
            return
        on_its_way = stream.in_flight & (1 << t.SEND | 1 << t.POLL_WRITABLE) or stream.is_ready
        if on_its_way or int(stream["flags"]) & m.FLAG_SOURCE_DONE:
            return
        due_ns = int(stream.pace_start_ns + (stream.message_index * stream.interval_ps + 999) // 1000)
        is_set = 0 < stream.timer_ns <= max(due_ns, self.kernel.now_ns + 1)
        check(is_set, f"{self.key}: message {stream.message_index} is due at {due_ns}, and nobody wakes the stream")


class Paced:
    """A paced stream's text: where each message ends, when each is due at the earliest, and how many count."""

    def __init__(self, ends: list[int], begin_ns: int, interval_ps: int, count: int) -> None:
        self.count = count
        self.ends = ends  # ends[k]: how long the text is with k messages
        self.begin_ns = begin_ns
        self.interval_ps = interval_ps
        self._next = 0

    def check_not_early(self, matched: int, now_ns: int) -> None:
        while self._next + 1 < len(self.ends) and matched > self.ends[self._next]:
            due_ns = self.begin_ns + self._next * self.interval_ps // 1000
            check(now_ns >= due_ns, f"message {self._next} left {due_ns - now_ns} ns early")
            self._next += 1


def check_at_rest(plane: Plane) -> None:
    """Everything that was taken is back: slots, blocks, buffers, timers, descriptors, events."""
    shared = plane.globals[0]
    used = int(plane.counters[counters.SLOTS_USED])
    check(used == 0, f"{used} slots are not free")
    check(not plane.streams["state"].any(), "a slot is not free")
    check(not plane.streams["in_flight"].any(), "something is in flight of a free slot")
    free = walk(plane.streams["ready_next"], int(shared.free_head))
    check(sorted(free) == list(range(int(shared.slots_touched))), f"free slots are {sorted(free)}")
    for name, links, head in (
        ("block", plane.block_links, shared.block_free),
        ("handoff buffer", plane.handoff_links, shared.handoff_free),
        ("body buffer", plane.body_links, shared.body_free),
    ):
        numbers = walk(links["next"], int(head))
        check(sorted(numbers) == list(range(len(links))), f"of the {name}s only {sorted(numbers)} are free")
    check(shared.timers_scheduled == 0, f"{shared.timers_scheduled} timers are left")
    check((plane.buckets["first"] == -1).all(), "a bucket of the wheel is occupied")
    check(not plane.words["bits"].any(), f"an occupied bit of the wheel's {BUCKET_COUNT} is left")
    check(shared.ready_head < 0, "a slot is left on the ready list")
    check(shared.parked_count == shared.adopted_count == shared.stray_count == shared.stray_in_flight == 0, "waiting")
    check((plane.channels["head"] == -1).all(), "an event was never sent")


def walk(following: npt.NDArray[np.int32], head: int) -> list[int]:
    numbers: list[int] = []
    while head >= 0:
        check(len(numbers) <= len(following), "a free list has a loop")
        numbers.append(head)
        head = int(following[head])
    return numbers
