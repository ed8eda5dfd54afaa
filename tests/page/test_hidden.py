"""A page that nobody sees while its answer comes: its memory is bounded, and all is there when it is shown again.

A hidden page gets no frames to draw in, so what is gathered for the next one must not grow with the answer.
"""

# Selenium's own annotations leave out what its dictionaries and arguments hold.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.page.test_mel import brightness, wait_for_picture, write_tone

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.page.reader import Reader

pytestmark = pytest.mark.browser

TOKENS = 400_000
# What the page keeps of an answer is about 2,000,000 characters for the conversation and 400,000 to be shown; the
# events of this answer are 68 MB.
HEAP_BYTES_MAX = 32 << 20
HIDDEN_SECONDS = 1.5


@contextmanager
def hidden(reader: Reader) -> Generator[None]:
    """The window is minimised, so that its page is not drawn."""
    before = reader.browser.get_window_rect()
    reader.browser.minimize_window()
    reader.wait(lambda: reader.run("return document.hidden"))
    try:
        yield
    finally:
        reader.browser.set_window_rect(**before)
        reader.wait(lambda: not reader.run("return document.hidden"))


def heap_bytes(reader: Reader) -> int:
    """What the page's objects take once what is not needed has been thrown away."""
    reader.browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    return int(reader.browser.execute_cdp_cmd("Runtime.getHeapUsage", {})["usedSize"])


def shown_length(reader: Reader) -> int:
    return int(reader.run("return document.querySelector('.answer > .text').textContent.length"))


@pytest.mark.parametrize("way", ["reader", "guarded"], ids=["120,000/s", "unpaced"])
def test_an_answer_comes_to_a_hidden_page(request: pytest.FixtureRequest, way: str) -> None:
    page: Reader = request.getfixturevalue(way)
    page.allow_tokens(TOKENS)
    before = heap_bytes(page)
    page.ask("hello")
    page.wait(lambda: shown_length(page) > 0)
    with hidden(page):
        grown: list[int] = []
        while page.outcome is None:
            grown.append(heap_bytes(page) - before)
            time.sleep(0.2)
        grown.append(heap_bytes(page) - before)
    assert max(grown) < HEAP_BYTES_MAX, grown
    assert page.outcome == "complete"
    assert page.number("tokens") == f"{TOKENS:,}"
    assert page.answer.endswith(f"token_{TOKENS - 1} ")
    assert 50_000 < shown_length(page) < 210_000
    assert page.announced == f"The answer is complete: {TOKENS:,} tokens."


def test_a_page_is_shown_again_before_the_answer_ends(reader: Reader) -> None:
    reader.allow_tokens(TOKENS)
    reader.ask("hello")
    reader.wait(lambda: shown_length(reader) > 0)
    with hidden(reader):
        seen = reader.answer
        time.sleep(HIDDEN_SECONDS)
        assert reader.answer == seen, "nothing is laid out that nobody sees"
    reader.wait(lambda: reader.answer[-30:] != seen[-30:])
    shown = [int(each.removeprefix("token_")) for each in reader.answer.partition("token_")[2].split("token_")[1:-1]]
    assert shown == list(range(shown[0], shown[-1] + 1)), "no gap where it was hidden"


def locks_held(reader: Reader) -> int:
    return int(reader.run("return navigator.locks.query().then(({ held }) => held.length)"))


@pytest.mark.serial  # everything that it does must be done before the answer ends
def test_a_hidden_page_is_not_frozen_while_an_answer_comes(reader: Reader) -> None:
    # Chromium's makers say that it freezes none that holds a lock; it would take five minutes to do so here.
    reader.allow_tokens(1_000_000)  # which are not over before they are stopped
    reader.wait(lambda: locks_held(reader) == 0)  # those of the page before may still be held
    reader.ask("hello")
    reader.wait(lambda: shown_length(reader) > 0)
    assert locks_held(reader) == 1
    reader.press("tab-mel")
    reader.press("mel-microphone")
    reader.wait(lambda: locks_held(reader) == 2)
    reader.press("mel-stop")
    reader.wait(lambda: reader.mel_state == "done")
    reader.press("tab-chat")
    reader.press("stop")
    reader.wait(lambda: reader.outcome is not None)
    reader.wait(lambda: locks_held(reader) == 0)


def test_features_come_to_a_hidden_page(reader: Reader, tmp_path: Path) -> None:
    reader.press("tab-mel")
    path = write_tone(tmp_path / "long.wav", 300.0)
    before = heap_bytes(reader)
    with hidden(reader):
        assert reader.send_file(path) == "done", reader.mel_said
        assert heap_bytes(reader) - before < HEAP_BYTES_MAX
    assert reader.find("mel-frames").text == "30,001"
    wait_for_picture(reader)
    picture = brightness(reader)
    half = picture.shape[1] // 2
    assert picture[:, : half - 20].mean() < 15
    assert picture[:, half + 20 :].max() > 180
