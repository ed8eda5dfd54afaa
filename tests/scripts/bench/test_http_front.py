"""The HTTP scenarios with the real daemon, small, and what a right answer is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from scripts.bench import completion_events, http_front
from scripts.bench.__main__ import main
from scripts.bench.completion_events import AFTER_LAST_NUMBER, AFTER_NUMBER, opening
from scripts.bench.options import parse
from scripts.bench.probe import ProbeError
from scripts.bench.scenarios import SCENARIOS
from tests.scripts.bench.test_http_load import GOOD, serving

if TYPE_CHECKING:
    from pathlib import Path

BEGINNING = opening("0123456789abcdef01234567", 1_795_269_625)
BODY = f"{BEGINNING}0{AFTER_NUMBER}{BEGINNING}1{AFTER_LAST_NUMBER}"


def test_a_right_body_is_right_byte_for_byte() -> None:
    assert completion_events.is_right(BODY, 2)
    for wrong in (BODY + " ", BODY[1:], BODY.replace("token_1", "token_2"), BODY.replace("0123", "O123"), ""):
        assert not completion_events.is_right(wrong, 2), wrong
    assert not completion_events.is_right(BODY, 3)


def test_the_daemon_beside_a_plain_application(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    arguments = ["--scenario", "http-first", "--total", "40", "--rounds", "2", "--output", str(output)]
    assert main(arguments) == 0
    (result,) = json.loads(output.read_text())["results"]
    for figures in result["rounds"]:
        assert figures["daemon"]["complete"] == 40
        assert figures["baseline"]["complete"] == 20
        assert figures["daemon"]["messages"] == 40 * 18
        assert figures["daemon"]["latencies_ns"]["first_token"]["count"] == 40
    assert set(result["http"]["ready_s"]) == {"daemon", "baseline"}
    shown = capsys.readouterr().out
    assert "daemon: ready" in shown
    assert "CPU us per stream, main thread" in shown


def test_a_rate_is_kept_and_every_token_there(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["--scenario", "http-rate", "--messages", "120000", "--total", "1", "--output", str(output)]
    assert main(arguments) == 0
    (result,) = json.loads(output.read_text())["results"]
    (figures,) = result["rounds"]
    assert list(figures) == ["daemon"]
    assert (figures["daemon"]["complete"], figures["daemon"]["messages"]) == (1, 120_000)
    # Within 1 % where the machine has nothing else to do; here it may.
    assert figures["daemon"]["tokens_per_s"]["p50"] == pytest.approx(120_000, rel=0.1)


def test_a_server_that_answers_otherwise_is_not_measured() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
    with serving([refusal]) as server, pytest.raises(ProbeError, match=r"answered with 503: 'no'"):
        http_front.check_one(server.port, 5.0)
    with serving([GOOD]) as server, pytest.raises(ProbeError, match="answered with 200"):
        http_front.check_one(server.port, 5.0)  # twelve tokens, and three were asked for


def test_the_daemon_is_given_the_pace_and_room() -> None:
    assert "tokens_per_second = 120000\n" in http_front.daemon_config(SCENARIOS["http-rate"])
    assert "tokens_per_second = 0\n" in http_front.daemon_config(SCENARIOS["http-one"])
    (more,) = parse(["--scenario", "http-hold", "--streams", "12000"]).scenarios
    assert http_front.daemon_config(more).startswith("[server]\nmax_connections = 12000\n")


def test_all_is_of_handoffs_and_http_of_the_front() -> None:
    assert not any(scenario.is_http for scenario in parse([]).scenarios)
    of_http = parse(["--scenario", "http"]).scenarios
    assert len(of_http) > 1
    assert all(scenario.is_http for scenario in of_http)


def test_the_baseline_is_a_plain_application(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--scenario", "http-one", "--baseline", "other {socket}"])
    assert "a plain FastAPI application, or 'none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--socket", "/nowhere"],
        ["--tcp"],
        ["--plot", "p.png"],
        ["--no-check"],
        ["--messages", "0"],
        ["--interval-ms", "2000"],
    ],
)
def test_what_makes_no_sense_over_http_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--scenario", "http-one", *arguments])
    assert arguments[0] in capsys.readouterr().err
