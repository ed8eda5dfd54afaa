"""What fails in the event loop ends the process where it is essential, and one connection or request otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop

from daemon.control.process.supervision import KINDS, Containment, essential, essential_failure, essential_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


def fail() -> None:
    raise RuntimeError("planted")


def take(fd: int) -> None:
    os.read(fd, 1)
    fail()


async def fail_later() -> None:
    fail()


class Failing(asyncio.Protocol):
    """A connection whose code fails."""

    def __init__(self) -> None:
        self.was_lost = False

    def data_received(self, data: bytes) -> None:
        del data
        fail()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.was_lost = True


class Watched:
    """An event loop whose failures are sorted as the daemon sorts them."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(self._failed)
        self.counts = dict.fromkeys(KINDS, 0)
        self.fatal: list[str] = []
        self._containment = Containment(self.counts)

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = essential_failure(context)
        if error is None:
            self._containment.contain(context)
        else:
            self.fatal.append(str(error))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)
        gc.collect()  # a task that nobody waited for says so when it is collected


@pytest.fixture(name="watched")
def _watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.loop.close()


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0.001)


def test_a_connection_that_fails_is_closed_and_counted(watched: Watched) -> None:
    protocol = Failing()

    async def connect() -> None:
        server = cast("asyncio.Server", await watched.loop.create_server(lambda: protocol, "127.0.0.1", 0))
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.setblocking(False)
            client.send(b"x")
            with contextlib.suppress(ConnectionResetError):  # as good as an end
                assert await watched.loop.sock_recv(client, 1) == b""
        server.close()
        await _turns()

    watched.run(connect())
    assert protocol.was_lost
    assert (watched.counts["connection"], sum(watched.counts.values()), watched.fatal) == (1, 1, [])


def test_tasks_and_callbacks_of_nobody_in_particular_are_contained(watched: Watched) -> None:
    async def begin() -> None:
        watched.loop.create_task(fail_later())
        watched.loop.call_soon(fail)
        watched.loop.call_later(0.001, fail)
        await _turns()

    watched.run(begin())
    assert watched.fatal == []
    assert watched.counts == {"connection": 0, "task": 1, "callback": 2, "event": 0, "other": 0}


@pytest.mark.parametrize("how", ["callback", "timer", "reader", "task"])
def test_what_is_essential_ends_the_process(watched: Watched, how: str) -> None:
    async def begin() -> None:
        read_end, write_end = os.pipe()
        failing: Callable[[], None] = essential("the part", fail)
        begun: dict[str, Callable[[], object]] = {
            "callback": lambda: watched.loop.call_soon(failing),
            "timer": lambda: watched.loop.call_later(0.001, failing),
            "reader": lambda: watched.loop.add_reader(read_end, essential("the part", take), read_end),
            "task": lambda: essential_task(watched.loop, "the part", fail_later()),
        }
        begun[how]()
        os.write(write_end, b"x")
        await _turns()
        watched.loop.remove_reader(read_end)
        os.close(read_end)
        os.close(write_end)

    watched.run(begin())
    assert watched.fatal == ["the part"]
    assert sum(watched.counts.values()) == 0


def test_an_essential_task_may_end_and_be_cancelled(watched: Watched) -> None:
    async def begin() -> None:
        essential_task(watched.loop, "short", asyncio.sleep(0))
        essential_task(watched.loop, "long", asyncio.sleep(100)).cancel()
        await _turns()

    watched.run(begin())
    assert (watched.fatal, sum(watched.counts.values())) == ([], 0)


def test_essential_calls_return_what_they_return() -> None:
    assert essential("division", divmod)(7, 2) == (3, 1)


def test_an_event_source_that_the_loop_has_closed_is_essential() -> None:
    error = OSError(12, "no memory")
    assert essential_failure({"exception": error}) is error
    assert essential_failure({"exception": error, "message": "of a connection", "transport": None}) is None
    assert essential_failure({"exception": ValueError("a protocol could not be made")}) is None
    assert essential_failure({"message": "Task was destroyed but it is pending!"}) is None


def test_a_traceback_is_logged_once_a_minute_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    containment = Containment(dict.fromkeys(KINDS, 0))
    error = RuntimeError("planted")
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            containment.contain({"message": "m", "exception": error, "handle": object()})
            containment.contain({"message": "m", "exception": error, "future": object()})
    assert [vars(record)["reason"] for record in caplog.records] == ["callback", "task"]
    assert all(record.exc_info and record.exc_info[1] is error for record in caplog.records)
