"""The measured process: its CPU time and memory from /proc, and starting and stopping it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_TIMEOUT_S = 60.0  # a cold compile cache takes seconds
_STOP_TIMEOUT_S = 10.0
DESCRIPTORS_RESERVED = 64  # three while a stream starts; the rest is for the interpreter


@dataclass
class Usage:
    """A process at one moment. CPU times are user plus system, in steps of the kernel's tick (10 ms)."""

    cpu_s: float
    resident_kib: int
    threads: dict[int, tuple[str, float]] = field(default_factory=dict[int, "tuple[str, float]"])


def _stat(path: Path) -> tuple[str, float]:
    """Name and CPU seconds from a stat file. The name stands in parentheses and may hold anything."""
    text = path.read_text()
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return name, (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def resident_kib(pid: int) -> int:
    """VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def usage(pid: int) -> Usage:
    """CPU and memory of a process and the CPU of each of its threads. OSError when it is gone."""
    _, cpu_s = _stat(Path(f"/proc/{pid}/stat"))
    found = Usage(cpu_s, resident_kib(pid))
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # a thread may end while we look
            found.threads[int(task.name)] = _stat(task / "stat")
    return found


def open_files_limit(pid: int) -> int:
    """The soft RLIMIT_NOFILE of a process."""
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


def raise_open_files_limit(stream_count: int) -> None:
    """Raise our soft limit as far as it goes. ValueError says how many streams fit, where these do not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if stream_count + DESCRIPTORS_RESERVED > hard:
        raise ValueError(
            f"--streams {stream_count} needs {stream_count + DESCRIPTORS_RESERVED} descriptors here, one for each "
            f"stream and {DESCRIPTORS_RESERVED} besides; the hard limit (ulimit -Hn) is {hard}: at most "
            f"{hard - DESCRIPTORS_RESERVED} streams fit"
        )


def is_accepting(path: str, socket_type: socket.SocketKind) -> bool:
    """Whether somebody listens on that Unix socket. The connection is closed at once, without data."""
    with socket.socket(socket.AF_UNIX, socket_type) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _wait_until_ready(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not is_ready():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            what = f"exited with {code}" if code is not None else f"does not accept after {_START_TIMEOUT_S:g} s"
            raise RuntimeError(f"the server {what}: {log.read_text(errors='replace')[-2000:].strip()}")
        time.sleep(0.02)


@contextlib.contextmanager
def running(command: Sequence[str], path: str, socket_type: socket.SocketKind) -> Generator[subprocess.Popen[bytes]]:
    """Start a server, wait until its socket accepts, and end it afterwards. RuntimeError with its words if it fails."""
    with started(command, lambda: is_accepting(path, socket_type)) as process:
        yield process


@contextlib.contextmanager
def started(
    command: Sequence[str], is_ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """The same of a server that is ready when `is_ready` says so, which is asked again and again."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        log = Path(folder) / "output"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            _wait_until_ready(process, is_ready, log)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
