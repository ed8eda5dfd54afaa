"""Relayed streams: our own upstream, a proxy if one is asked for, the daemon and the relay floor, measured in turn.

Clients on TCP get their tokens from an upstream on TCP, clients on socketpairs from one on a Unix socket. Every byte
that a client gets is checked: the answer of one stream is read before the run, its tokens must be the upstream's, and
each stream must be that answer with its own number in it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench import comparing, probe, processes, proxies, relay_probe, upstreams
from scripts.bench.comparing import Server
from scripts.bench.options import baseline_command

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from scripts.bench.options import Options
    from scripts.bench.proxies import Proxy
    from scripts.bench.scenarios import Scenario
    from scripts.bench.upstreams import Upstream

_FIRST_TOKEN_STREAMS = 300
_GONE_STREAMS = 200
_CONTENT = re.compile(rb'"content":"([^"]*)"')


@dataclass(frozen=True)
class Stage:
    """All that runs for one scenario."""

    upstream: Upstream
    servers: list[Server]  # the daemon, and the baseline if there is one


def _toml(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def daemon_config(upstream: Upstream, proxy: Proxy | None, protocol: str, *, tcp: bool) -> str:
    """The daemon's configuration for that way to the upstream."""
    lines = ["[server]", 'backend = "openai"', "[backend.openai]"]
    if proxy is not None:
        url = proxy.clear_url if protocol == "h2c" else proxy.tls_url
        lines += [f"api_base = {_toml(url + '/v1')}", f"http2_enabled = {'false' if protocol == 'http1' else 'true'}"]
        if protocol != "h2c":
            lines.append(f"ca_file = {_toml(str(proxy.certificate))}")
    else:
        lines.append(f"api_base = {_toml(f'http://{upstream.address}/v1')}")
        if not tcp:
            lines.append(f"api_socket = {_toml(upstream.path)}")
    return "\n".join(lines) + "\n"


def check_tokens(response: bytes, token_count: int) -> None:
    """ProbeError where the answer's tokens are not the upstream's, each once and in order."""
    found = [text.decode() for text in _CONTENT.findall(response)]
    wanted = [upstreams.token_text(index) for index in range(token_count)]
    if found != wanted:
        differs_at = next((at for at, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), -1)
        raise probe.ProbeError(f"{len(found)} tokens of {token_count} arrived, the first wrong one is {differs_at}")


def _learnt_server(
    name: str, process: tuple[str, int], options: Options, scenario: Scenario, *, head: bytes, tcp: bool
) -> Server:
    assert scenario.messages is not None, "a relay scenario says how many tokens"
    path, pid = process
    expected = probe.learn(path, options.socket_type, options.handoff, options.stall_timeout_s, head=head)
    check_tokens(expected, scenario.messages)
    # The floor passes framing on, and blocks of that are no messages; its bytes are checked all the same.
    messages = scenario.messages if head == probe.STANDARD_HEAD else -1
    if not options.is_checked:
        expected = b""
    return Server(name, path, pid, comparing.plan_of(options, scenario, expected, messages, tcp=tcp))


@contextlib.contextmanager
def _stage(options: Options, scenario: Scenario, *, tcp: bool) -> Generator[Stage]:
    """Start everything; it stays up over all rounds, as what is idle costs nothing."""
    assert scenario.messages is not None, "a relay scenario says how many tokens"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        upstream = stack.enter_context(upstreams.running(folder, scenario.messages, scenario.interval_ms))
        proxy = stack.enter_context(proxies.running(options.proxy, upstream.address)) if options.proxy else None
        path = str(folder / "daemon.sock")
        config = daemon_config(upstream, proxy, options.proxy_protocol, tcp=tcp)
        command = comparing.daemon_command(options, scenario, path, folder, config)
        pid = stack.enter_context(processes.running(command, path, options.socket_type)).pid
        head = probe.STANDARD_HEAD
        servers = [_learnt_server("daemon", (path, pid), options, scenario, head=head, tcp=tcp)]
        if baseline := baseline_command(options, scenario):
            path = str(folder / "baseline.sock")
            command = comparing.filled(baseline, scenario, path, str(upstream.port) if tcp else upstream.path)
            pid = stack.enter_context(processes.running(command, path, socket.SOCK_SEQPACKET)).pid
            servers.append(_learnt_server("baseline", (path, pid), options, scenario, head=b"HTTP/1.1 200 ", tcp=tcp))
        yield Stage(upstream, servers)


def _measure_first_token(options: Options, scenario: Scenario, *, tcp: bool) -> dict[str, Any]:
    """One stream at a time, of one token that the upstream has at once."""
    with _stage(options, replace(scenario, messages=1, interval_ms=1.0), tcp=tcp) as stage:
        return {
            server.name: relay_probe.percentiles_ms(
                relay_probe.added_to_first_token_ns(server, stage.upstream, _FIRST_TOKEN_STREAMS)
            )
            for server in stage.servers
        }


def _measure_gone(stage: Stage) -> dict[str, Any]:
    """Of the daemon alone: the floor notices nobody's leaving."""
    daemon = stage.servers[0]
    return {
        name: relay_probe.percentiles_ms(
            relay_probe.gone_to_closed_ns(daemon, stage.upstream, _GONE_STREAMS, before_first_token=before)
        )
        for name, before in (("while streaming", False), ("before the first token", True))
    }


def add_cost_of_tokens(rounds: list[dict[str, Any]], token_count: int) -> None:
    """Both servers' CPU by the tokens that they were sent: the floor's framing would count as messages."""
    for figures in rounds:
        for run in figures.values():
            tokens = run["streams"] * token_count
            run["server"]["cpu_us_per_token"] = run["server"]["cpu_s"] * 1e6 / max(1, tokens)


def run_scenario(options: Options, scenario: Scenario, *, tcp: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all rounds of a relay scenario on one kind of sockets, then, where it has a pace, the two latencies."""
    assert scenario.messages is not None, "a relay scenario says how many tokens"
    with _stage(options, scenario, tcp=tcp) as stage:
        stage.upstream.forget_lateness()
        rounds = comparing.run_rounds(options, stage.servers, say)
        add_cost_of_tokens(rounds, scenario.messages)
        result = comparing.result_of(scenario, stage.servers[0].plan, rounds)
        result["relay"] = {"proxy": options.proxy, "upstream": stage.upstream.counts()}
        if options.proxy:
            result["relay"]["proxy_protocol"] = options.proxy_protocol
        is_interrupted = any(run["interrupted"] for figures in rounds for run in figures.values())
        if is_interrupted or not scenario.interval_ms:
            return result
        say("clients that leave ...")
        result["relay"]["client_gone_ms"] = _measure_gone(stage)
    say("one stream at a time ...")
    result["relay"]["added_to_first_token_ms"] = _measure_first_token(options, scenario, tcp=tcp)
    return result
