"""A stream that a worker makes, as main thread, pool and worker know it. Who writes a field is said beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from backends.interface import Backend, Format, Request


class Wakeable(Protocol):
    """A thread that serves a job, as others see it."""

    def wake(self) -> None:
        """There is something to look at. Any thread."""


class Job:
    """A stream for a worker. Compared by identity."""

    __slots__ = (
        "awaits_upload",
        "backend",
        "cancelled",
        "chunked",
        "ended",
        "generation",
        "has_body",
        "head",
        "lines",
        "name",
        "request",
        "settled",
        "slot",
        "style",
        "worker",
    )

    def __init__(self, slot: int, generation: int, name: str, backend: Backend, request: Request) -> None:
        """A job that streams with the standard head, without chunked framing; admission changes that where needed."""
        self.slot = slot
        self.generation = generation
        self.name = name
        self.backend = backend
        self.request = request
        self.head: bytes | None = None  # None is the standard head
        self.style: Format = backend.format  # the form of its errors
        self.lines: bytes | None = None  # of its responses that are errors; None for a handoff
        self.chunked = False
        self.has_body = False
        # Written by the main thread.
        self.cancelled = False  # the stream has been stopped: what is still sent is dropped
        self.ended = False  # and the plane has let go of everything
        # Written by the worker; the main thread asks when a deadline has passed.
        self.awaits_upload = False  # it waits for the next piece of the body, so it is the client that is silent
        # Written by the pool, under its lock, and by the worker.
        self.worker: Wakeable | None = None
        self.settled = False  # the worker is done with it and holds nothing for it
