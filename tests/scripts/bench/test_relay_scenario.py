"""The relay scenario from its command line to its figures, with a stand-in where the daemon would be."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

from scripts.bench import comparing, relay
from scripts.bench.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.bench.options import Options
    from scripts.bench.scenarios import Scenario

SMALL = ["--streams", "20", "--total", "40", "--rate", "200", "--messages", "10", "--interval-ms", "5"]


def standin_command(options: Options, _scenario: Scenario, path: str, _folder: Path, config: str) -> list[str]:
    assert not options.proxy, "the stand-in speaks plain HTTP/1.1"
    sockets = re.findall(r'api_socket = "(.*)"', config)
    (port,) = re.findall(r'api_base = "http://127\.0\.0\.1:(\d+)/v1"', config)
    return [sys.executable, "-m", "tests.scripts.bench.relay_standin", path, *(sockets or [port])]


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "daemon_command", standin_command)
    monkeypatch.setattr(relay, "_FIRST_TOKEN_STREAMS", 10)
    monkeypatch.setattr(relay, "_GONE_STREAMS", 10)


def test_both_kinds_of_sockets_beside_the_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    assert main(["--scenario", "relay", "--both", "--rounds", "2", *SMALL, "--output", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    assert [result["sockets"] for result in results] == ["socketpair", "tcp"]
    for result in results:
        assert result["checked"] == "bytes"
        for figures in result["rounds"]:
            assert [run["complete"] for run in figures.values()] == [40, 40]
            assert figures["daemon"]["messages"] == 400
        measured = result["relay"]
        assert {row["count"] for row in measured["client_gone_ms"].values()} == {10}
        assert set(measured["added_to_first_token_ms"]) == {"daemon", "baseline"}
        # One for each stream and one more to learn from, of both servers, in two rounds.
        assert measured["upstream"]["request_count"] == 2 * (2 * 40 + 1)
    printed = capsys.readouterr().out
    assert "CPU us per token, daemon" in printed
    assert "client gone to upstream closed, before the first token" in printed


def test_a_soak_has_no_floor_and_a_curve_of_memory(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["--scenario", "relay-soak", "--streams", "4", "--total", "20", "--messages", "100"]
    assert main([*arguments, "--output", str(output)]) == 0
    (result,) = json.loads(output.read_text())["results"]
    (figures,) = result["rounds"]
    assert list(figures) == ["daemon"]
    assert figures["daemon"]["complete"] == 20
    assert figures["daemon"]["server"]["memory_curve"][-1][0] == 2_000
    assert "client_gone_ms" not in result["relay"]


def test_a_daemon_that_is_wrong_every_time_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WRONG_TOKEN", "7")
    assert main(["--scenario", "relay", *SMALL]) == 2
    assert "10 tokens of 10 arrived, the first wrong one is 7" in capsys.readouterr().err
