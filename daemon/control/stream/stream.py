"""What the control plane knows of each slot whose handoff it has answered, and whom it tells of beginnings and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.interface import Format
    from daemon.control.stream.job import Job
    from daemon.control.stream.relayed import Relayed


class Observer(Protocol):
    """Told how streams begin and end; called on the main thread."""

    def stream_started(self, backend: str) -> None:
        """A handoff was let in."""

    def stream_ended(self, backend: str | None, reason: int) -> None:
        """A slot is free again; `backend` is None when its stream never started."""

    def handoff_rejected(self, reason: str) -> None:
        """A handoff was answered with a refusal."""


class SilentObserver:
    """An observer that takes no notice."""

    def stream_started(self, backend: str) -> None:
        """Nothing."""

    def stream_ended(self, backend: str | None, reason: int) -> None:
        """Nothing."""

    def handoff_rejected(self, reason: str) -> None:
        """Nothing."""


class Stream:
    """One handoff from HANDOFF on, and one stream from its OPEN to its ENDED."""

    __slots__ = (
        "accepted_ns",
        "backend",
        "ended",
        "generation",
        "has_body",
        "head",
        "job",
        "lines",
        "relayed",
        "slot",
        "style",
        "user",
    )

    def __init__(self, slot: int, generation: int, accepted_ns: int) -> None:
        """`accepted_ns` is CLOCK_MONOTONIC."""
        self.slot = slot
        self.generation = generation
        self.accepted_ns = accepted_ns
        self.backend = "-"
        self.style: Format = "content"
        self.user: int | str | None = None  # set where a limit per user counts this stream
        self.head: bytes | None = None  # None is the standard head
        self.job: Job | None = None
        self.relayed: Relayed | None = None
        # Of an adoption only what is needed later: its request would weigh more than all else that is kept of a stream.
        self.lines: bytes | None = None  # header lines for whole responses; None for a handoff
        self.ended: Callable[[int], None] | None = None  # called with the reason
        self.has_body = False
