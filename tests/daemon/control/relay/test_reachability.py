"""Whether upstreams can be reached: real sockets on the daemon's own loop, and what /ready makes of it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from backends.relay import Origin
from daemon.control.relay import reachability as module
from daemon.control.relay.reachability import Reachability
from daemon.control.relay.resolver import Resolver
from daemon.control.telemetry.pages import Condition, UpstreamStatus, ready_page
from daemon.control.telemetry.stream_counts import Accounts
from daemon.control.wiring import Planes

TIMEOUT_S = 30.0


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = uvloop.new_event_loop()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIED_AGAIN_S", 0.02)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def tcp(port: int, name: str = "a", host: str = "127.0.0.1") -> Origin:
    return Origin(name=name, scheme="http", host=host, port=port)


def run(loop: asyncio.AbstractEventLoop, scenario: Callable[[Reachability], Coroutine[Any, Any, None]]) -> Reachability:
    resolver = Resolver(loop)
    reachability = Reachability(loop, resolver)

    async def whole() -> None:
        try:
            await asyncio.wait_for(scenario(reachability), TIMEOUT_S)
        finally:
            reachability.close()
            resolver.close()
            await asyncio.sleep(0)

    loop.run_until_complete(whole())
    return reachability


async def becomes(reachability: Reachability, reachable: bool, name: str = "a") -> None:
    while reachability.of(name).reachable is not reachable:  # noqa: ASYNC110  (what is tested knows no event)
        await asyncio.sleep(0.005)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_server_that_listens_is_reachable_and_gets_no_request(
    loop: asyncio.AbstractEventLoop, server: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(reachability: Reachability) -> None:
        reachability.watch([tcp(server.getsockname()[1])])
        assert reachability.of("a").reachable is None
        await becomes(reachability, True)

    run(loop, scenario)
    connection, _ = server.accept()
    with connection:
        connection.settimeout(TIMEOUT_S)
        assert connection.recv(1) == b""
    assert not warnings_in(caplog)


@pytest.mark.parametrize("path", ["socket", "@streaming-daemon-test-reachability"])
def test_a_unix_socket_is_tried_like_a_port(loop: asyncio.AbstractEventLoop, tmp_path: Path, path: str) -> None:
    bound = "\0" + path[1:] if path.startswith("@") else str(tmp_path / path)
    shown = path if path.startswith("@") else bound

    async def scenario(reachability: Reachability) -> None:
        reachability.watch([Origin(name="a", scheme="http", host="x", port=80, socket_path=shown)])
        await becomes(reachability, True)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(bound)
        listening.listen()
        run(loop, scenario)


def test_one_that_refuses_is_said_once_and_found_when_it_is_back(
    loop: asyncio.AbstractEventLoop, server: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    address = server.getsockname()
    server.close()

    async def scenario(reachability: Reachability) -> None:
        reachability.watch([tcp(address[1])])
        await becomes(reachability, False)
        await asyncio.sleep(0.1)
        assert warnings_in(caplog) == [
            f"upstream a (http://127.0.0.1:{address[1]}) cannot be reached: Connection refused"
        ]
        with socket.create_server(address):
            await becomes(reachability, True)
        assert "upstream a can be reached again" in caplog.text

    run(loop, scenario)


def test_one_that_does_not_answer_is_given_up_in_time(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.1)
    waiting: list[socket.socket] = []

    async def scenario(reachability: Reachability) -> None:
        reachability.watch([tcp(listening.getsockname()[1])])
        await becomes(reachability, False)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):  # fill the backlog, so that the next SYN is dropped
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listening.getsockname())
        run(loop, scenario)
        for each in waiting:
            each.close()
        where = f"http://127.0.0.1:{listening.getsockname()[1]}"
    assert warnings_in(caplog) == [f"upstream a ({where}) cannot be reached: no response within 0.1 s"]


def test_a_name_that_is_not_found_is_not_reached(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(reachability: Reachability) -> None:
        reachability.watch([tcp(80, host="x" * 64 + "é")])  # no label is that long: nobody has to be asked
        await becomes(reachability, False)

    run(loop, scenario)
    assert any(said.endswith("cannot be reached: it has no address") for said in warnings_in(caplog))


def test_what_streams_meet_counts(loop: asyncio.AbstractEventLoop, server: socket.socket) -> None:
    async def scenario(reachability: Reachability) -> None:
        reachability.watch([tcp(server.getsockname()[1])])
        reachability.saw("a", reachable=True)
        assert reachability.of("a").reachable is True
        reachability.saw("a", reachable=False)
        since_s = reachability.of("a").since_s
        reachability.saw("a", reachable=False)
        assert reachability.of("a") == (False, since_s)
        await becomes(reachability, True)  # found out without a stream
        reachability.saw("nobody", reachable=False)
        assert reachability.of("nobody").reachable is None

    run(loop, scenario)


def test_a_reload_forgets_what_has_gone_or_moved(loop: asyncio.AbstractEventLoop, server: socket.socket) -> None:
    async def scenario(reachability: Reachability) -> None:
        port = server.getsockname()[1]
        reachability.watch([tcp(port), tcp(port, "b"), tcp(1, "c")])
        for name, reachable in (("a", True), ("b", True), ("c", False)):
            await becomes(reachability, reachable, name)
        reachability.watch([tcp(port), tcp(1, "b")])
        assert reachability.of("a").reachable is True
        assert reachability.of("b").reachable is None
        assert reachability.of("c").reachable is None
        await becomes(reachability, False, "b")

    run(loop, scenario)
    assert not asyncio.all_tasks(loop)


# --------------------------------------------------------------------------------------------------------------- /ready


def ready(
    *upstreams: UpstreamStatus, started: bool = True, draining: bool = False
) -> tuple[HTTPStatus, dict[str, Any]]:
    data_plane = SimpleNamespace(kernel="epoll", kernel_reason="test")
    planes = SimpleNamespace(
        data_plane=data_plane, is_accepting=True, queue_length=lambda: 3, queue_length_max=lambda: 9
    )
    condition = Condition(cast("Planes", planes), ["mock"], 10)
    condition.is_started, condition.is_draining = started, draining
    if upstreams:
        condition.upstreams = lambda: upstreams
    answer = ready_page(Accounts(), condition)("")
    return answer.status, json.loads(answer.body)


def status(
    name: str, *, reachable: bool | None = True, breaker: str = "closed", default: bool = True
) -> UpstreamStatus:
    return UpstreamStatus(name, reachable, breaker, default)


def test_clients_of_model_servers_find_what_they_look_for() -> None:
    _, page = ready()
    assert (page["model_ready"], page["queue_size"], page["max_queue_size"], page["device"]) == (True, 3, 9, "cpu")
    assert page["workers"] == [{"worker_id": "worker_0", "is_ready": True, "processed_requests": 0}]
    assert ready(draining=True)[1]["model_ready"] is False


def test_without_upstreams_the_page_is_as_before() -> None:
    code, page = ready()
    assert (code, page["ready"], page["upstreams"]) == (HTTPStatus.OK, True, {})
    assert ready(started=False)[1]["reason"] == "starting"
    code, page = ready(draining=True)
    assert (code, page["ready"], page["reason"]) == (HTTPStatus.SERVICE_UNAVAILABLE, False, "draining")


def test_the_page_shows_every_upstream() -> None:
    _, page = ready(status("a", reachable=None), status("b", breaker="half_open", default=False))
    assert page["upstreams"] == {
        "a": {"reachable": None, "breaker": "closed"},
        "b": {"reachable": True, "breaker": "half_open"},
    }


@pytest.mark.parametrize(
    ("upstreams", "is_ready"),
    [
        ([status("a", reachable=False), status("b")], True),
        ([status("a", breaker="open"), status("b", reachable=None)], True),
        ([status("a", breaker="half_open")], True),
        ([status("a", breaker="open"), status("b", reachable=False)], False),
        ([status("a", reachable=False)], False),
        ([status("a", reachable=False), status("b", default=False)], False),
        ([status("a", reachable=False, default=False)], True),
    ],
)
def test_it_is_not_ready_when_the_default_backend_has_nobody_to_ask(
    upstreams: Iterable[UpstreamStatus], is_ready: bool
) -> None:
    code, page = ready(*upstreams)
    assert page["ready"] is is_ready
    assert code == (HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)
    assert bool(page["reason"]) is not is_ready
