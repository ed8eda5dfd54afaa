"""The command line of the harness."""

from __future__ import annotations

import argparse
import shlex
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.bench import proxies
from scripts.bench.scenarios import CUSTOM, SCENARIOS, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOOR = "floor"
PROXY_PROTOCOLS = ("http1", "http2", "h2c")
DEFAULT_HANDOFF = '{"prompt":"benchmark stream {number}","user_id":{number}}'
TOTAL_MAX = 80_000_000  # streams are numbered with eight digits from 10,000,000

_EPILOG = """\
A message is an event other than [DONE]; the head is none either. Every byte of every stream is checked, against
--expect-file or against one stream that is read before the run, whose own number may appear anywhere in it.

examples:
  python -m scripts.bench                       all scenarios on socketpairs, each beside the floor (two minutes)
  python -m scripts.bench --both --rounds 3     on TCP too, three pairs of each
  python -m scripts.bench --scenario paced --tcp --start-daemon '--kernel epoll'
  python -m scripts.bench --scenario relay --both --rounds 3
  python -m scripts.bench --scenario relay --tcp --proxy nginx --proxy-protocol http2
  python -m scripts.bench --scenario http --rounds 3
  python -m scripts.bench --scenario ready --baseline './other-server {socket} {interval_ms} {messages}'
  python -m scripts.bench --socket /run/daemon.sock --streams 500 --total 5000 --rate 200 --output result.json
"""


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    scenarios: tuple[Scenario, ...]
    socket_kinds: tuple[bool, ...]  # of clients; True: TCP
    socket_path: str
    daemon_arguments: str
    pid: int
    socket_type: socket.SocketKind
    handoff: bytes
    expect_file: Path | None
    is_checked: bool
    baseline: str  # a command, FLOOR, or nothing
    proxy: str
    proxy_protocol: str
    rounds: int
    stall_timeout_s: float
    connect_timeout_s: float
    output: Path | None
    plot: Path | None


def _server_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server")
    group.add_argument("--socket", default="", metavar="PATH", help="a server that runs already (default: start one)")
    group.add_argument(
        "--start-daemon",
        default="",
        metavar="ARGS",
        help="more arguments for the daemon that is started without --socket",
    )
    group.add_argument("--socket-type", choices=("seqpacket", "stream"), default="seqpacket")
    group.add_argument("--pid", type=int, default=0, help="measure this process (default: the one that listens)")


def _load_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the load; a number that is given wins over the scenario's")
    group.add_argument("--scenario", choices=(*SCENARIOS, "all", "http"), help="; ".join(_described()))
    group.add_argument("--streams", type=int, metavar="N", help="streams open at a time")
    group.add_argument("--total", type=int, metavar="N", help="streams in all")
    group.add_argument("--rate", type=float, metavar="R", help="streams started per second; 0: no limit")
    group.add_argument("--messages", type=int, metavar="N", help="messages that each stream must have")
    group.add_argument("--interval-ms", type=float, metavar="MS", help="pace of the messages; lateness is against it")
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument("--tcp", action="store_true", help="clients on loopback TCP instead of socketpairs")
    kinds.add_argument("--both", action="store_true", help="first on socketpairs, then on TCP")
    group.add_argument("--handoff", default=DEFAULT_HANDOFF, metavar="JSON", help="{number} is the stream's own number")
    group.add_argument("--connect-timeout-s", type=float, default=5.0, metavar="S")
    group.add_argument(
        "--stall-timeout-s", type=float, default=60.0, metavar="S", help="give up after silence this long"
    )


def _described() -> list[str]:
    named = [f"{scenario.name}: {scenario.shows}" for scenario in SCENARIOS.values()]
    return [*named, "all: those of handoffs; http: those of the HTTP front"]


def _other_arguments(parser: argparse.ArgumentParser) -> None:
    check = parser.add_argument_group("the check")
    check.add_argument(
        "--expect-file",
        type=Path,
        metavar="FILE",
        help="the body each stream must have; {number} stands for its number",
    )
    check.add_argument("--no-check", action="store_true", help="count messages and look for [DONE] only")
    compare = parser.add_argument_group("comparison")
    compare.add_argument(
        "--baseline",
        metavar="COMMAND",
        help="run the same load in turn on another server: {socket}, {interval_ms}, {messages} are filled in; "
        "for a relay {upstream}, a port or a socket's path; or 'floor', a bare epoll loop (the default with a "
        "scenario; over HTTP a plain FastAPI application), or 'none'",
    )
    compare.add_argument("--rounds", type=int, default=1, metavar="N", help="repeat; with a baseline A B A B ...")
    relay = parser.add_argument_group("relaying")
    relay.add_argument(
        "--proxy",
        choices=tuple(proxies.PROGRAMS),
        default="",
        help="put it between the daemon and the upstream, with TLS",
    )
    relay.add_argument(
        "--proxy-protocol",
        choices=PROXY_PROTOCOLS,
        default="http2",
        help="towards the proxy: HTTP/1.1 or HTTP/2 over TLS, or HTTP/2 in the clear (default: %(default)s)",
    )
    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, metavar="FILE", help="all figures as JSON")
    results.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="latency curves, for a soak memory (needs matplotlib)"
    )


