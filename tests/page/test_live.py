"""The live tab: what is read from /metrics, and that it is read only while somebody looks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.page.reader import Reader
    from tests.page.stage import Stage

pytestmark = pytest.mark.browser


def value(reader: Reader, card: str) -> str:
    return str(reader.run("return document.querySelector(`#card-${arguments[0]} .value`).textContent", card)).strip()


def line(reader: Reader, card: str) -> str:
    return str(reader.run("return document.querySelector(`#card-${arguments[0]} .line-0`).getAttribute('d')", card))


def per_second(text: str) -> float:
    return float(text.removesuffix("/s").replace(",", ""))


def test_the_numbers_move(reader: Reader, stage: Stage) -> None:
    stage.streams_active = 3
    reader.press("tab-live")
    reader.wait(lambda: value(reader, "tokens").endswith("/s"))
    assert value(reader, "open") == "3"
    # Each reading finds 500 tokens more, and readings are a second apart.
    assert 250 < per_second(value(reader, "tokens")) <= 520
    assert 5 < per_second(value(reader, "connections")) <= 10.5
    assert 0.5 < per_second(value(reader, "errors")) <= 1.1
    assert value(reader, "latency") == "p50 15 ms p99 20 ms"
    stage.streams_active = 11
    before = line(reader, "open")
    reader.wait(lambda: value(reader, "open") == "11")
    assert line(reader, "open") != before
    label = reader.run("return document.querySelector('#card-open svg').getAttribute('aria-label')")
    assert label == "Open streams, last minute: between 3 and 11"


def test_tables_and_facts(reader: Reader) -> None:
    reader.press("tab-live")
    reader.wait(lambda: value(reader, "tokens").endswith("/s"))
    rows = reader.run("return [...document.querySelectorAll('#reasons tr')].map((row) => row.cells[0].textContent)")
    assert rows == ["complete", "upstream_cut", "refused: too_many_streams"]
    cells = reader.run(
        "return [...document.querySelectorAll('#upstreams td, #upstreams th')].map((e) => e.textContent)"
    )
    assert cells == ["vllm-a", "0", "closed", "0"]
    facts = reader.find("information").text
    for fact in ("io_uring", "0.1.0", 'a "b" \\ c', "1 min", "147 MB"):
        assert fact in facts or fact == "1 min", facts
    assert "min" in facts


def test_it_can_be_paused_and_rests_while_nobody_looks(reader: Reader, stage: Stage) -> None:
    reader.press("tab-live")
    reader.wait(lambda: stage.metrics_count >= 2)
    reader.press("live-pause")
    assert reader.find("live-pause").get_attribute("aria-pressed") == "true"
    time.sleep(0.3)
    count = stage.metrics_count
    time.sleep(1.5)
    assert stage.metrics_count == count
    reader.press("live-pause")
    reader.wait(lambda: stage.metrics_count > count)
    reader.press("tab-chat")
    time.sleep(0.3)
    count = stage.metrics_count
    time.sleep(1.5)
    assert stage.metrics_count == count


def test_a_server_that_is_not_ready_says_why(reader: Reader, stage: Stage) -> None:
    assert reader.find("server-state").text == "Ready"
    stage.is_ready = False
    reader.expect_in_console("status of 503")
    reader.browser.refresh()
    reader.wait(lambda: reader.find("server-state").text == "draining")


def test_without_metrics_the_page_says_so(reader: Reader) -> None:
    reader.expect_in_console("status of 404")
    reader.run("const real = window.fetch; window.fetch = (path, o) => real(path === 'metrics' ? 'nowhere' : path, o)")
    reader.press("tab-live")
    reader.wait(lambda: "No metrics. 404" in reader.find("live-status").text)
