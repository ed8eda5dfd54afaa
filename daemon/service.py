"""The daemon's life cycle: start, run, drain, stop. `__main__` calls `serve`; all of it runs on the main thread.

An exception in the code of one connection or request ends only that (daemon/control/process/supervision.py). When a
plane dies, the process logs the reason and exits with status 70, and the kernel closes its descriptors: a supervisor
starts a clean process sooner than a damaged one could be repaired.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import uvloop

from backends.interface import OptionError
from backends.registry import Registry, RegistryError
from config import VERSION
from daemon.control.channel.scripts import ScriptError
from daemon.control.process import logs, rate_limited_log, signals
from daemon.control.process.descriptor_limits import connections_that_fit, raise_descriptor_limit, streams_that_fit
from daemon.control.process.exit_codes import EXIT_CLEAN, EXIT_CONFIGURATION, EXIT_OS_ERROR, EXIT_PLANE_DIED, StartError
from daemon.control.process.listener import Listener, ListenerOptions, open_listener
from daemon.control.process.reload import read_again
from daemon.control.process.supervision import Containment, essential_failure, essential_task
from daemon.control.process.systemd import Heartbeat, Notifier
from daemon.control.telemetry.pages import Condition, health_page, metrics_page, ready_page
from daemon.control.telemetry.server import MonitoringServer
from daemon.control.telemetry.stream_counts import Accounts, summary
from daemon.control.telemetry.stream_table import log_streams
from daemon.control.telemetry.upstream_pages import relay_collectors, upstream_statuses
from daemon.control.warmup import load_libraries, needed
from daemon.control.wiring import THREADS_WAIT_S, Planes
from daemon.ring.memory import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.load import Loaded
    from config.settings import Settings
    from daemon.control.http.wiring import FrontEnd

BACKLOG_WAIT_S = 0.5  # handoffs queued when a drain begins are still accepted and answered
STOPPED_STREAMS_WAIT_S = 5.0  # for error events and refusals to be sent
POLL_S = 0.01
SWITCH_INTERVAL_S = 0.001  # for the interpreter, between threads that compute; the default is 5 ms

logger = logging.getLogger("daemon")


def serve(loaded: Loaded, arguments: Sequence[str]) -> int:
    """Run the daemon until it has drained; returns the exit status. `arguments` are parsed again at a reload."""
    logs.configure(loaded.settings.logging.level, loaded.settings.logging.format)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    # With the default, a backend that computes in Python would delay each handoff by up to five times as long.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    loop = uvloop.new_event_loop()
    service = Service(loop, loaded.settings, arguments)
    try:
        loop.run_until_complete(service.live())
    except StartError as error:
        service.leave(error.exit_status, str(error))
    except (RegistryError, ScriptError) as error:
        service.leave(EXIT_CONFIGURATION, str(error))
    except (KernelError, MemoryError, OSError) as error:
        service.leave(EXIT_OS_ERROR, f"cannot start: {error}")
    loop.close()
    return EXIT_CLEAN


class Service:
    """A daemon. `start` makes its parts in the order of their dependencies."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings, arguments: Sequence[str]) -> None:
        """Nothing here can fail: that is in `start`."""
        self._loop = loop
        self._arguments = arguments
        self._configured = settings  # as configured; `_settings` are adjusted to this process
        self._settings = settings
        self._accounts = Accounts()
        self._containment = Containment(self._accounts.contained)
        self._notifier = Notifier(os.environ)
        self._stop_requested = asyncio.Event()
        self._listener: Listener | None = None
        self._metrics_url = ""
        self._front: FrontEnd | None = None
        self._http_url = ""

    async def live(self) -> None:
        """The full life cycle."""
        await self.start()
        await self.run()
        await self.drain()
        self.stop()

    # ---- the four phases

    async def start(self) -> None:
        """Make everything that the first stream needs, then report READY."""
        self._loop.set_exception_handler(self._failed)
        signals.install(self._loop, self._stop_requested.set)
        self._fit_streams_to_descriptors()
        registry = self._registry = Registry(self._settings)
        await load_libraries(needed(self._settings), self._stop_requested)
        if self._settings.http.listen:
            # Imported before anybody can connect: it takes a third of a second, during which nobody is served.
            importlib.import_module("daemon.control.http.wiring")
        self._planes = Planes(self._loop, self._settings, registry)
        self._listener = open_listener(ListenerOptions.of(self._settings.server), os.environ)
        self._heartbeat = Heartbeat(self._notifier, self._planes.ping)
        self._planes.start(
            self._listener.socket.fileno(),
            self._accounts,
            self._heartbeat.pong,
            self._data_plane_died,
            self._containment.contain_event,
        )
        await self._start_monitoring(registry)
        signals.install_others(self._loop, self._reload, functools.partial(log_streams, self._planes))
        self._announce(self._listener)

    async def run(self) -> None:
        """Run until a signal requests the end."""
        await self._stop_requested.wait()

    async def drain(self) -> None:
        """Accept no more handoffs, let live streams finish, and send an error to those that cannot."""
        admission, shutdown_s = self._planes.admission, self._settings.timeouts.shutdown_timeout_s
        self._notifier.stopping(f"draining {self._accounts.active} streams, {shutdown_s} s at most")
        self._notifier.extend_timeout(shutdown_s + STOPPED_STREAMS_WAIT_S + 2 * THREADS_WAIT_S)
        await self._close_listener()
        if not await _becomes_true(lambda: admission.active_count == 0, shutdown_s):
            logger.warning("%d streams did not finish within %d s", admission.active_count, shutdown_s)
            admission.stop_all()
        # A slot is freed before its ENDED event is handled, and only handled events are counted.
        if not await _becomes_true(
            lambda: self._planes.slots_used == admission.active_count == 0, STOPPED_STREAMS_WAIT_S
        ):
            logger.warning("%d slots were not released", self._planes.slots_used)
        if self._front is not None:
            await self._front.close()

    def stop(self) -> None:
        """End the threads and close what is open."""
        self._heartbeat_task.cancel()
        self._rare_task.cancel()
        self._monitoring.close()
        threads_have_ended = self._planes.stop()
        self._registry.close()
        if self._settings.monitoring.benchmark:
            print(summary(self._accounts, self._planes.plane), flush=True)
        rate_limited_log.log_all()
        logger.info("stopped", extra={"completed": self._accounts.completed, "failed": self._accounts.failed})
        if not threads_have_ended:
            # A thread inside a backend cannot be stopped, and must not run during the interpreter's shutdown.
            self.leave(EXIT_CLEAN, "a backend did not return: exiting without waiting for its thread")
        self._notifier.close()

    # ---- parts of the phases

    def _fit_streams_to_descriptors(self) -> None:
        descriptors, http = raise_descriptor_limit(), self._configured.http
        if http.listen:
            # Idle connections of the front must not use up the descriptors that handoffs need.
            http = msgspec.structs.replace(
                http, connections_max=connections_that_fit(descriptors, http.connections_max)
            )
            descriptors -= 2 * http.connections_max
        fitting = streams_that_fit(descriptors, self._configured.server.max_connections)
        server = msgspec.structs.replace(self._configured.server, max_connections=fitting)
        self._settings = msgspec.structs.replace(self._configured, server=server, http=http)

    async def _start_monitoring(self, registry: Registry) -> None:
        accounts, monitoring, http = self._accounts, self._settings.monitoring, self._settings.http
        self._condition = Condition(self._planes, registry.names(), self._settings.server.max_connections)
        self._condition.upstreams = functools.partial(
            upstream_statuses, self._planes, self._settings.server.backend, serves_http=bool(http.listen)
        )
        pages = {"/health": health_page(accounts), "/ready": ready_page(accounts, self._condition)}
        collectors = relay_collectors(self._planes)
        if http.listen:
            # Disabled parts are not imported.
            from daemon.control.http.wiring import FrontEnd  # noqa: PLC0415

            self._front = FrontEnd(self._settings, registry, self._planes.relaying, self._planes.admission, pages)
            collectors.append(self._front.accounts)
        if monitoring.metrics_port or http.listen:
            thread_pool = self._settings.thread_pool.thread_pool
            pages["/metrics"] = metrics_page(accounts, self._condition, thread_pool=thread_pool, collectors=collectors)
        self._monitoring = MonitoringServer(pages)
        if monitoring.metrics_port:
            address, port = await self._monitoring.start(monitoring.metrics_address, monitoring.metrics_port)
            self._metrics_url = f"http://{f'[{address}]' if ':' in address else address}:{port}/metrics"
        if self._front is not None:
            self._http_url = await self._front.start()

    def _announce(self, listener: Listener) -> None:
        """Report READY, to the log and to systemd."""
        self._heartbeat_task = essential_task(self._loop, "heartbeat", self._heartbeat.run())
        self._rare_task = essential_task(self._loop, "rare log", rate_limited_log.log_as_due())
        # Objects made so far live for ever: scanning them again would hold the GIL for long, and free nothing.
        gc.collect()
        gc.freeze()
        self._condition.is_started = True
        settings, data_plane = self._settings, self._planes.data_plane
        fields: dict[str, object] = {
            "kernel": data_plane.kernel,
            "reason": data_plane.kernel_reason,
            "socket": listener.path,
            "streams_max": settings.server.max_connections,
            "backend": settings.server.backend,
            "version": VERSION,
        }
        if self._metrics_url:
            fields["metrics"] = self._metrics_url
        if self._http_url:
            fields["http"] = self._http_url
        logger.info("READY", extra=fields)
        self._notifier.ready(self._status())

    async def _close_listener(self) -> None:
        """Remove the socket, answer the clients that have connected, then have the plane release it."""
        assert self._listener is not None
        self._condition.is_draining = self._planes.admission.draining = True
        self._listener.unlink()
        if self._front is not None:
            self._front.stop_listening()
        if not self._listener.is_inherited:
            await _becomes_true(self._listener.is_empty, BACKLOG_WAIT_S)
        await self._planes.let_go_of_listener()
        self._listener.close()

    def _reload(self) -> None:
        """SIGHUP. An error in the front's own files fails the reload, but all other settings take effect."""
        self._notifier.reloading()
        settings = read_again(self._arguments, self._configured)
        if settings is not None and self._put_in_force(settings):
            self._accounts.reloads += 1
        else:
            self._accounts.reloads_failed += 1
        self._notifier.ready(self._status())

    def _put_in_force(self, settings: Settings) -> bool:
        # The number of streams that fit was decided at start, and a reload does not change it.
        server = msgspec.structs.replace(settings.server, max_connections=self._condition.streams_max)
        fitting = msgspec.structs.replace(settings, server=server)
        is_whole = True
        try:
            self._planes.admission.reload(fitting)
            self._planes.watch_upstreams()
            if self._front is not None:
                is_whole = self._front.reload(fitting)
        except OptionError as error:
            logger.error("reload failed, the configuration in force stays: %s", error)  # noqa: TRY400 (no traceback)
            return False
        except Exception:  # a user's backend reads its own options here, and must not end all streams
            logger.exception("reload: a backend rejected its new options")
            return False
        self._configured, self._settings = settings, fitting
        logs.configure(settings.logging.level, settings.logging.format)
        return is_whole

    def _status(self) -> str:
        return f"{self._planes.data_plane.kernel}, {self._accounts.active} streams of {self._condition.streams_max}"

    # ---- failures of a plane

    def _data_plane_died(self, reason: str) -> None:
        self.leave(EXIT_PLANE_DIED, reason)

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The event loop's exception handler: no code caught this exception."""
        error = essential_failure(context)
        if error is None:
            self._containment.contain(context)
            return
        logger.critical("%s", context.get("message", "the event loop failed"), exc_info=error)
        self.leave(EXIT_PLANE_DIED, f"the control plane died: {error}: {error.__cause__!r}")

    def leave(self, status: int, message: str) -> NoReturn:
        """Exit now: the state of other threads is unknown, so nothing is shut down in order."""
        rate_limited_log.log_all()
        logger.log(logging.WARNING if status == EXIT_CLEAN else logging.CRITICAL, "%s", message)
        if self._listener is not None:
            self._listener.unlink()
        self._notifier.stopping(message)
        logs.flush()
        sys.stdout.flush()
        os._exit(status)


async def _becomes_true(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition, at most `timeout_s`; whether it became true."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        await asyncio.sleep(POLL_S)
    return True
