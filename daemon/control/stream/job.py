"""A stream that a worker produces, as the main thread, the pool and the worker share it. Comments name each writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from backends.interface import Backend, Format, Request


class Wakeable(Protocol):
    """A thread that serves a job, as others see it."""

    def wake(self) -> None:
        """Make it check its state. Any thread."""


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
        """A job with the standard head and without chunked framing; admission changes that where needed."""
        self.slot = slot
        self.generation = generation
        self.name = name
        self.backend = backend
        self.request = request
        self.head: bytes | None = None  # None: the standard head
        self.style: Format = backend.format  # the format of its errors
        self.lines: bytes | None = None  # header lines of its error responses; None for a handoff
        self.chunked = False
        self.has_body = False
        # Written by the main thread.
        self.cancelled = False  # the stream has been stopped: further output is dropped
        self.ended = False  # and the plane has released everything
        # Written by the worker; read by the main thread when a deadline has passed.
        self.awaits_upload = False  # it waits for more of the body, so the client is the silent side
        # Written by the pool, under its lock, and by the worker.
        self.worker: Wakeable | None = None
        self.settled = False  # the worker is done with it and holds nothing for it
