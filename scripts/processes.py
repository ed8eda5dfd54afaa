"""Programs that tests and demonstrations start: how they are waited for, and how they are ended."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

STOP_SECONDS_MAX = 30.0


class ProgramError(Exception):
    """A program did not start as it should; the message has its own words."""


@contextmanager
def running(command: Sequence[str], output: Path, folder: Path | None = None) -> Generator[subprocess.Popen[bytes]]:
    """A program that runs in `folder`, with its output in a file; ended afterwards, and an error if it does not end.

    It has a session of its own: Ctrl-C does not reach it, and Apache ends by a signal to its whole process group.
    """
    with output.open("wb") as console:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """End the process; one that does not end is killed and reported, since that is a bug in what it ran."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def wait_for_listener(
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    address: str | tuple[str, int],
    process: subprocess.Popen[bytes],
    output: Path,
    seconds_max: float,
) -> None:
    """Return once something accepts at `address`.

    Raises:
        ProgramError: the program ended before that, or took too long; with the program's own words.
    """
    deadline = time.monotonic() + seconds_max
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ProgramError(f"{process.args!r} ended with {process.returncode}:\n{output.read_text()}")
        with socket.socket(family, kind) as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.02)
    raise ProgramError(f"{process.args!r} did not listen at {address} within {seconds_max} s:\n{output.read_text()}")
