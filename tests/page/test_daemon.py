"""The page before the daemon itself, which relays from the stage."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.apache.environment import DAEMON_START_SECONDS_MAX, free_port, running_daemon, wait_for_listener
from tests.page.reader import Reader
from tests.page.stage import EXPLANATION, MODEL, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser


@pytest.fixture
def relayed(browser: Chrome, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setenv("OPENAI_API_BASE", stage.url.rstrip("/"))
    monkeypatch.setenv("OPENAI_MODEL", MODEL)
    front = Stage(free_port())
    path = tmp_path / "d.sock"
    with running_daemon(path, "--backend", "openai", "--http", f"127.0.0.1:{front.port}") as daemon:
        # The socket of handoffs listens first: what comes to it waits there, and what comes over HTTP would be refused.
        address, log = ("127.0.0.1", front.port), path.with_suffix(".log")
        wait_for_listener(socket.AF_INET, socket.SOCK_STREAM, address, daemon, log, DAEMON_START_SECONDS_MAX)
        reader = Reader(browser, front)
        reader.open()
        yield reader
        reader.leave()
        unexpected = reader.console()
    assert not unexpected, unexpected


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
