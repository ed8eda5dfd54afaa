"""The HTTP front under load: the daemon with its `test-model`, and a plain FastAPI application, measured in turn."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench import comparing, completion_events, http_load, processes
from scripts.bench.http_load import HttpPlan
from scripts.bench.options import FLOOR
from scripts.bench.probe import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from scripts.bench.options import Options
    from scripts.bench.scenarios import Scenario

STREAMS_MAX_DEFAULT = 10_000  # the daemon's own
_PROBE_TOKENS = 3
_SETTLE_S = 1.0  # the daemon lets go of memory once it is ready
_POLL_S = 0.02


@dataclass(frozen=True)
class HttpServer:
    """Somebody who answers completions on a port of 127.0.0.1, and the load it gets."""

    name: str
    port: int
    pid: int
    plan: HttpPlan
    ready_s: float  # from its start


def daemon_config(scenario: Scenario) -> str:
    """The test model at the scenario's pace, and room for its streams."""
    per_second = round(1000 / scenario.interval_ms) if scenario.interval_ms else 0
    lines = ["[backend.test_model]", 'enabled = "on"', f"tokens_per_second = {per_second}"]
    if scenario.streams > STREAMS_MAX_DEFAULT:
        lines = ["[server]", f"max_connections = {scenario.streams}", *lines]
    return "\n".join(lines) + "\n"


def plan_of(options: Options, scenario: Scenario) -> HttpPlan:
    """The scenario's load."""
    assert scenario.messages is not None, "an HTTP scenario says how many tokens"
    return HttpPlan(
        streams=scenario.streams,
        total=scenario.total,
        tokens=scenario.messages,
        interval_ms=scenario.interval_ms,
        rate_per_s=scenario.rate_per_s,
        stall_timeout_s=options.stall_timeout_s,
    )


def check_one(port: int, timeout_s: float) -> None:
    """Read one stream before the run. ProbeError where it is not what the clients will expect."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    with contextlib.closing(connection):
        try:
            body = completion_events.request(_PROBE_TOKENS, port).partition(b"\r\n\r\n")[2]
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ProbeError(f"the stream before the run failed: {error}") from error
    if response.status != 200 or not completion_events.is_right(text, _PROBE_TOKENS):
        raise ProbeError(f"the stream before the run was answered with {response.status}: {text[:300]!r}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_answering(port: int) -> bool:
    """Whether somebody listens on that port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _running_daemon(command: Sequence[str], folder: Path) -> Generator[tuple[int, float]]:
    """Its process, and how long it took to say READY, as it tells systemd."""
    path = folder / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(path))
        notified.settimeout(_POLL_S)

        def is_ready() -> bool:
            with contextlib.suppress(TimeoutError):
                return notified.recv(4096).startswith(b"READY=1")
            return False

        begin = time.monotonic()
        environment = {**os.environ, "NOTIFY_SOCKET": str(path)}
        with processes.started(command, is_ready, environment) as process:
            yield process.pid, time.monotonic() - begin


@contextlib.contextmanager
def _servers(options: Options, scenario: Scenario) -> Generator[list[HttpServer]]:
    """The daemon, and the baseline where there is one; both stay up over all rounds."""
    plan = plan_of(options, scenario)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        config = folder / "daemon.toml"
        config.write_text(daemon_config(scenario))
        port = _free_port()
        command = [sys.executable, "-m", "daemon", "--socket", str(folder / "daemon.sock"), "--config", str(config)]
        command += ["--http", f"127.0.0.1:{port}", *shlex.split(options.daemon_arguments)]
        pid, ready_s = stack.enter_context(_running_daemon(command, folder))
        check_one(port, options.stall_timeout_s)
        servers = [HttpServer("daemon", port, pid, plan, ready_s)]
        if options.baseline == FLOOR and scenario.baseline_share:
            port = _free_port()
            command = [sys.executable, "-m", "scripts.bench.plain_fastapi", str(port)]
            begin = time.monotonic()
            process = stack.enter_context(processes.started(command, lambda: is_answering(port)))
            check_one(port, options.stall_timeout_s)
            # It keeps no pace.
            less = replace(plan, total=max(1, round(plan.total * scenario.baseline_share)), interval_ms=0.0)
            servers.append(HttpServer("baseline", port, process.pid, less, time.monotonic() - begin))
        time.sleep(_SETTLE_S)
        yield servers


def run_scenario(options: Options, scenario: Scenario, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all rounds of an HTTP scenario. The figures of each and the ratios, as `comparing.run_scenario` has them."""
    rounds: list[dict[str, Any]] = []
    with _servers(options, scenario) as servers:
        for number in range(options.rounds):
            figures: dict[str, Any] = {}
            rounds.append(figures)
            for server in servers:
                say(f"round {number + 1} of {options.rounds}: {server.name} ...")
                figures[server.name] = http_load.run_http_load(server.plan, server.port, server.pid)
        ready_s = {server.name: server.ready_s for server in servers}
    return {
        "scenario": scenario.name,
        "sockets": "http",
        "streams": scenario.streams,
        "total": scenario.total,
        "messages": scenario.messages,
        "interval_ms": scenario.interval_ms,
        "rate_per_s": scenario.rate_per_s,
        "checked": "bytes",
        "rounds": rounds,
        "ratios": comparing.ratios([figures for figures in rounds if len(figures) == 2]),
        "http": {"ready_s": ready_s},
    }
