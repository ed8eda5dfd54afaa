"""Answers of servers that are too large to be installed for a test: what they sent once, byte for byte.

docs/testing.md says which were tried. A file is a whole response as it came from the socket; usage was asked for.
"""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.behaviour.daemon_process import Daemon
from tests.real_server.environment import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDED = Path(__file__).resolve().parent / "recorded"
CONFIGURATION = """\
[server]
backend = "openai"
[backend.openai]
api_base = "http://127.0.0.1:{port}"
ledger_file = "{ledger}"
"""


class Expected(NamedTuple):
    """What a recorded answer says."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int
    is_estimated: bool


EXPECTED = {
    # Usage comes beside a choice that says nothing, against OpenAI's description.
    "litellm-1.106.2.http": Expected('Grüße aus dem Nichts, with "quotes"', 8, 12, is_estimated=False),
    # JSON with spaces and escapes, a first delta with empty content, and no usage although it was asked for.
    "llama-cpp-python-0.3.36.http": Expected(" to féan rä me me nél réij", None, 12, is_estimated=True),
}


class Player:
    """Answers every connection's first request with the same bytes, in pieces that fit nothing, and closes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not connection.recv(65_536):
                    continue  # the daemon only looked whether somebody is here
                for at in range(0, len(self._answer), 97):
                    connection.sendall(self._answer[at : at + 97])


@pytest.fixture(params=sorted(EXPECTED))
def recorded(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon(recorded: str, tmp_path: Path) -> Iterator[Daemon]:
    player = Player((RECORDED / recorded).read_bytes())
    configuration = CONFIGURATION.format(port=player.port, ledger=tmp_path / "ledger.jsonl")
    running = Daemon(tmp_path, "auto", configuration=configuration).start()
    yield running
    assert running.stop() == 0, running.log[-4000:]
    player.close()


def test_every_recording_is_expected_to_say_something() -> None:
    assert {path.name for path in RECORDED.iterdir()} == set(EXPECTED)


def test_a_recorded_answer_is_relayed(daemon: Daemon, recorded: str) -> None:
    expected = EXPECTED[recorded]
    answer = daemon.ask({"prompt": "Hello"})
    assert "".join(answer.contents) == expected.text
    assert answer.body.endswith(b"data: [DONE]\n\n")
    ledger = daemon.directory / "ledger.jsonl"
    wait_until(lambda: ledger.exists() and ledger.read_text().endswith("\n"), "the ledger's row")
    row = json.loads(ledger.read_text())
    assert row["completion_tokens"] == expected.completion_tokens
    assert row["estimated"] == expected.is_estimated
    if not expected.is_estimated:
        assert row["prompt_tokens"] == expected.prompt_tokens


def test_in_its_own_format_it_passes_unchanged(daemon: Daemon, recorded: str) -> None:
    answer = daemon.ask({"prompt": "Hello", "format": "openai", "stream_options": {"include_usage": True}})
    framed = (RECORDED / recorded).read_bytes().partition(b"\r\n\r\n")[2]
    sent = [line for line in framed.splitlines() if line.startswith(b"data: {")]
    passed = [line for line in answer.body.splitlines() if line.startswith(b"data: {")]
    assert passed == sent
