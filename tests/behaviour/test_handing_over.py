"""The application of examples/handing_over.py: its clients are streamed to by a daemon."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, ROOT, Daemon
from tests.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = ROOT / "examples" / "handing_over.py"


def run_application(socket_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start it; returns once it answers."""
    port = unused_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DAEMON_SOCKET": str(socket_path)}
    process = subprocess.Popen([sys.executable, str(EXAMPLE), str(port)], env=environment, cwd=ROOT)
    deadline_s = time.monotonic() + 30
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)) != 0:
            assert process.poll() is None, "the application ended"
            assert time.monotonic() < deadline_s, "the application does not listen"
            time.sleep(0.05)
    return process, port


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    started = Daemon(tmp_path_factory.mktemp("daemon"), "auto", ["--delay", "1"]).start()
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="module")
def port(daemon: Daemon) -> Iterator[int]:
    process, port = run_application(daemon.socket_path)
    yield port
    process.terminate()
    process.wait(10)


def curl(port: int, path: str) -> str:
    command = ["curl", "-siN", "--max-time", "20", f"http://127.0.0.1:{port}{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_document_shows_the_file() -> None:
    text = (ROOT / "docs" / "http.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown == EXAMPLE.read_text()


def test_a_client_is_streamed_to_by_the_daemon(port: int) -> None:
    answer = curl(port, "/chat?prompt=Bonjour")
    assert answer.startswith(HEAD.decode().replace("\r\n", "\n"))
    assert "Prompt: Bonjour" in answer
    assert "User ID: 127.0.0.1" in answer
    assert answer.encode().endswith(DONE)


def test_connections_are_kept_until_one_is_handed_over(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(10)
        for _ in range(3):
            client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
            got = b""
            while not got.endswith(b"}"):
                got += client.recv(4096)
            assert got.startswith(b"HTTP/1.1 404 ")
        client.sendall(b"GET /chat HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while piece := client.recv(4096):
            got += piece
    assert got.startswith(HEAD)
    assert got.endswith(DONE)


def test_without_a_daemon_there_is_an_answer(tmp_path: Path) -> None:
    process, port = run_application(tmp_path / "nobody.sock")
    try:
        assert curl(port, "/chat").startswith("HTTP/1.1 503 ")
    finally:
        process.terminate()
        process.wait(10)
