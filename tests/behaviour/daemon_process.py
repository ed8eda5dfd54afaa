"""A daemon under test: started as users start it, spoken to as Apache speaks to it."""

from __future__ import annotations

import array
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ports import unused_port

ROOT = Path(__file__).resolve().parents[2]
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: close\r\nX-Accel-Buffering: no\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"
LATE_S_MAX = 20.0  # of what comes at once or in time, on a machine that is busy with other things


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except FileNotFoundError:  # closed meanwhile
        return False


@dataclass
class Answer:
    """What a client got until the end of its connection."""

    raw: bytes
    reset: bool = False

    @property
    def status(self) -> int:
        match = re.match(rb"HTTP/1\.1 (\d{3}) ", self.raw)
        assert match, f"no response head in {self.raw[:200]!r}"
        return int(match.group(1))

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}

    @property
    def problem(self) -> dict[str, Any]:
        """The RFC 9457 body; its length must be what the head says."""
        assert self.headers["content-type"].startswith("application/problem+json")
        assert int(self.headers["content-length"]) == len(self.body)
        problem: dict[str, Any] = json.loads(self.body)
        assert problem["status"] == self.status
        return problem

    @property
    def contents(self) -> list[str]:
        """The content of every message, in order."""
        blocks = self.body.decode().split("\n\n")
        return [json.loads(block[6:])["content"] for block in blocks if block.startswith("data: {")]


def read_all(client: socket.socket, timeout_s: float = 30) -> Answer:
    """Read to the end of the connection."""
    client.settimeout(timeout_s)
    pieces: list[bytes] = []
    try:
        while piece := client.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        return Answer(b"".join(pieces), reset=True)
    return Answer(b"".join(pieces))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """(server end, client end) of a loopback TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return server, client


@dataclass
class Daemon:
    """One daemon process on a socket of its own."""

    directory: Path
    kernel: str
    arguments: list[str] = field(default_factory=list[str])
    configuration: str = ""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    wrapper: list[str] = field(default_factory=list[str])
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        return self.directory / "daemon.sock"

    @property
    def log(self) -> str:
        return (self.directory / "daemon.log").read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> Daemon:
        """Start it and wait until it says READY."""
        file = self.directory / "daemon.toml"
        file.write_text(self.configuration)
        self.metrics_port = unused_port()
        command = [
            *self.wrapper, sys.executable, "-m", "daemon", "--config", str(file), "--socket", str(self.socket_path),
            "--kernel", self.kernel, "--metrics", str(self.metrics_port), *self.arguments,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'behaviour'}", **self.environment}
        with (self.directory / "daemon.log").open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, cwd=ROOT, env=environment)
        deadline = time.monotonic() + 120
        while "READY" not in self.log:
            assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"not ready:\n{self.log}"
            time.sleep(0.02)
        return self

    def stop(self, signal_number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Ask it to end; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not end:\n{self.log[-4000:]}") from None

    def connect(self, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, kind)
        peer.connect(str(self.socket_path))
        return peer

    def hand_over(self, data: bytes, descriptors: list[int], peer: socket.socket | None = None) -> None:
        """One handoff message with these bytes and descriptors, then the peer leaves, as Apache does."""
        own = peer or self.connect()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        own.sendmsg([data], ancillary)
        if peer is None:
            own.close()

    def open(self, request: bytes | dict[str, Any] | None = None, *, tcp: bool = False) -> socket.socket:
        """Hand over one end of a new connection; the client's end."""
        data = request if isinstance(request, bytes) else json.dumps(request or {"prompt": "Hello"}).encode()
        server, client = tcp_pair() if tcp else socket.socketpair()
        try:
            self.hand_over(data, [server.fileno()])
        finally:
            server.close()
        return client

    def ask(self, request: bytes | dict[str, Any] | None = None, *, tcp: bool = False) -> Answer:
        """Open a stream and read it to its end."""
        with self.open(request, tcp=tcp) as client:
            return read_all(client)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        return self._scraped()[0]

    def _scraped(self) -> tuple[dict[str, float], set[str]]:
        """The samples, and the names of all metrics, those without a sample among them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as response:
            text = response.read().decode()
        samples: dict[str, float] = {}
        names: set[str] = set()
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                names.add(line.split(" ")[2])
            elif line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples, names

    def metric(self, name: str) -> float:
        """A sample, 0 where there is none yet. Of a metric that is not there a test would find nothing, ever."""
        samples, names = self._scraped()
        family = name.partition("{")[0]
        assert {family, re.sub("_(count|sum|bucket)$", "", family)} & names, f"there is no metric {name}"
        return samples.get(name, 0.0)

    def wait_for_metric(self, name: str, value: float, timeout_s: float = 30) -> None:
        """Wait until a sample has this value."""
        deadline = time.monotonic() + timeout_s
        while (seen := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {seen}, not {value}\n{self.log[-3000:]}"
            time.sleep(0.02)

    def wait_idle(self, timeout_s: float = 30) -> None:
        """Wait until no stream is left."""
        self.wait_for_metric("streaming_daemon_connections_active", 0, timeout_s)

    def descriptor_count(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def wait_for_descriptors(self, count_max: int) -> None:
        """Wait until no more are open: an end is told while the last of a scrape's connection is still there."""
        deadline = time.monotonic() + LATE_S_MAX
        while (count := self.descriptor_count()) > count_max:
            assert time.monotonic() < deadline, f"{count} descriptors are open, {count_max} are expected"
            time.sleep(0.02)

    def socket_count(self) -> int:
        """Descriptors that are sockets."""
        return sum(_is_socket(path) for path in Path(f"/proc/{self.pid}/fd").iterdir())

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match
        return int(match.group(1)) * 1024
