"""One server and one browser for all tests of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser import running_chromium
from tests.page.reader import Reader
from tests.page.stage import Stage, running_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

# A microphone that beeps, and nobody who has to be asked for it.
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="session")
def running() -> Iterator[Stage]:
    with running_stage() as stage:
        yield stage


@pytest.fixture(scope="session")
def browser(running: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    assert running.port, "the server stands before the browser, and outlives it"
    with running_chromium(tmp_path_factory.mktemp("chromium"), *MICROPHONE) as driver:
        yield driver


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    """The server as it is at first, whatever an earlier test made of it."""
    running.__dict__.update(Stage(running.port).__dict__)
    yield running
    running.__dict__.update(Stage(running.port).__dict__)


@pytest.fixture
def reader(browser: Chrome, stage: Stage) -> Iterator[Reader]:
    """The page, freshly opened. Whatever it logged as an error fails the test that does not expect it."""
    opened = Reader(browser, stage)
    opened.open()
    yield opened
    opened.leave()
    unexpected = [entry for entry in opened.console() if not opened.expects(entry)]
    assert not unexpected, unexpected
