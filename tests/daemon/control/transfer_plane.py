"""A plane for `Transfers`: it takes what is pushed as the real one does, and keeps it by stream."""

from __future__ import annotations

import asyncio
import select
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backends.relay import Attempt, Failure, Origin
from daemon.control.transfers.client import Transfers
from daemon.plane import messages as m
from daemon.plane import state as st
from tests.daemon.control.channels import Channels, Recorded, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.upstream import Upstream

CHANNEL = 5
TIMEOUT_S = 30.0
RELEASE_BYTES = 4096  # the real plane tells of so much at a time
GENERATION = 7


@dataclass
class Seen:
    """What has come of one stream."""

    number: int  # of the attempt that counts
    body: bytes = b""
    push_count: int = 0
    released_bytes: int = 0
    is_started: bool = False
    is_finished: bool = False
    is_complete: bool = False
    failure: Failure | None = None

    @property
    def is_over(self) -> bool:
        return self.is_finished or self.failure is not None


@dataclass
class Plane:
    """The main thread and the plane at once. `releases` = False: a client that takes nothing."""

    channels: Channels
    releases: bool = True
    reads: bool = True
    streams: dict[int, Seen] = field(default_factory=dict[int, Seen])
    write_sizes: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.transfers = Transfers(self.loop, CHANNEL, self.channels.event_fd, self.channels.command_fd, self._failed)

    def close(self) -> None:
        assert self.transfers.stop(TIMEOUT_S)
        self.loop.close()
        self.channels.close()

    # ---- the main thread

    def begin(
        self, slot: int, origin: Origin, model: str = "m", *, number: int = 1, headers: tuple[tuple[str, str], ...] = ()
    ) -> Seen:
        """Have an attempt made, as the control plane does; ask the upstream for this model."""
        body = b'{"model":"%s"}' % model.encode()
        return self.begin_attempt(slot, Attempt(origin, "/v1/chat/completions", headers, body), number=number)

    def begin_attempt(self, slot: int, attempt: Attempt, *, number: int = 1) -> Seen:
        self.streams[slot] = Seen(number)
        self.transfers.begin(slot, GENERATION, number, attempt)
        return self.streams[slot]

    def cancel(self, slot: int, closed: Callable[[float], None] | None = None) -> None:
        self.transfers.cancel(slot, GENERATION, closed)

    def _failed(self, slot: int, generation: int, number: int, failure: Failure) -> None:
        assert generation == GENERATION
        seen = self.streams[slot]
        assert seen.number == number
        assert not seen.is_started
        assert seen.failure is None
        seen.failure = failure

    # ---- the plane

    def stopped(self, slot: int, reason: int = st.COMPLETE, *, drained: bool = False) -> None:
        """The stream is over; of one that was drained the upstream had said all when its client was long gone."""
        flags = m.COMPLETE if drained or reason == st.COMPLETE else 0
        self.channels.event(m.STOPPED, slot=slot, generation=GENERATION, reason=reason, flags=flags)

    def release(self, slot: int, released_bytes: int) -> None:
        self.streams[slot].released_bytes = released_bytes
        self.channels.event(m.RELEASED, slot=slot, generation=GENERATION, released_bytes=released_bytes)

    def until(self, holds: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Go on until something is so."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline_s, f"within {timeout_s} s not: {what}; {self.streams}"[:2000]
            self.go_on(0.02)

    def until_over(self, *streams: Seen) -> None:
        self.until(lambda: all(seen.is_over for seen in streams), "every stream over")

    def go_on(self, seconds: float) -> None:
        """Take what comes for so long; at least once."""
        deadline_s = time.monotonic() + seconds
        while True:
            self.loop.run_until_complete(asyncio.sleep(0))
            if self.reads:
                for data in self.channels.writes():
                    self.write_sizes.append(len(data))
                    for command in parse(data):
                        self._take(command)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            readable = [self.channels.command_read_fd] if self.reads else []
            select.select(readable, [], [], min(left_s, 0.005))

    def _take(self, command: Recorded) -> None:
        seen = self.streams[command.slot]
        assert command.generation == GENERATION
        if command.attempt != seen.number:
            return  # of an attempt that was given up
        assert not seen.is_finished
        if command.kind == m.START:
            assert command.channel == CHANNEL
            assert not seen.is_started
            seen.is_started = True
        elif command.kind == m.PUSH:
            assert command.flags == m.RAW
            assert seen.is_started
            seen.body += command.payload
            seen.push_count += 1
            assert len(seen.body) <= seen.released_bytes + m.RAW_CREDIT_BYTES
            if self.releases and len(seen.body) - seen.released_bytes >= RELEASE_BYTES:
                self.release(command.slot, len(seen.body))
        else:
            assert command.kind == m.FINISH
            assert command.flags & m.RAW
            assert seen.is_started
            seen.is_finished = True
            seen.is_complete = bool(command.flags & m.COMPLETE)


def origin(upstream: Upstream, **changes: object) -> Origin:
    """The upstream by TLS, unless `changes` say otherwise."""
    values: dict[str, object] = {
        "name": "upstream",
        "scheme": "https",
        "host": "localhost",
        "port": upstream.tls_port,
        "ca_file": upstream.ca_file,
        **changes,
    }
    return Origin(**values)  # type: ignore[arg-type]


def plain_origin(upstream: Upstream, **changes: object) -> Origin:
    """By HTTP/2 without TLS."""
    return origin(
        upstream, **{"scheme": "http", "http2": True, "host": "127.0.0.1", "port": upstream.tcp_port, **changes}
    )
