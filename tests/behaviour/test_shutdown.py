"""How the daemon ends: no new streams, the old ones finish or are told, nothing is cut without a word."""

from __future__ import annotations

import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, LATE_S_MAX, Daemon, read_all
from tests.behaviour.test_backends import BACKENDS, error_of
from tests.behaviour.test_streams import assert_whole

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_for_drain(daemon: Daemon) -> None:
    """Until a signal has been heard: nobody new finds the socket."""
    deadline_s = time.monotonic() + LATE_S_MAX
    while daemon.socket_path.exists():
        assert time.monotonic() < deadline_s, f"the drain has not begun\n{daemon.log[-2000:]}"
        time.sleep(0.01)


@pytest.mark.serial
def test_sigterm_under_a_thousand_streams_drops_none(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--delay", "300")
    clients = [daemon.open({"user_id": n}) for n in range(1000)]
    daemon.wait_for_metric("streaming_daemon_handoff_seconds_count", 1000)  # what is still in the backlog gets a 503
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    wait_for_drain(daemon)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
        assert late.connect_ex(str(daemon.socket_path)) != 0
    for client in clients:
        assert_whole(read_all(client))
        client.close()
    assert daemon.process.wait(60) == 0
    assert not daemon.socket_path.exists()


def test_streams_that_cannot_finish_are_told(start: Callable[..., Daemon]) -> None:
    daemon = start("[timeouts]\nshutdown_timeout_s = 1\n", "--delay", "30000")
    client = daemon.open()
    client.recv(1)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    with client:
        error_of(read_all(client).raw)
    assert daemon.process.wait(60) == 0


def test_a_queued_stream_gets_a_503_at_shutdown(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + "[thread_pool]\npool_size = 1\n[timeouts]\nshutdown_timeout_s = 1\n")
    first = daemon.open({"backend": "hangs", "prompt": "after"})
    first.recv(1)
    second = daemon.open({"backend": "hangs"})
    daemon.wait_for_metric("streaming_daemon_connections_active", 2)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    with first, second:
        assert read_all(second).status == 503
        error_of(read_all(first).raw)
    assert daemon.process.wait(60) == 0


def test_a_second_signal_ends_at_once(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--delay", "30000")
    client = daemon.open()
    client.recv(1)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    wait_for_drain(daemon)
    assert daemon.process.poll() is None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(LATE_S_MAX)  # a drain may take 120 s
    with client:
        assert not read_all(client).raw.endswith(DONE)


def test_refusals_that_found_no_line_are_counted_in_the_log(start: Callable[..., Daemon]) -> None:
    daemon = start("")
    for _ in range(7):
        assert daemon.ask({"backend": "nobody"}).status == 400
    assert daemon.stop() == 0
    counts = re.findall(r"handoff refused reason=unknown_backend .*count=(\d+)", daemon.log)
    assert sum(map(int, counts)) == 7, daemon.log
    assert len(counts) < 7
