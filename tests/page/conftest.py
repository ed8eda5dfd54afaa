"""The daemon, with keys and without, the scripted server for what no daemon does, and one browser for all tests."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import Daemon
from tests.browser import running_chromium
from tests.page.reader import Reader
from tests.page.stage import Stage, running_stage

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

# A microphone that beeps, and nobody who has to be asked for it.
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
KEY = "key~~~open"  # base64 has a plus and padding for it, which base64url has not
CONFIGURATION = """
[server]
data_dir = "{folder}"
[http]
listen = "127.0.0.1:0"
api_keys_file = "{keys}"
[backend.mel]
enabled = true
[backend.test_model]
tokens_per_second = {tokens_per_second}
"""


def url_of(daemon: Daemon) -> str:
    """Where the front of a daemon that is READY listens."""
    found = re.search(r"http=\"?(http://[0-9.:]+)", daemon.log)
    assert found, daemon.log
    return f"{found[1]}/"


@contextmanager
def running(daemon: Daemon) -> Generator[Daemon]:
    yield daemon.start()
    assert daemon.stop() == 0, daemon.log[-4000:]
    assert "Traceback" not in daemon.log, daemon.log[-4000:]
    assert KEY not in daemon.log


def configured(folder: Path, *, keys: str = "", tokens_per_second: int = 120_000) -> str:
    return CONFIGURATION.format(folder=folder, keys=keys, tokens_per_second=tokens_per_second)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon without keys, whose test-model makes 120,000 tokens/s."""
    folder = tmp_path_factory.mktemp("daemon")
    with running(Daemon(folder, "auto", configuration=configured(folder))) as started:
        yield started


@pytest.fixture(scope="session")
def guarded_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon that wants KEY, whose test-model is as fast as its clients."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys"
    keys.write_text(f"reader: {KEY}\n")
    keys.chmod(0o600)
    configuration = configured(folder, keys=str(keys), tokens_per_second=0)
    with running(Daemon(folder, "auto", configuration=configuration)) as started:
        yield started


@pytest.fixture(scope="session")
def running_script() -> Iterator[Stage]:
    with running_stage() as stage:
        yield stage


@pytest.fixture
def stage(running_script: Stage) -> Iterator[Stage]:
    """The scripted server as it is at first, whatever an earlier test made of it."""
    running_script.__dict__.update(Stage(running_script.port).__dict__)
    yield running_script
    running_script.__dict__.update(Stage(running_script.port).__dict__)


@pytest.fixture(scope="session")
def browser(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    assert daemon.process is not None, "the server stands before the browser, and outlives it"
    with running_chromium(tmp_path_factory.mktemp("chromium"), *MICROPHONE) as driver:
        yield driver


@contextmanager
def reading(browser: Chrome, url: str) -> Generator[Reader]:
    """The page, freshly opened. Whatever it logged as an error fails the test that does not expect it."""
    reader = Reader(browser, url)
    reader.open()
    yield reader
    reader.leave()
    unexpected = [entry for entry in reader.console() if not reader.expects(entry)]
    assert not unexpected, unexpected


@pytest.fixture
def reader(browser: Chrome, daemon: Daemon) -> Iterator[Reader]:
    """Before the daemon."""
    with reading(browser, url_of(daemon)) as opened:
        yield opened


@pytest.fixture
def locked_out(browser: Chrome, guarded_daemon: Daemon) -> Iterator[Reader]:
    """Before the daemon that wants a key: its dialog is open."""
    with reading(browser, url_of(guarded_daemon)) as opened:
        opened.expect_in_console("status of 401")
        yield opened


@pytest.fixture
def guarded(locked_out: Reader) -> Reader:
    """Before the daemon that wants a key, which the page has."""
    locked_out.give_key(KEY)
    locked_out.wait(lambda: locked_out.can_choose_a_model)
    return locked_out


@pytest.fixture
def staged(browser: Chrome, stage: Stage) -> Iterator[Reader]:
    """Before the scripted server."""
    with reading(browser, stage.url) as opened:
        yield opened
