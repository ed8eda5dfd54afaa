"""What systemd hears, on a real datagram socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from daemon.control.process.systemd import Heartbeat, Notifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    with (
        tempfile.TemporaryDirectory(prefix="sd-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound,
    ):
        if request.param == "path":
            address = str(Path(directory) / "notify")
            bound.bind(address)
        else:
            address = f"@streaming-daemon-test-{os.getpid()}"
            bound.bind("\0" + address[1:])
        bound.settimeout(5)
        yield bound, address


def received(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_the_states_of_a_life(manager: tuple[socket.socket, str]) -> None:
    bound, address = manager
    environment = {"NOTIFY_SOCKET": address, "OTHER": "kept"}
    notifier = Notifier(environment)
    assert environment == {"OTHER": "kept"}
    notifier.ready("0 streams")
    assert received(bound) == {"READY": "1", "STATUS": "0 streams"}
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    message = received(bound)
    assert message["RELOADING"] == "1"
    assert before_us <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    notifier.stopping("draining")
    assert received(bound) == {"STOPPING": "1", "STATUS": "draining"}
    notifier.extend_timeout(2.5)
    assert received(bound) == {"EXTEND_TIMEOUT_USEC": "2500000"}
    notifier.close()
    notifier.status("unheard")


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})
    assert notifier.watchdog_interval_s == 0
    notifier.ready("0 streams")
    asyncio.run(Heartbeat(notifier, lambda _cookie: pytest.fail("asked for nothing")).run())


def test_a_manager_that_does_not_listen_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/nonexistent/notify"})
    notifier.ready("0 streams")
    notifier.close()
    assert "cannot notify" in caplog.text


def test_a_watchdog_of_another_process_is_not_ours(manager: tuple[socket.socket, str]) -> None:
    _, address = manager
    for process_id, expected in (("1", 0.0), (str(os.getpid()), 2.0), ("", 2.0)):
        variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": process_id}
        notifier = Notifier(variables)
        assert notifier.watchdog_interval_s == expected
        notifier.close()


async def beats(heartbeat: Heartbeat, is_over: Callable[[], bool]) -> None:
    task = asyncio.get_running_loop().create_task(heartbeat.run())
    deadline_s = time.monotonic() + 30
    while not is_over():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_the_watchdog_is_fed_only_while_the_plane_answers(
    manager: tuple[socket.socket, str], caplog: pytest.LogCaptureFixture
) -> None:
    bound, address = manager
    bound.setblocking(False)
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
    heartbeat: Heartbeat

    def answer_thrice(cookie: int) -> None:
        if cookie <= 3:
            heartbeat.pong(cookie)

    heartbeat = Heartbeat(notifier, answer_thrice)
    asyncio.run(beats(heartbeat, lambda: "did not respond" in caplog.text))
    notifier.close()
    fed = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            assert received(bound) == {"WATCHDOG": "1"}
            fed += 1
    assert fed == 3
