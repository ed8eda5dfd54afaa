"""The monitoring pages over real TCP connections, polite and otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import pytest
import uvloop

from daemon.control.process.exit_codes import StartError
from daemon.control.telemetry import server as module
from daemon.control.telemetry.server import MonitoringServer, PageResponse, json_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.control.telemetry.server import Page


def page_failing(_accept: str) -> PageResponse:
    raise ValueError("broken page")


PAGES: dict[str, Page] = {
    "/health": lambda _accept: json_response(HTTPStatus.OK, {"status": "healthy"}),
    "/ready": lambda _accept: json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False}),
    "/metrics": lambda accept: PageResponse(HTTPStatus.OK, accept.encode(), "text/plain"),
    "/broken": page_failing,
    "/large": lambda _accept: PageResponse(HTTPStatus.OK, b"x" * 20_000_000, "text/plain"),
}


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def parsed(data: bytes) -> Response:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Response(int(first.split()[1]), headers, body)


def served(test: Callable[[str, int], Awaitable[None]]) -> None:
    async def run() -> None:
        server = MonitoringServer(PAGES)
        address, port = await server.start("127.0.0.1", 0)
        try:
            await test(address, port)
        finally:
            server.close()

    policy_loop = uvloop.new_event_loop()
    try:
        policy_loop.run_until_complete(run())
    finally:
        policy_loop.close()


async def asked(address: str, port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    reader, writer = await asyncio.open_connection(address, port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        if pause_s:
            await asyncio.sleep(pause_s)
    data = await reader.read()
    writer.close()
    return data


async def asked_until_served(address: str, port: int, data: bytes) -> bytes:
    """The answer, once there is a connection for it."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        with contextlib.suppress(ConnectionError):
            if answer := await asked(address, port, data):
                return answer
        await asyncio.sleep(0.02)
    raise AssertionError("nobody is served any more")


def request(path: str, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


def test_pages_are_served_without_a_server_banner() -> None:
    async def test(address: str, port: int) -> None:
        response = parsed(await asked(address, port, request("/health")))
        assert response.status == 200
        assert json.loads(response.body) == {"status": "healthy"}
        assert response.headers["connection"] == "close"
        assert int(response.headers["content-length"]) == len(response.body)
        assert "server" not in response.headers
        assert parsed(await asked(address, port, request("/ready?why=1"))).status == 503
        assert parsed(await asked(address, port, request("/metrics", headers="ACCEPT: text/x\r\n"))).body == b"text/x"

    served(test)


def test_a_head_is_the_same_without_its_body() -> None:
    async def test(address: str, port: int) -> None:
        whole = parsed(await asked(address, port, request("/health")))
        head = parsed(await asked(address, port, request("/health", "HEAD")))
        assert head == whole._replace(body=b"")

    served(test)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("/health", "POST"), 405),
        (request("/health", "DELETE"), 405),
        (request("/"), 404),
        (request("/metricsx"), 404),
        (request("/%2e%2e/etc/passwd"), 404),
        (request("http://[bad/"), 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"no http\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (request("/health", headers="Content-Length: x\r\n"), 400),
        (request("/health", headers="X: " + "y" * 9000 + "\r\n")[:-2], 431),
        (b"GET /" + b"a" * 9000, 431),
        (request("/broken"), 500),
        (request("/health", headers="Connection: Upgrade\r\nUpgrade: websocket\r\n"), 200),
        (request("/health", headers="Content-Length: 5\r\n") + b"hello", 200),
        (request("/health") + request("/health"), 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
    ],
)
def test_what_is_wrong_is_said(sent: bytes, status: int) -> None:
    async def test(address: str, port: int) -> None:
        data = await asked(address, port, sent)
        response = parsed(data)
        assert response.status == status
        assert data.count(b"HTTP/1.1 ") == 1, "one request a connection"
        if status >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert json.loads(response.body)["status"] == status
        assert ("allow" in response.headers) == (status == 405)

    served(test)


def test_a_request_byte_by_byte_is_the_same_request() -> None:
    async def test(address: str, port: int) -> None:
        sent = request("/metrics", headers="Accept: a/b\r\n")
        pieces = [sent[index : index + 1] for index in range(len(sent))]
        assert parsed(await asked(address, port, *pieces, pause_s=0.001)).body == b"a/b"

    served(test)


def test_a_client_that_shuts_down_its_side_gets_its_answer() -> None:
    async def test(address: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(request("/large"))
        writer.write_eof()
        assert len(parsed(await reader.read()).body) == 20_000_000
        writer.close()

    served(test)


def test_an_answer_survives_input_that_is_still_arriving() -> None:
    async def test(address: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(request("/health", "POST", "Content-Length: 500000\r\n"))
        writer.write(b"x" * 500_000)
        assert parsed(await reader.read()).status == 405
        writer.close()

    served(test)


def test_idle_and_slow_clients_are_cut_and_block_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 1.0)

    async def test(address: str, port: int) -> None:
        idle = await asyncio.open_connection(address, port)
        slow = await asyncio.open_connection(address, port)
        slow[1].write(b"GET /hea")
        with socket.create_connection((address, port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(request("/large"))
            assert parsed(await asked(address, port, request("/health"))).status == 200
            started_s = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(idle[0].read(), 20) == b""
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(slow[0].read(), 20) == b""
            assert time.monotonic() - started_s < 20
        idle[1].close()
        slow[1].close()

    served(test)


def test_more_connections_than_allowed_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 4)

    async def test(address: str, port: int) -> None:
        held = [await asyncio.open_connection(address, port) for _ in range(4)]
        with pytest.raises((ConnectionError, AssertionError)):
            assert await asked(address, port, request("/health")), "cut"
        for _, writer in held:
            writer.close()
        assert parsed(await asked_until_served(address, port, request("/health"))).status == 200

    served(test)


def test_closing_ends_every_connection() -> None:
    async def test() -> None:
        server = MonitoringServer(PAGES)
        address, port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(address, port)
        await asyncio.sleep(0.05)
        server.close()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection(address, port)

    asyncio.run(test())


def test_a_port_in_use_is_said() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(StartError, match=f"127.0.0.1:{port}: in use"):
                await MonitoringServer(PAGES).start("127.0.0.1", port)

    asyncio.run(test())
