"""A real OpenAI-compatible server with a model of our own making: llama.cpp's, in an environment of its own.

`make real-server` installs it, `make test` does so by itself. What is missing is an error and never a skip.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.processes import stop
from tests.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

HERE = Path(__file__).resolve().parent
INSTALLED = HERE.parents[1] / ".cache" / "real-server"
PYTHON = INSTALLED / "bin" / "python"
MODEL = "tiny"
API_KEY = "llama-key-0123456789"
KEEP_ALIVE_S = 5.0  # how long the server keeps an idle connection
SLOTS = 2  # as serve.py has it; a third request waits
START_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class RealServer:
    """The server, and what to ask it."""

    port: int
    log: Path

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def get(self, path: str) -> str:
        """The body of a page."""
        return self._open(path, None)

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a chat request in one piece, asked for directly."""
        found: dict[str, Any] = json.loads(self._open("/v1/chat/completions", json.dumps(request).encode()))
        return found

    def busy_slots(self) -> int:
        """How many requests it works on."""
        return sum(slot["is_processing"] for slot in json.loads(self.get("/slots")))

    def metric(self, name: str) -> float:
        """One of its own metrics."""
        lines = dict(line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return float(lines[f"llamacpp:{name}"])

    def _open(self, path: str, body: bytes | None) -> str:
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(response.read().decode())


def wait_until(condition: Callable[[], bool], what: str, seconds_max: float = 10.0) -> float:
    """How many seconds it took to become true; an AssertionError where it did not."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() < started_s + seconds_max, f"{what}: not within {seconds_max} s"
        time.sleep(0.01)
    return time.monotonic() - started_s


@contextlib.contextmanager
def running(folder: Path) -> Generator[RealServer]:
    """Make the model, start the server on it, and stop it afterwards."""
    if not (INSTALLED / ".installed").exists():
        raise RuntimeError(f"There is no real server in {INSTALLED}. Install it with:\n    make real-server")
    model = folder / "tiny.gguf"
    subprocess.run([PYTHON, HERE / "make_model.py", model], check=True)
    server = RealServer(unused_port(), folder / "server.log")
    with server.log.open("wb") as log:
        command = [str(PYTHON), str(HERE / "serve.py"), str(model), str(server.port), API_KEY]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + START_SECONDS_MAX
        while "http://127" not in server.log.read_text(errors="replace").rpartition("listening on ")[2]:
            assert process.poll() is None, server.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline_s, server.log.read_text(errors="replace")[-4000:]
            time.sleep(0.02)
        yield server
    finally:
        stop(process)
