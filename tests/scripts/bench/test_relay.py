"""The relay scenario's parts: the floor, the check of tokens, the latencies, the command line."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from scripts.bench import options, plot, probe, processes, relay, relay_probe, report, upstreams
from scripts.bench.comparing import Server
from scripts.bench.load import Plan, run_load
from scripts.bench.options import baseline_command
from scripts.bench.relay_probe import percentiles_ms

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from scripts.bench.upstreams import Upstream

HANDOFF = b'{"prompt":"benchmark stream {number}"}'
FLOOR_HEAD = b"HTTP/1.1 200 "


@contextlib.contextmanager
def running_floor(folder: Path, upstream: Upstream, *, tcp: bool) -> Generator[tuple[str, int]]:
    path = str(folder / "floor.sock")
    command = [sys.executable, "-m", "scripts.bench.relayfloor", path, str(upstream.port) if tcp else upstream.path]
    with processes.running(command, path, socket.SOCK_SEQPACKET) as process:
        yield path, process.pid


def learn(path: str) -> bytes:
    return probe.learn(path, socket.SOCK_SEQPACKET, HANDOFF, 10, head=FLOOR_HEAD)


def plan(total: int, expected: bytes, *, tcp: bool = False) -> Plan:
    return Plan(streams=50, total=total, handoff=HANDOFF, expected=expected, tcp=tcp, interval_ms=5)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_the_floor_relays_every_byte(tmp_path: Path, *, tcp: bool) -> None:
    with (
        upstreams.running(tmp_path, 10, 5) as upstream,
        running_floor(tmp_path, upstream, tcp=tcp) as (path, pid),
    ):
        expected = learn(path)
        relay.check_tokens(expected, 10)
        run = run_load(plan(200, expected, tcp=tcp), path, pid)
        counts = upstream.counts()
    assert (run["complete"], run["failed"]) == (200, 0)
    assert (counts["request_count"], counts["aborted_count"]) == (201, 0)
    assert run["latencies_ns"]["whole_stream"]["min"] >= 45e6


def test_a_byte_that_differs_is_seen(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 3, 1) as upstream, running_floor(tmp_path, upstream, tcp=False) as (path, _):
        expected = learn(path).replace(b"-2 ", b"-3 ")
        run = run_load(plan(5, expected), path)
    assert run["outcomes"] == {"wrong_bytes": 5}


def test_tokens_that_are_lost_or_doubled_are_seen() -> None:
    tokens = [b'data: {"content":"%s"}\n\n' % upstreams.token_text(index).encode() for index in range(4)]
    relay.check_tokens(b"".join(tokens), 4)
    with pytest.raises(probe.ProbeError, match="3 tokens of 4 arrived, the first wrong one is 1"):
        relay.check_tokens(tokens[0] + tokens[2] + tokens[3], 4)
    with pytest.raises(probe.ProbeError, match="5 tokens of 4"):
        relay.check_tokens(b"".join([*tokens, tokens[3]]), 4)


def test_what_is_added_to_the_first_token(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 1, 1) as upstream, running_floor(tmp_path, upstream, tcp=False) as (path, pid):
        server = Server("floor", path, pid, plan(1, b""))
        added_ns = relay_probe.added_to_first_token_ns(server, upstream, 20)
    assert len(added_ns) == 20
    assert all(0 < value < 1e9 for value in added_ns)


def test_what_a_leaving_client_takes_to_be_known(tmp_path: Path) -> None:
    # The floor learns of it from the second send that fails: some milliseconds, at one token in five.
    with (
        upstreams.running(tmp_path, 20, 5) as upstream,
        running_floor(tmp_path, upstream, tcp=False) as (path, pid),
    ):
        server = Server("floor", path, pid, plan(1, b""))
        gone_ns = relay_probe.gone_to_closed_ns(server, upstream, 60, before_first_token=False)
    assert len(gone_ns) == 60
    assert all(0 < value < 5e9 for value in gone_ns)


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles_ms([value * 1_000_000 for value in range(100, 0, -1)])
    assert found == {"count": 100, "p50": 50.0, "p99": 99.0, "max": 100.0}
    assert percentiles_ms([]) == {"count": 0}


def test_each_scenario_has_its_floor() -> None:
    given = options.parse([])
    by_name = {scenario.name: scenario for scenario in given.scenarios}
    assert "scripts.bench.floor" in baseline_command(given, by_name["paced"])
    assert "relayfloor {socket} {upstream}" in baseline_command(given, by_name["relay"])
    assert "relay-soak" not in by_name
    soak = options.parse(["--scenario", "relay-soak"])
    assert baseline_command(soak, soak.scenarios[0]) == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scenario", "paced", "--proxy", "nginx"],
        ["--scenario", "relay", "--socket", "/s"],
        ["--scenario", "relay", "--expect-file", "/f"],
        ["--scenario", "relay", "--proxy", "squid"],
    ],
)
def test_command_lines_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(arguments)


def _run(cpu_s: float) -> dict[str, Any]:
    row = {"count": 10, "p50": 1.98e9, "p99": 2.0e9}
    server = {"cpu_s": cpu_s, "cpu_us_per_message": cpu_s, "memory_curve": [(0, 100_000), (1_000_000, 120_000)]}
    return {"streams": 10, "server": server, "latencies_ns": {"whole_stream": row}}


def test_the_relays_own_lines() -> None:
    upstream = {"request_count": 21, "accepted_count": 2, "token_sent_count": 2_100, "aborted_count": 0}
    result = {
        "rounds": [{"daemon": _run(0.012), "baseline": _run(0.01)}],
        "relay": {
            "proxy": "nginx",
            "proxy_protocol": "http2",
            "upstream": {**upstream, "late_ns_max": 1_500_000},
            "client_gone_ms": {"while streaming": {"count": 200, "p50": 0.1, "p99": 0.3, "max": 0.4}},
            "added_to_first_token_ms": {"daemon": {"count": 0}},
        },
    }
    relay.add_cost_of_tokens(result["rounds"], 100)  # type: ignore[arg-type]
    text = "\n".join(report.relay_lines(result))
    assert "relayed through nginx (http2)" in text
    assert "CPU us per token, daemon: 12.00" in text
    assert "length of streams p50 p99, ms: daemon 1980.000 2000.000, baseline" in text
    assert "client gone to upstream closed, while streaming, ms: p50 0.100 p99 0.300 max 0.400 (200 streams)" in text
    assert "21 requests on 2 connections, 2,100 tokens, 0 cut; its latest token left 1.500 ms late" in text


def test_a_picture_of_memory(tmp_path: Path) -> None:
    result = {"rounds": [{"daemon": _run(1.0)}], "streams": 16, "sockets": "tcp"}
    plot.draw_memory([result], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_daemons_configuration_names_the_way(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 1, 1) as upstream:
        plain = relay.daemon_config(upstream, None, "http2", tcp=True)
        local = relay.daemon_config(upstream, None, "http2", tcp=False)
    assert f'api_base = "http://127.0.0.1:{upstream.port}/v1"' in plain
    assert "api_socket" not in plain
    assert f"api_socket = {json.dumps(upstream.path)}" in local
