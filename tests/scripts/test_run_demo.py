from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import run_demo

STANDIN = Path(__file__).with_name("standin.py")
RUN = """
import sys
from pathlib import Path
from scripts import run_demo
command = [sys.executable, {standin!r}, {mode!r}]
sys.exit(run_demo.run(run_demo.Demo(Path({path!r}), run_demo.free_port(20900), run_demo.free_port(20950), command)))
"""


def _start(mode: str, path: Path) -> subprocess.Popen[str]:
    program = RUN.format(standin=str(STANDIN), mode=mode, path=str(path))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=run_demo.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if words in line:
            break
    assert words in read
    return read


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 3), (signal.SIGTERM, 4), (signal.SIGHUP, 4)])
def test_shows_a_stream_stays_and_ends_with_the_daemons_status(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    process = _start("good", tmp_path / "daemon.sock")
    with process:
        shown = _read_until(process, "docs/deployment.md")
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(sent)
        process.communicate(timeout=20)
    assert process.returncode == status
    built, answered = shown.index("Building the data plane"), shown.index("200 OK")
    assert built < answered < shown.index('data: {"content":"token"}') < shown.index("[DONE]")
    assert "/metrics" in shown
    assert "-m scripts.handoff --socket" in shown
    assert "Show me a stream" in (tmp_path / "daemon.log").read_text()


def test_a_daemon_that_dies_is_explained_by_its_log(tmp_path: Path) -> None:
    with _start("dies", tmp_path / "daemon.sock") as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "status 70" in errors
    assert "the reason for all this" in errors


def test_a_stream_that_is_cut_is_a_failure_and_leaves_no_daemon(tmp_path: Path) -> None:
    with _start("cut", tmp_path / "daemon.sock") as process:
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "without its [DONE]" in errors
    assert not run_demo.someone_listens(tmp_path / "daemon.sock")


def test_a_second_demo_leaves_the_first_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "daemon.sock"))
        listener.listen()
        with _start("good", tmp_path / "daemon.sock") as process:
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "already" in errors


def test_the_next_port_is_taken_where_the_first_is_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < run_demo.free_port(port) < port + run_demo.PORTS_TRIED_MAX
