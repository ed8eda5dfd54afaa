"""The live tab: what is read from /metrics, and that it is read only while somebody looks."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.behaviour.daemon_process import Daemon
    from tests.page.reader import Reader
    from tests.page.stage import Stage

pytestmark = pytest.mark.browser


def value(reader: Reader, card: str) -> str:
    return str(reader.run("return document.querySelector(`#card-${arguments[0]} .value`).textContent", card)).strip()


def line(reader: Reader, card: str) -> str:
    return str(reader.run("return document.querySelector(`#card-${arguments[0]} .line-0`).getAttribute('d')", card))


def per_second(text: str) -> float:
    return float(text.removesuffix("/s").replace(",", "")) if text.endswith("/s") else 0.0


def reasons(reader: Reader) -> list[list[str]]:
    """How streams ended: the reason, how often in the last minute, and since the start."""
    rows: list[list[str]] = reader.run(
        "return [...document.querySelectorAll('#reasons tr')].map((row) => [...row.cells].map((e) => e.textContent))"
    )
    return rows


def recent(reader: Reader) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in reasons(reader) if len(row) == 3 and row[1] != "0"]


def readings(reader: Reader) -> int:
    """How often the page has read the metrics."""
    return int(
        reader.run("return performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/metrics')).length")
    )


@pytest.mark.serial
def test_the_numbers_move(reader: Reader, daemon: Daemon) -> None:
    daemon.wait_idle()
    reader.allow_tokens(1_000_000)
    reader.ask("hello")
    reader.press("tab-live")
    reader.wait(lambda: 10_000 < per_second(value(reader, "messages")) < 150_000)
    assert value(reader, "open") == "1"
    before = line(reader, "messages")
    reader.wait(lambda: line(reader, "messages") != before)
    assert value(reader, "errors") == "0/s"
    reader.press("tab-chat")
    reader.press("stop")
    reader.wait(lambda: reader.outcome == "stopped")
    reader.press("tab-live")
    reader.wait(lambda: value(reader, "open") == "0")
    assert ["client_gone", "1"] in [row[:2] for row in reasons(reader)]
    label = reader.run("return document.querySelector('#card-open svg').getAttribute('aria-label')")
    assert label == "Open streams, last minute: between 0 and 1"


def test_how_streams_began_and_ended(reader: Reader, daemon: Daemon) -> None:
    reader.press("tab-live")
    reader.wait(lambda: value(reader, "tokens").endswith("/s"))
    daemon.hand_over(b"this is no request", [])
    reader.press("tab-chat")
    assert reader.ask_to_the_end("hello") == "complete"
    reader.press("tab-live")
    reader.wait(lambda: "complete" in dict(recent(reader)))
    assert dict(recent(reader))["complete"] == "1"
    assert [reason for reason, _ in recent(reader) if reason.startswith("refused: ")]
    assert re.fullmatch(r"p50 [\d.]+ (µs|ms) p99 [\d.]+ (µs|ms)", value(reader, "latency"))
    facts = reader.find("information").text
    assert "io_uring" in facts or "epoll" in facts
    assert re.search(r"\d+ MB", facts)
    assert re.search(r"up for\s+[\d.]+ (s|min)", facts)
    assert not reader.find("upstreams-part").is_displayed(), "it has none"


def test_it_can_be_paused_and_rests_while_nobody_looks(reader: Reader) -> None:
    reader.press("tab-live")
    reader.wait(lambda: readings(reader) >= 2)
    reader.press("live-pause")
    assert reader.find("live-pause").get_attribute("aria-pressed") == "true"
    time.sleep(0.3)
    count = readings(reader)
    time.sleep(1.5)
    assert readings(reader) == count
    reader.press("live-pause")
    reader.wait(lambda: readings(reader) > count)
    reader.press("tab-chat")
    time.sleep(0.3)
    count = readings(reader)
    time.sleep(1.5)
    assert readings(reader) == count


def test_a_server_that_is_not_ready_says_why(staged: Reader, stage: Stage) -> None:
    assert staged.find("server-state").text == "Ready"
    stage.is_ready = False
    staged.expect_in_console("status of 503")
    staged.browser.refresh()
    staged.wait(lambda: staged.find("server-state").text == "draining")


def test_without_metrics_the_page_says_so(reader: Reader) -> None:
    reader.expect_in_console("status of 404")
    reader.run("const real = window.fetch; window.fetch = (path, o) => real(path === 'metrics' ? 'nowhere' : path, o)")
    reader.press("tab-live")
    reader.wait(lambda: "No metrics. 404" in reader.find("live-status").text)
