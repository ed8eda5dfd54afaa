"""Both planes and what goes between them: the data plane's thread, its channels, the workers, admission. Main thread.

`start` wires them; what the data plane reports about itself, and not about a stream, is handled here.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from typing import TYPE_CHECKING

from daemon.control.admission.admission import Admission
from daemon.control.channel.command_pipe import CommandWriter
from daemon.control.channel.events import EventReader, Handler, handler
from daemon.control.channel.scripts import ScriptBook
from daemon.control.process.rate_limited_log import RateLimitedLog
from daemon.control.process.supervision import essential
from daemon.control.relay.attempts import Relays
from daemon.control.relay.backends import relaying_backends
from daemon.control.relay.final_events import last_events
from daemon.control.relay.reachability import Reachability
from daemon.control.relay.resolver import Resolver
from daemon.control.transfers.client import Transfers
from daemon.control.workers.pool import WorkerPool
from daemon.data_plane import DataPlane
from daemon.plane import counters
from daemon.plane import messages as m
from daemon.plane.command_records import PingCommand, ShutdownPlaneCommand, TableCommand
from daemon.plane.event_records import (
    AcceptPausedEvent,
    AcceptResumedEvent,
    ListenerIdleEvent,
    PongEvent,
    StreamEvent,
    TableReadyEvent,
)
from daemon.plane.table import allocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.registry import Registry
    from config.settings import Settings
    from daemon.control.stream.stream import Observer, Stream
    from daemon.plane.event_records import Event

LISTENER_IDLE_WAIT_S = 2.0
THREADS_WAIT_S = 5.0
JOIN_S = 0.01  # between two looks at what the data plane says while it stops

logger = logging.getLogger(__name__)


class Planes:
    """The data plane and the parts of the control plane that speak with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings, registry: Registry) -> None:
        """Allocate the data plane's memory and write the backends' scripts into it. Raises ScriptError."""
        self._loop = loop
        self._settings = settings
        self._registry = registry
        self.plane = allocate(settings)
        self._scripts = ScriptBook(self.plane, (script for _, backend in registry for script in backend.scripts()))
        self._listener_is_idle = asyncio.Event()
        self._table_copied: Callable[[], None] | None = None
        self._rare = RateLimitedLog(logger)
        self.relaying = relaying_backends(registry)
        self.relays: Relays | None = None
        self.is_accepting = True  # false while the data plane is short of descriptors or slots

    def start(
        self,
        listener_fd: int,
        observer: Observer,
        pong: Callable[[int], None],
        died: Callable[[str], None],
        contain_event: Callable[[Event, Exception], None],
    ) -> None:
        """Start the thread and listen to it; `died` is called if it ends unasked. Raises KernelError.

        `contain_event` counts and logs an exception of a handler of one stream's event.
        """
        settings, loop = self._settings, self._loop
        self._died = died
        self._pong = pong
        self._contain_event = contain_event
        # The last channel is that of the thread that relays by libcurl.
        channel_count = 1 + settings.thread_pool.pool_size + bool(self.relaying)
        self.data_plane = DataPlane(settings, self.plane, listener_fd, channel_count)
        self.data_plane.start()
        command_fd, event_fds = self.data_plane.command_fd, self.data_plane.event_fds
        self._writer = CommandWriter(command_fd, loop)
        self._pool = WorkerPool(
            event_fds[1 : 1 + settings.thread_pool.pool_size],
            command_fd,
            queue_count_max=settings.thread_pool.queue_count_max,
            output_block_bytes=settings.performance.output_block_bytes,
            credit_bytes=settings.limits.credit_bytes,
        )
        kernel = self.data_plane.kernel
        relays = self._make_relays if self.relaying else None
        self.admission = Admission(
            settings, self._registry, self._scripts, self._writer, self._pool, observer, kernel=kernel, relays=relays
        )
        if self.relays is not None:
            failed = self.relays.transfer_failed
            self.relays.transfers = Transfers(loop, channel_count - 1, event_fds[-1], command_fd, failed)
            self.watch_upstreams()
        self._events = EventReader(
            event_fds[0], loop, self._handlers(), self.admission.flush, self._ended, self._event_failed
        )
        self._events.start()
        loop.add_reader(self.data_plane.ended_fd, essential("end of the data plane", self._ended))

    def _make_relays(self, stream_of: Callable[[int], Stream | None]) -> Relays:
        self.resolver = Resolver(self._loop)
        self.reachability = Reachability(self._loop, self.resolver)
        self.relays = Relays(self._loop, self._writer, self.resolver, self.reachability, stream_of)
        return self.relays

    def watch_upstreams(self) -> None:
        """See whether upstreams can be reached; again after a reload."""
        if self.relays is not None:
            origins = [origin for backend in self.relaying.values() for origin in backend.origins()]
            self.reachability.watch(origins)
            self.relays.forget_others(origins)

    @property
    def slots_used(self) -> int:
        """Slots that are not free: streams, and handoffs being received, refused or closed."""
        return int(self.plane.counters[counters.SLOTS_USED])

    def queue_length(self) -> int:
        """Streams that wait for a worker."""
        return self._pool.queued_count

    def queue_length_max(self) -> int:
        """How many may wait."""
        return self._pool.queue_count_max

    def ping(self, cookie: int) -> None:
        """Ask the data plane for a sign of life: `pong` will be called."""
        self._writer.send(PingCommand(cookie))

    def copy_table(self, copied: Callable[[], None]) -> None:
        """Have the data plane copy its table; `copied` is called when `plane.snapshot` has it."""
        self._table_copied = copied
        self._writer.send(TableCommand())

    async def let_go_of_listener(self) -> None:
        """Accept no more; returns when the listener may be closed."""
        self.admission.drain()
        try:
            await asyncio.wait_for(self._listener_is_idle.wait(), LISTENER_IDLE_WAIT_S)
        except asyncio.TimeoutError:
            logger.warning("the data plane did not let go of the listener in %.0f s", LISTENER_IDLE_WAIT_S)

    def stop(self) -> bool:
        """End all threads. False when one of them did not end: it is inside a backend."""
        self._loop.remove_reader(self.data_plane.ended_fd)
        self._events.stop()
        self._writer.send(ShutdownPlaneCommand(flags=m.FORCE if self.slots_used else 0))
        plane_has_ended = self._join_data_plane()
        # A plane that does not end is left behind with the process: what its records say now is all there will be.
        self.admission.settle(functools.partial(last_events, self.plane))
        if self.relays is not None:
            self.relays.settle()
        transfers_have_ended = True
        if self.relays is not None and self.relays.transfers is not None:
            self.reachability.close()
            self.resolver.close()
            transfers_have_ended = self.relays.transfers.stop(THREADS_WAIT_S)
        return self._pool.stop(THREADS_WAIT_S) and plane_has_ended and transfers_have_ended

    def _join_data_plane(self) -> bool:
        """Its last events are read meanwhile, and behind it: they are ends of streams, for the accounts."""
        deadline_s = time.monotonic() + THREADS_WAIT_S
        while not (has_ended := self.data_plane.join(JOIN_S)) and time.monotonic() < deadline_s:
            self._events.read_rest()
        self._events.read_rest()
        return has_ended

    # ---- what the data plane reports of itself

    def _handlers(self) -> list[Handler]:
        return [
            *self.admission.handlers,
            handler(ListenerIdleEvent, lambda _event: self._listener_is_idle.set()),
            handler(PongEvent, lambda event: self._pong(event.cookie)),
            handler(TableReadyEvent, self._table_ready),
            handler(AcceptPausedEvent, self._accept_paused),
            handler(AcceptResumedEvent, self._accept_resumed),
        ]

    def _event_failed(self, event: Event, error: Exception) -> None:
        """A failure about one stream ends that stream alone; one about the plane itself is essential."""
        if not isinstance(event, StreamEvent):
            raise error
        self._contain_event(event, error)
        self.admission.end_failed(event)

    def _table_ready(self, _event: TableReadyEvent) -> None:
        # The copy stays as it is until the next TABLE, and only we ask for one.
        copied, self._table_copied = self._table_copied, None
        if copied is not None:
            copied()

    def _accept_paused(self, event: AcceptPausedEvent) -> None:
        self.is_accepting = False
        reason = os.strerror(event.error) if event.error else "no free slot"
        self._rare.warn(f"accepting pauses, handoffs wait in the backlog: {reason}", f"accept_paused_{event.error}")

    def _accept_resumed(self, _event: AcceptResumedEvent) -> None:
        self.is_accepting = True

    def _ended(self) -> None:
        self.data_plane.join(0.1)  # what it has to say is said last
        self._died(f"the data plane died: {self.data_plane.error or 'its loop ended unasked'}")
