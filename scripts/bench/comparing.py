"""A scenario on one or two servers: start them, learn what to expect, run the rounds in turn, compare."""

from __future__ import annotations

import contextlib
import shlex
import socket
import statistics
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench import probe, processes
from scripts.bench.load import Plan, run_load
from scripts.bench.options import baseline_command
from scripts.bench.tables import NUMBER_PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from scripts.bench.options import Options
    from scripts.bench.scenarios import Scenario


@dataclass(frozen=True)
class Server:
    """Somebody who listens for handoffs, and the load it gets."""

    name: str
    path: str
    pid: int
    plan: Plan


def _listening_pid(path: str, socket_type: socket.SocketKind) -> int:
    """The process that listens on a Unix socket; 0 where we may not see it (another container)."""
    with socket.socket(socket.AF_UNIX, socket_type) as peer:
        peer.connect(path)
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def filled(command: str, scenario: Scenario, path: str, upstream: str = "") -> list[str]:
    """A command line with its placeholders filled in, split as a shell would."""
    messages = "" if scenario.messages is None else str(scenario.messages)
    values = {"{socket}": path, "{interval_ms}": f"{scenario.interval_ms:g}", "{messages}": messages}
    values["{upstream}"] = upstream
    words = shlex.split(command)
    for placeholder, value in values.items():
        words = [word.replace(placeholder, value) for word in words]
    return [word for word in words if word]


def daemon_command(options: Options, scenario: Scenario, path: str, folder: Path, config: str) -> list[str]:
    """How the daemon is started, with this configuration if any."""
    command = [sys.executable, "-m", "daemon", "--socket", path, *scenario.daemon_arguments()]
    if options.socket_type == socket.SOCK_STREAM:
        command += ["--socket-type", "stream"]
    if config:
        file = folder / "daemon.toml"
        file.write_text(config)
        command += ["--config", str(file)]
    return command + filled(options.daemon_arguments, scenario, path)


def _learnt_plan(options: Options, scenario: Scenario, path: str, *, tcp: bool) -> Plan:
    """The load for one server: what it must answer is in the file, or learnt from one stream."""
    expected = b""
    messages = -1 if scenario.messages is None else scenario.messages
    if options.expect_file is not None:
        expected = probe.STANDARD_HEAD + options.expect_file.read_bytes()
    elif options.is_checked:
        expected = probe.learn(path, options.socket_type, options.handoff, options.stall_timeout_s)
    if expected:
        found = probe.message_count(expected)
        if messages not in (-1, found):
            raise probe.ProbeError(f"{messages} messages a stream are asked for, and {found} are expected or were sent")
        messages = found
    return plan_of(options, scenario, expected, messages, tcp=tcp)


def plan_of(options: Options, scenario: Scenario, expected: bytes, messages: int, *, tcp: bool) -> Plan:
    """The scenario's load, with this answer expected."""
    return Plan(
        streams=scenario.streams,
        total=scenario.total,
        handoff=options.handoff,
        expected=expected,
        messages=messages,
        interval_ms=scenario.interval_ms,
        rate_per_s=scenario.rate_per_s,
        tcp=tcp,
        socket_type=options.socket_type,
        connect_timeout_s=options.connect_timeout_s,
        stall_timeout_s=options.stall_timeout_s,
    )


@contextlib.contextmanager
def _servers(options: Options, scenario: Scenario, *, tcp: bool) -> Generator[list[Server]]:
    """The daemon and, if asked for, the baseline; both stay up over all rounds, as an idle one costs nothing."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        path, pid = options.socket_path, options.pid
        if not path:
            path = str(folder / "daemon.sock")
            command = daemon_command(options, scenario, path, folder, scenario.daemon_config())
            pid = pid or stack.enter_context(processes.running(command, path, options.socket_type)).pid
        servers = [
            Server(
                "daemon",
                path,
                pid or _listening_pid(path, options.socket_type),
                _learnt_plan(options, scenario, path, tcp=tcp),
            )
        ]
        if baseline := baseline_command(options, scenario):
            path = str(folder / "baseline.sock")
            command = filled(baseline, scenario, path)
            pid = stack.enter_context(processes.running(command, path, options.socket_type)).pid
            servers.append(Server("baseline", path, pid, _learnt_plan(options, scenario, path, tcp=tcp)))
        yield servers


def _warn_where_descriptors_lack(server: Server) -> str:
    with contextlib.suppress(OSError):
        limit = processes.open_files_limit(server.pid) if server.pid else server.plan.streams * 2
        if limit < server.plan.streams:
            return f"{server.name} may open {limit} files, fewer than the {server.plan.streams} streams asked for"
    return ""


def ratios(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The daemon's cost over the baseline's, round by round, and the median: machines drift, pairs do not."""
    found: dict[str, Any] = {}
    for figure in ("cpu_us_per_message", "cpu_us_per_stream", "cpu_us_per_token"):
        pairs = [(run["daemon"]["server"].get(figure), run["baseline"]["server"].get(figure)) for run in rounds]
        each = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        if each:
            found[figure] = {"each": each, "median": statistics.median(each)}
    return found


def run_rounds(options: Options, servers: list[Server], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rounds, the servers in turn in each, until all are done or Ctrl-C."""
    for server in servers:
        if warning := _warn_where_descriptors_lack(server):
            say(f"warning: {warning}")
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        figures: dict[str, Any] = {}
        rounds.append(figures)
        for server in servers:
            say(f"round {number + 1} of {options.rounds}: {server.name} ...")
            figures[server.name] = run_load(server.plan, server.path, server.pid)
            if figures[server.name]["interrupted"]:
                return rounds
    return rounds


def result_of(scenario: Scenario, plan: Plan, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """A scenario's rounds with what was asked for and the ratios; `plan` is the daemon's."""
    return {
        "scenario": scenario.name,
        "sockets": "tcp" if plan.tcp else "socketpair",
        "streams": plan.streams,
        "total": plan.total,
        "messages": plan.messages,
        "interval_ms": plan.interval_ms,
        "rate_per_s": plan.rate_per_s,
        "checked": "bytes" if plan.expected else "messages",
        "numbers_in_expected": plan.expected.count(NUMBER_PLACEHOLDER),
        "rounds": rounds,
        "ratios": ratios([figures for figures in rounds if len(figures) == 2]),
    }


def run_scenario(options: Options, scenario: Scenario, *, tcp: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all rounds of one scenario on one kind of client socket. The figures of each round and the ratios."""
    with _servers(options, scenario, tcp=tcp) as servers:
        rounds = run_rounds(options, servers, say)
    return result_of(scenario, servers[0].plan, rounds)
