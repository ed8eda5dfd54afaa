"""A worker that talks to an upstream in the plane's place: START, then the body within its credit, and FINISH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.plane import messages as m
from daemon.plane.event_records import BodyEvent, StoppedEvent
from tests.simulation import wire
from tests.simulation.answers import make_events
from tests.simulation.invariant import check
from tests.simulation.relay_checks import TOKEN

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from daemon.plane.event_records import WorkerEvent
    from tests.simulation.planes import Worker
    from tests.simulation.relay_checks import Attempt, RelayCheck

MILLISECOND = 1_000_000


class RawFeed:
    """One attempt of one stream, on a worker's thread."""

    def __init__(
        self,
        worker: Worker,
        relay: RelayCheck,
        attempt: Attempt,
        rng: random.Random,
        failed: Callable[[RelayCheck, Attempt], None],
    ) -> None:
        self.worker = worker
        self.relay = relay
        self.attempt = attempt
        self.rng = rng
        self.kernel = worker.kernel
        self.body = make_events(rng, large=rng.random() < 0.04)
        self.ending = rng.choices(("complete", "cut", "hang"), (12, 2, 1))[0]
        if rng.random() < 0.1:
            self.body = self.body[: rng.randrange(0, len(self.body) + 1)]
        self.sizes = rng.choice(((1, 30, 300), (300, 4000), (4000,)))
        self.pause_ms = rng.choice((0, 1, 10, 300))
        self.sent_bytes = 0
        self.released_bytes = 0
        self.is_read = False  # the plane has read its START, and may have found it stale
        self.is_started = False  # the plane has taken its START
        self.is_stopped = False
        self.is_done = False
        self._failed = failed
        self._planned = False
        worker.raw_feeds.setdefault(relay.stream.key, []).append(self)
        self.kernel.at(rng.choice((0, 1, 20, 500)) * MILLISECOND, self._begin)

    @property
    def is_over(self) -> bool:
        return self.is_stopped or not self.is_started or self.relay.last_start is not self

    def _begin(self) -> None:
        """The upstream has answered with a stream, or there is none."""
        if self.rng.random() < 0.15:
            self.is_done = True
            self._failed(self.relay, self.attempt)
            return
        key, number = self.relay.stream.key, self.attempt.number
        self.worker.send(
            wire.command(m.START, key, channel=self.worker.channel, attempt=number),
            self._start_read,
        )
        self._plan()

    def _is_heard(self) -> bool:
        """Whether the plane takes what this attempt's worker says."""
        slot, generation = self.relay.stream.key
        plane = self.kernel.plane
        stream, relay = plane.streams[slot], plane.relays[slot]
        return bool(stream.generation == generation and relay.number == self.attempt.number)

    def _start_read(self) -> None:
        self.is_read = True
        self.kernel.after_turn.append(self._started)

    def _started(self) -> None:
        slot, _ = self.relay.stream.key
        record = self.kernel.plane.streams[slot]
        # A stream that is stopped in the same turn has no channel any more, but what was pushed behind START counts.
        is_taken = record.channel == self.worker.channel or self.kernel.plane.relays[slot].raw_taken > 0
        if self._is_heard() and is_taken and not self.attempt.is_over:
            self.is_started = True
            self.relay.last_start = self
            self.attempt.enter(TOKEN)

    def _plan(self) -> None:
        if not self._planned and not self.is_stopped and not self.is_done:
            self._planned = True
            self.kernel.at(self.rng.choice((0, 0, 1, self.pause_ms)) * MILLISECOND, self._speak)

    def _speak(self) -> None:
        """The next piece, if there is credit for it, or the end."""
        self._planned = False
        if self.is_stopped or self.is_done:
            return
        attempt, rng = self.attempt, self.rng
        if attempt.failure_told is not None and rng.random() < 0.5:
            self.is_done = True  # the control plane has told it, sooner or later
            return
        if self.sent_bytes < len(self.body):
            credit = m.RAW_CREDIT_BYTES - (self.sent_bytes - self.released_bytes)
            size = min(rng.choice(self.sizes), m.PAYLOAD_BYTES_MAX, len(self.body) - self.sent_bytes)
            if size > credit:
                return  # RELEASED will go on
            piece = self.body[self.sent_bytes : self.sent_bytes + size]
            self.sent_bytes += size
            self._command(m.PUSH, m.RAW, piece, lambda: attempt.feed(piece))
            self._plan()
            return
        self.is_done = True
        if self.ending != "hang":
            clean = self.ending == "complete"
            flags = m.RAW | (m.COMPLETE if clean else 0)
            self._command(m.FINISH, flags, b"", lambda: attempt.end_body(clean=clean))

    def _command(self, kind: int, flags: int, payload: bytes, effect: Callable[[], None]) -> None:
        data = wire.command(kind, self.relay.stream.key, payload, flags=flags, attempt=self.attempt.number)

        def apply() -> None:
            if self.is_started and not self.attempt.is_over:
                effect()

        self.worker.send(data, lambda: self.kernel.after_turn.append(apply))

    def handle(self, event: WorkerEvent) -> None:
        """RELEASED or STOPPED."""
        key = self.relay.stream.key
        check(not self.is_stopped, f"{key}: an event after STOPPED")
        check(not isinstance(event, BodyEvent), f"{key}: {event} for a worker that pushes a raw body")
        if isinstance(event, StoppedEvent):
            self.is_stopped = True
            return
        assert not isinstance(event, BodyEvent)
        check(event.released_bytes <= self.sent_bytes, f"{key}: RELEASED gives back more than was pushed")
        check(event.released_bytes >= self.released_bytes, f"{key}: RELEASED steps back")
        self.released_bytes = event.released_bytes
        self._plan()
