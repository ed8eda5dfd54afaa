"""The real server, one for the session, and a daemon that relays from it, one for a module and kernel."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import Daemon
from tests.real_server import environment
from tests.real_server.environment import API_KEY, MODEL, RealServer

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION = """\
[server]
backend = "openai"
[backend.openai]
api_base = "http://{address}"
api_key = "{key}"
model = "{model}"
ledger_file = "{ledger}"
"""


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    with (
        tempfile.TemporaryDirectory(prefix="streaming-daemon-real-") as folder,
        environment.running(Path(folder)) as running,
    ):
        yield running


@pytest.fixture(scope="module", params=["io_uring", "epoll"])
def daemon(request: pytest.FixtureRequest, server: RealServer) -> Iterator[Daemon]:
    """Relays from the real server, over plain HTTP/1.1."""
    with tempfile.TemporaryDirectory(prefix="streaming-daemon-relay-") as name:
        configuration = CONFIGURATION.format(
            address=server.address, key=API_KEY, model=MODEL, ledger=Path(name) / "ledger.jsonl"
        )
        running = Daemon(Path(name), str(request.param), configuration=configuration).start()
        yield running
        assert running.stop() == 0, running.log[-4000:]
        assert "Traceback" not in running.log, running.log[-4000:]
