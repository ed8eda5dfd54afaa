"""Connections of the HTTP front that do nothing, where descriptors are few: everybody else is served."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING

from tests.behaviour.daemon_process import DONE, LATE_S_MAX, Daemon
from tests.behaviour.http_helpers import Front, http_config, url_of

if TYPE_CHECKING:
    from pathlib import Path

DESCRIPTORS = 300


def test_idle_connections_take_nothing_from_streams(kernel: str, tmp_path: Path) -> None:
    limit = f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"
    daemon = Daemon(tmp_path, kernel, ["--delay", "1"], http_config(backend="mock"), wrapper=["prlimit", limit])
    front = Front(daemon.start(), url_of(daemon))
    idle: list[socket.socket] = []
    try:
        kept = front.connect()
        idle.append(kept.socket)
        idle += [socket.create_connection(("127.0.0.1", front.port)) for _ in range(2 * DESCRIPTORS)]
        # Until it has seen all of them: to those beyond its limit it says so, or closes them without a word.
        deadline_s = time.monotonic() + LATE_S_MAX
        while (refused := _readable_count(idle)) < 2 * DESCRIPTORS - DESCRIPTORS // 4:
            assert time.monotonic() < deadline_s, f"only {refused} are refused"
            time.sleep(0.02)
        assert daemon.descriptor_count() < DESCRIPTORS - 50
        assert daemon.ask().body.endswith(DONE)
        kept.send(b"GET /health HTTP/1.1\r\nHost: daemon\r\n\r\n")
        assert kept.reply().status == 200
    finally:
        for client in idle:
            client.close()
        assert daemon.stop() == 0, daemon.log[-4000:]
    assert "Traceback" not in daemon.log, daemon.log[-4000:]


def _readable_count(clients: list[socket.socket]) -> int:
    poll = select.poll()
    for client in clients:
        poll.register(client, select.POLLIN)
    return len(poll.poll(0))
