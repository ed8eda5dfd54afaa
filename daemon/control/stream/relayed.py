"""The record of a relayed stream. relay/attempts writes it; admission and the HTTP front hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from backends.relay import Attempt, Relay
    from daemon.control.stream.client_outcome import Told
    from daemon.plane.event_records import UsageEvent


class Relayed:
    """One relayed stream. Bytes that the plane reads by address stay here until ENDED."""

    __slots__ = (
        "address_index",
        "addresses",
        "attempt",
        "by_worker",
        "endpoint",
        "kept",
        "number",
        "relay",
        "timer",
        "told",
        "usage",
    )

    def __init__(self, relay: Relay) -> None:
        """No attempt has been made."""
        self.relay = relay
        self.attempt: Attempt | None = None
        self.number = 0
        self.addresses: tuple[bytes, ...] = ()
        self.address_index = 0
        self.endpoint = -1  # held by the attempt that the plane makes
        self.kept: list[bytes] = []
        self.by_worker = False
        self.timer: asyncio.TimerHandle | None = None
        self.usage: UsageEvent | None = None
        self.told: Told | None = None  # set where the stream is read here, and its client gets an answer in one piece