def _adjusted(scenario: Scenario, given: argparse.Namespace) -> Scenario:
    changes = {"streams": given.streams, "total": given.total, "rate_per_s": given.rate}
    changes |= {"messages": given.messages, "interval_ms": given.interval_ms}
    adjusted = replace(scenario, **{name: value for name, value in changes.items() if value is not None})
    if given.total is None and adjusted.streams > adjusted.total:
        adjusted = replace(adjusted, total=adjusted.streams)
    return adjusted


def _baseline(given: argparse.Namespace, scenario_name: str) -> str:
    """The command of the other server; none where the floor cannot take part or nothing was said about it."""
    is_stream = given.socket_type == "stream"
    command = given.baseline or ("none" if is_stream or scenario_name == CUSTOM.name else FLOOR)
    return "" if command == "none" else command


def baseline_command(given: Options, scenario: Scenario) -> str:
    """The command of the other server for one scenario, its placeholders not filled in; may be empty."""
    if given.baseline != FLOOR:
        return given.baseline
    python = shlex.quote(sys.executable)
    if not scenario.is_relayed:
        return f"{python} -m scripts.bench.floor {{socket}} {{interval_ms}} {{messages}}"
    # Without a pace the relay floor would have to hold what a full socket does not take, and be none any more.
    return f"{python} -m scripts.bench.relayfloor {{socket}} {{upstream}}" if scenario.interval_ms else ""


def _scenario_name(given: argparse.Namespace) -> str:
    """Without a word about server or load: everything. Otherwise what was said, and nothing besides."""
    numbers = (given.streams, given.total, given.rate, given.messages, given.interval_ms)
    is_silent = not given.socket and all(number is None for number in numbers)
    return given.scenario or ("all" if is_silent else CUSTOM.name)


def _chosen(name: str) -> list[Scenario]:
    if name in {"all", "http"}:
        of_http = name == "http"
        return [scenario for scenario in SCENARIOS.values() if scenario.is_http == of_http and not scenario.is_soak]
    return [SCENARIOS.get(name, CUSTOM)]


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace, scenarios: tuple[Scenario, ...]) -> None:
    for scenario in scenarios:
        if scenario.streams < 1 or not 1 <= scenario.total <= TOTAL_MAX or scenario.rate_per_s < 0:
            parser.error(f"--streams is at least 1, --total 1 to {TOTAL_MAX}, --rate at least 0")
        if scenario.interval_ms < 0 or (scenario.messages is not None and scenario.messages < 0):
            parser.error("--interval-ms and --messages are at least 0")
    if given.rounds < 1:
        parser.error("--rounds is at least 1")
    if given.socket and given.start_daemon:
        parser.error("--socket names a server that runs already, --start-daemon starts one: give one of them")
    if given.baseline == FLOOR and given.socket_type == "stream":
        parser.error("the floor takes handoffs on SOCK_SEQPACKET only")
    is_relayed = any(scenario.is_relayed for scenario in scenarios)
    if given.proxy and not is_relayed:
        parser.error("--proxy stands before an upstream: give it with --scenario relay")
    if is_relayed and (given.socket or given.expect_file) and given.scenario:
        parser.error("a relay starts its own daemon and knows what must arrive: without --socket and --expect-file")
    if any(scenario.is_http for scenario in scenarios):
        _check_http(parser, given, scenarios)
    if given.expect_file and given.no_check:
        parser.error("--expect-file and --no-check exclude each other")


def _check_http(parser: argparse.ArgumentParser, given: argparse.Namespace, scenarios: tuple[Scenario, ...]) -> None:
    if given.socket or given.pid or given.expect_file or given.no_check or given.tcp or given.both or given.plot:
        parser.error(
            "an HTTP scenario starts its own daemon, on TCP, and knows what must arrive: it goes without --socket, "
            "--pid, --tcp, --both, --expect-file, --no-check and --plot"
        )
    if given.baseline not in {None, "none", FLOOR}:
        parser.error("the baseline of an HTTP scenario is a plain FastAPI application, or 'none'")
    if any(scenario.messages is None or scenario.messages < 1 for scenario in scenarios):
        parser.error("--messages is at least 1: so many tokens are asked for")
    if any(scenario.interval_ms > 1000 for scenario in scenarios):
        parser.error("--interval-ms is at most 1000 over HTTP: the daemon's rate is a whole number of tokens a second")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line. Ends the program with a sentence where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description="Plays Apache and the browsers against a handoff daemon and checks every byte that arrives.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _server_arguments(parser)
    _load_arguments(parser)
    _other_arguments(parser)
    given = parser.parse_args(arguments)
    scenario_name = _scenario_name(given)
    chosen = _chosen(scenario_name)
    scenarios = tuple(_adjusted(scenario, given) for scenario in chosen)
    _check(parser, given, scenarios)
    return Options(
        scenarios=scenarios,
        socket_kinds=(False, True) if given.both else (given.tcp,),
        socket_path=given.socket,
        daemon_arguments=given.start_daemon,
        pid=given.pid,
        socket_type=socket.SOCK_STREAM if given.socket_type == "stream" else socket.SOCK_SEQPACKET,
        handoff=given.handoff.encode(),
        expect_file=given.expect_file,
        is_checked=not given.no_check,
        baseline=_baseline(given, scenario_name),
        proxy=given.proxy,
        proxy_protocol=given.proxy_protocol,
        rounds=given.rounds,
        stall_timeout_s=given.stall_timeout_s,
        connect_timeout_s=given.connect_timeout_s,
        output=given.output,
        plot=given.plot,
    )
