"""The page before a daemon that relays from the stage and has no mel features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import Daemon
from tests.page.conftest import reading, running, url_of
from tests.page.stage import EXPLANATION, MODEL, Stage
from tests.page.test_mel import write_tone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

    from tests.page.reader import Reader

pytestmark = pytest.mark.browser

CONFIGURATION = """
[server]
backend = "openai"
data_dir = "{folder}"
[http]
listen = "127.0.0.1:0"
[backend.openai]
api_base = "{url}"
model = "{model}"
"""


@pytest.fixture(scope="module")
def relaying(running_script: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("relaying")
    configuration = CONFIGURATION.format(folder=folder, url=running_script.url.rstrip("/"), model=MODEL)
    with running(Daemon(folder, "auto", configuration=configuration)) as started:
        yield started


@pytest.fixture
def relayed(browser: Chrome, relaying: Daemon) -> Iterator[Reader]:
    with reading(browser, url_of(relaying)) as opened:
        yield opened


def test_a_relayed_answer_and_what_the_daemon_counted_of_it(relayed: Reader) -> None:
    relayed.ask("Why can a daemon do that?")
    relayed.wait(lambda: relayed.outcome is not None)
    assert relayed.outcome == "complete"
    assert relayed.answer == EXPLANATION
    assert relayed.number("finish") == "stop"
    relayed.press("tab-live")
    relayed.wait(lambda: "complete 0 1" in " ".join(relayed.find("reasons").text.split()))
    assert "io_uring" in relayed.find("information").text or "epoll" in relayed.find("information").text
    assert relayed.find("server-state").text == "Ready"
    cells = relayed.run(
        "return [...document.querySelectorAll('#upstreams td, #upstreams th')].map((e) => e.textContent)"
    )
    assert cells[1:] == ["0", "closed", "0"]


def test_where_mel_is_off_the_page_says_how_to_have_it(relayed: Reader, tmp_path: Path) -> None:
    relayed.press("tab-mel")
    relayed.expect_in_console("status of 501")
    assert relayed.send_file(write_tone(tmp_path / "tone.wav", 1.0)) == "failed"
    assert relayed.mel_said.startswith("501: mel features are not enabled here: backend.mel.enabled = true does it")
    assert "MEL_ENABLED=1" in relayed.mel_said
    said = relayed.mel_said
    relayed.press("mel-microphone")
    relayed.wait(lambda: relayed.mel_state == "failed")
    assert relayed.mel_said == said.removeprefix("501: ")
