"""The daemon's life in order: start, run, drain, stop. `__main__` calls `serve`; all of it is the main thread's.

What goes wrong inside is not survived in part: when a plane dies, the process says why and ends with status 70, and the
kernel closes what it held. A supervisor starts a clean one sooner than a damaged one could be mended.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import uvloop

from backends.registry import Registry, RegistryError
from config import VERSION
from daemon.control import logs, signals, stream_table
from daemon.control.accounts import Accounts, summary
from daemon.control.admission import Admission
from daemon.control.commands import CommandWriter
from daemon.control.events import EventReader, EventRecord
from daemon.control.exits import EXIT_CLEAN, EXIT_CONFIGURATION, EXIT_OS_ERROR, EXIT_PLANE_DIED, StartError
from daemon.control.listener import Listener, ListenerOptions, open_listener, raise_descriptor_limit, streams_that_fit
from daemon.control.monitoring import MonitoringServer
from daemon.control.notify import Heartbeat, Notifier
from daemon.control.pages import Condition, health_page, ready_page
from daemon.control.rare_log import RareLog
from daemon.control.reload import read_again
from daemon.control.scripts import ScriptBook, ScriptError
from daemon.control.warming import warm
from daemon.control.workers import WorkerPool
from daemon.loop import DataPlane
from daemon.plane import counters
from daemon.plane import messages as m
from daemon.plane.table import allocate
from daemon.ring.memory import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.load import Loaded
    from config.settings import Settings

BACKLOG_WAIT_S = 0.5  # handoffs that wait when a drain begins are still taken, and answered
LISTENER_IDLE_WAIT_S = 2.0
STOPPED_STREAMS_WAIT_S = 5.0  # for error events and refusals to leave
THREADS_WAIT_S = 5.0
POLL_S = 0.01

logger = logging.getLogger("daemon")


def serve(loaded: Loaded, arguments: Sequence[str]) -> int:
    """Run the daemon until it has drained; the exit status. `arguments` are read again at a reload."""
    logs.configure(loaded.settings.logging.level, loaded.settings.logging.format)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    loop = uvloop.new_event_loop()
    service = Service(loop, loaded.settings, arguments)
    try:
        loop.run_until_complete(service.live())
    except StartError as error:
        service.leave(error.exit_status, str(error))
    except (KernelError, MemoryError, OSError) as error:
        service.leave(EXIT_OS_ERROR, f"cannot start: {error}")
    except (RegistryError, ScriptError) as error:
        service.leave(EXIT_CONFIGURATION, str(error))
    loop.close()
    return EXIT_CLEAN


class Service:
    """One daemon. Its parts are made by `start`, in an order in which each finds what it needs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings, arguments: Sequence[str]) -> None:
        """Nothing that can fail: that is in `start`."""
        self._loop = loop
        self._arguments = arguments
        self._configured = settings  # as the operator wrote them; `settings` fits this process
        self.settings = settings
        self.accounts = Accounts()
        self.notifier = Notifier(os.environ)
        self._listener: Listener | None = None
        self._stop_requested = asyncio.Event()
        self._listener_is_idle = asyncio.Event()
        self._is_stopping = False
        self._is_table_wanted = False
        self._rare = RareLog(logger)

    async def live(self) -> None:
        """The whole life."""
        await self.start()
        await self.run()
        await self.drain()
        self.stop()

    # ---- the phases

    async def start(self) -> None:
        """Make everything that must be there before the first stream, then say READY."""
        self._loop.set_exception_handler(self._control_plane_failed)
        signals.install(self._loop, self._request_stop, self._reload, self._request_table)
        self._fit_streams_to_descriptors()
        self._registry = Registry(self.settings)
        warm(_log_compilation)
        self._plane = allocate(self.settings)
        scripts = ScriptBook(self._plane, (script for _, backend in self._registry for script in backend.scripts()))
        self._listener = open_listener(ListenerOptions.of(self.settings.server), os.environ)
        self._start_data_plane(self._listener)
        self._start_admission(scripts)
        await self._start_monitoring()
        self._announce(self._listener)

    async def run(self) -> None:
        """Until a signal asks for the end."""
        await self._stop_requested.wait()

    async def drain(self) -> None:
        """Take no more handoffs, let live streams finish, and tell those that cannot."""
        shutdown_s = self.settings.timeouts.shutdown_timeout_s
        self.notifier.stopping(f"draining {self.accounts.active} streams, {shutdown_s} s at most")
        self.notifier.extend_timeout(shutdown_s + STOPPED_STREAMS_WAIT_S + THREADS_WAIT_S)
        await self._close_listener()
        if not await _becomes_true(lambda: self._admission.active_count == 0, shutdown_s):
            logger.warning("%d streams did not finish within %d s", self._admission.active_count, shutdown_s)
            self._admission.stop_all()
        if not await _becomes_true(lambda: self._slots_used() == 0, STOPPED_STREAMS_WAIT_S):
            logger.warning("%d slots are abandoned", self._slots_used())

    def stop(self) -> None:
        """End the threads and close what is open."""
        self._is_stopping = True
        self._heartbeat_task.cancel()
        self._monitoring.close()
        self._writer.send(kind=m.SHUTDOWN_PLANE, flags=m.FORCE if self._slots_used() else 0)
        self._loop.remove_reader(self._data_plane.ended_fd)
        threads_have_ended = self._data_plane.join(THREADS_WAIT_S)
        threads_have_ended = self._pool.stop(THREADS_WAIT_S) and threads_have_ended
        self._events.stop()
        if self.settings.monitoring.benchmark:
            print(summary(self.accounts, self._plane), flush=True)
        logger.info("stopped", extra={"completed": self.accounts.completed, "failed": self.accounts.failed})
        self.notifier.close()
        if not threads_have_ended:
            # A thread inside a backend cannot be ended, and must not find its interpreter gone.
            self.leave(EXIT_CLEAN, "a worker's backend did not let go; leaving without it")

    # ---- parts of the start

    def _fit_streams_to_descriptors(self) -> None:
        fitting = streams_that_fit(raise_descriptor_limit(), self._configured.server.max_connections)
        server = msgspec.structs.replace(self._configured.server, max_connections=fitting)
        self.settings = msgspec.structs.replace(self._configured, server=server)

    def _start_data_plane(self, listener: Listener) -> None:
        channel_count = 1 + self.settings.thread_pool.pool_size
        self._data_plane = DataPlane(self.settings, self._plane, listener.socket.fileno(), channel_count)
        self._data_plane.start()
        self._loop.add_reader(self._data_plane.ended_fd, self._data_plane_ended)

    def _start_admission(self, scripts: ScriptBook) -> None:
        data_plane, settings = self._data_plane, self.settings
        self._writer = CommandWriter(data_plane.command_fd, self._loop)
        self._pool = WorkerPool(
            data_plane.event_fds[1:],
            data_plane.command_fd,
            queue_count_max=settings.thread_pool.queue_count_max,
            output_block_bytes=settings.performance.output_block_bytes,
            credit_bytes=settings.limits.credit_bytes,
        )
        self._admission = Admission(
            settings, self._registry, scripts, self._writer, self._pool, self.accounts, kernel=data_plane.kernel
        )
        self._heartbeat = Heartbeat(self.notifier, lambda cookie: self._writer.send(kind=m.PING, cookie=cookie))
        handlers: dict[int, Callable[[EventRecord], None]] = {
            **self._admission.handlers,
            m.LISTENER_IDLE: lambda _record: self._listener_is_idle.set(),
            m.PONG: lambda record: self._heartbeat.pong(record[12]),
            m.TABLE_READY: self._log_table,
            m.ACCEPT_PAUSED: self._accept_paused,
            m.ACCEPT_RESUMED: self._accept_resumed,
        }
        fd = data_plane.event_fds[0]
        self._events = EventReader(fd, self._loop, handlers, self._admission.flush, self._data_plane_ended)
        self._events.start()

    async def _start_monitoring(self) -> None:
        monitoring = self.settings.monitoring
        self._condition = Condition(
            streams_max=self.settings.server.max_connections,
            queue_length=lambda: self._pool.queued_count,
            backend_names=self._registry.names(),
            kernel=self._data_plane.kernel,
            kernel_reason=self._data_plane.kernel_reason,
        )
        self._monitoring = MonitoringServer(
            {"/health": health_page(self.accounts), "/ready": ready_page(self.accounts, self._condition)}
        )
        if monitoring.metrics_port == 0:
            return
        # Only here, so that what is off is not imported.
        from daemon.control.metrics import DaemonCollector, MetricsPage  # noqa: PLC0415

        information = {
            "version": VERSION,
            "kernel": self._data_plane.kernel,
            "sqpoll": str(int(self._data_plane.features.get("sqpoll", False))),
            "thread_pool": str(int(self.settings.thread_pool.thread_pool)),
        }
        collector = DaemonCollector(
            self._plane, self.accounts, information, self._condition.streams_max, self._condition.queue_length
        )
        self._monitoring.add_page("/metrics", MetricsPage(collector))
        await self._monitoring.start(monitoring.metrics_address, monitoring.metrics_port)

    def _announce(self, listener: Listener) -> None:
        """READY, to the log and to systemd."""
        self._heartbeat_task = self._loop.create_task(self._heartbeat.run())
        # What was made until now stays: the collector need not look at it again, which would take the GIL for long.
        gc.collect()
        gc.freeze()
        self._condition.is_started = True
        settings = self.settings
        fields: dict[str, object] = {
            "kernel": self._data_plane.kernel,
            "reason": self._data_plane.kernel_reason,
            "socket": listener.path,
            "streams_max": settings.server.max_connections,
            "backend": settings.server.backend,
            "version": VERSION,
        }
        if settings.monitoring.metrics_port:
            fields["metrics"] = f"{settings.monitoring.metrics_address}:{settings.monitoring.metrics_port}"
        logger.info("READY", extra=fields)
        self.notifier.ready(self._status())

    # ---- parts of the drain

    async def _close_listener(self) -> None:
        """Nobody new finds the socket; who had connected is answered; then the plane lets go of it."""
        assert self._listener is not None
        self._condition.is_draining = True
        self._admission.draining = True
        self._listener.unlink()
        if not self._listener.is_inherited:
            await _becomes_true(self._listener.is_empty, BACKLOG_WAIT_S)
        self._admission.drain()
        try:
            await asyncio.wait_for(self._listener_is_idle.wait(), LISTENER_IDLE_WAIT_S)
        except asyncio.TimeoutError:
            logger.warning("the data plane did not let go of the listener in %.0f s", LISTENER_IDLE_WAIT_S)
        self._listener.close()

    def _slots_used(self) -> int:
        return int(self._plane.counters[counters.SLOTS_USED])

    # ---- signals

    def _request_stop(self, _signal_name: str) -> None:
        self._stop_requested.set()

    def _reload(self) -> None:
        self.notifier.reloading()
        settings = read_again(self._arguments, self._configured)
        if settings is None:
            self.accounts.reloads_failed += 1
        else:
            self.accounts.reloads += 1
            self._configured = settings
            server = msgspec.structs.replace(settings.server, max_connections=self.settings.server.max_connections)
            self.settings = msgspec.structs.replace(settings, server=server)
            logs.configure(settings.logging.level, settings.logging.format)
            self._admission.reload(self.settings)
        self.notifier.ready(self._status())

    def _request_table(self) -> None:
        self._is_table_wanted = True
        self._writer.send(kind=m.TABLE)

    def _log_table(self, _record: EventRecord) -> None:
        if self._is_table_wanted:
            self._is_table_wanted = False
            for line in stream_table.lines(self._plane.snapshot, time.monotonic_ns(), self._admission.backend_of):
                logger.info("%s", line)

    def _status(self) -> str:
        return f"{self._data_plane.kernel}, {self.accounts.active} streams of {self.settings.server.max_connections}"

    # ---- what the planes report

    def _accept_paused(self, record: EventRecord) -> None:
        self._condition.is_accepting = False
        reason = os.strerror(record[4]) if record[4] else "no free slot"
        self._rare.warn(f"accepting pauses, handoffs wait in the backlog: {reason}", f"accept_paused_{record[4]}")

    def _accept_resumed(self, _record: EventRecord) -> None:
        self._condition.is_accepting = True

    def _data_plane_ended(self) -> None:
        if self._is_stopping:
            return
        self._data_plane.join(0.1)
        self.leave(EXIT_PLANE_DIED, f"the data plane died: {self._data_plane.error or 'its loop ended unasked'}")

    def _control_plane_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        logger.critical("the control plane failed: %s", context.get("message"), exc_info=error)
        self.leave(EXIT_PLANE_DIED, f"the control plane died: {error!r}")

    def leave(self, status: int, message: str) -> NoReturn:
        """End the process now: other threads may be anywhere, so nothing is taken down in good order."""
        logger.log(logging.WARNING if status == EXIT_CLEAN else logging.CRITICAL, "%s", message)
        if self._listener is not None:
            self._listener.unlink()
        self.notifier.stopping(message)
        logs.flush()
        sys.stdout.flush()
        os._exit(status)


async def _becomes_true(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition, for so long at most; whether it came to pass."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _log_compilation(step: str, seconds: float) -> None:
    logger.debug("%s: loaded or compiled in %.2f s", step, seconds)
