"""The relay scenario with the real daemon, small: whole streams, a floor beside it, and every figure there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from scripts.bench import relay
from scripts.bench.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ["--streams", "20", "--total", "40", "--rate", "200", "--messages", "10", "--interval-ms", "5"]


@pytest.fixture(autouse=True)
def few_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_FIRST_TOKEN_STREAMS", 10)
    monkeypatch.setattr(relay, "_GONE_STREAMS", 10)


def test_the_daemon_beside_the_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    assert main(["--scenario", "relay", "--both", "--rounds", "2", *SMALL, "--output", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    assert [result["sockets"] for result in results] == ["socketpair", "tcp"]
    for result in results:
        assert result["checked"] == "bytes"
        for figures in result["rounds"]:
            assert [run["complete"] for run in figures.values()] == [40, 40]
            assert figures["daemon"]["messages"] == 400
        assert set(result["relay"]["client_gone_ms"]) == {"while streaming", "before the first token"}
        assert set(result["relay"]["added_to_first_token_ms"]) == {"daemon", "baseline"}
        # One for each stream and one more to learn from, of both servers, in two rounds; and those that were left.
        assert result["relay"]["upstream"]["request_count"] == 2 * (2 * 40 + 1)
    assert "CPU us per token, daemon" in capsys.readouterr().out


@pytest.mark.external
@pytest.mark.parametrize("proxy", ["nginx", "nghttpx"])
def test_through_a_proxy(tmp_path: Path, proxy: str) -> None:
    output = tmp_path / "result.json"
    arguments = ["--scenario", "relay", "--tcp", *SMALL, "--proxy", proxy, "--output", str(output)]
    assert main(arguments) == 0
    (result,) = json.loads(output.read_text())["results"]
    assert result["rounds"][0]["daemon"]["complete"] == 40
    assert (result["relay"]["proxy"], result["relay"]["proxy_protocol"]) == (proxy, "http2")


def test_a_soak_has_no_floor_and_a_curve_of_memory(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["--scenario", "relay-soak", "--streams", "4", "--total", "20", "--messages", "100"]
    assert main([*arguments, "--output", str(output)]) == 0
    (result,) = json.loads(output.read_text())["results"]
    (figures,) = result["rounds"]
    assert list(figures) == ["daemon"]
    assert figures["daemon"]["complete"] == 20
    assert figures["daemon"]["server"]["memory_curve"][-1][0] == 2_000
