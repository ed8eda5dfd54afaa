"""uvicorn's parts around TakingProtocol, for tests: an application that takes sockets, and what clients send it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from daemon.control.http.uvicorn.taking import ABORT, EXTENSION, Bounds, ClientGone, Taken, TakingProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

TAKEN_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


WAIT_S = 3.0


async def application(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Paths say what is done: /take, /body-then-take, /echo, /ignore, /wait, /abort."""
    assert scope["type"] == "http"
    path, extensions = scope["path"], scope["extensions"]
    body = b""
    if path in {"/echo", "/body-then-take"}:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
    if path == "/wait":
        await asyncio.sleep(WAIT_S)
    if path == "/abort":
        extensions[ABORT]["abort"]()
        return
    if path in {"/take", "/body-then-take"}:
        with contextlib.suppress(ClientGone):
            taken = await extensions[EXTENSION]["take"]()
            threading.Thread(target=stream, args=(taken, body, path == "/take", scope)).start()
        return
    answer = json.dumps({"path": path, "body": body.decode("latin-1")}).encode()
    length = (b"content-length", b"%d" % len(answer))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": answer})


def stream(taken: Taken, body: bytes, reads_body: bool, scope: dict[str, Any]) -> None:
    """What a daemon does with a socket: answer with everything that was sent on it. Clients may leave meanwhile."""
    with socket.socket(fileno=taken.fd) as client, contextlib.suppress(OSError):
        client.setblocking(True)
        client.settimeout(30)
        if taken.expects_100:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        headers = dict(scope["headers"])
        got = taken.unread
        wanted = int(headers.get(b"content-length", b"0"))
        chunked = b"transfer-encoding" in headers
        while reads_body and (not got.endswith(b"0\r\n\r\n") if chunked else len(got) < wanted):
            piece = client.recv(65_536)
            if not piece:
                break
            got += piece
        client.sendall(TAKEN_HEAD + (got if reads_body else body))
        client.shutdown(socket.SHUT_WR)
        while client.recv(65_536):
            pass


class Server:
    """uvicorn's parts around TakingProtocol, in a thread of its own."""

    def __init__(
        self,
        new_loop: Callable[[], asyncio.AbstractEventLoop],
        bounds: Bounds,
        protocol: Callable[..., TakingProtocol] = TakingProtocol,
    ) -> None:
        self.loop = new_loop()
        self.protocol = protocol
        self.state = ServerState()
        self.config = uvicorn.Config(application, http="httptools", lifespan="off", log_config=None, access_log=False)
        self.config.timeout_keep_alive = 1
        self.config.load()
        self.bounds = bounds
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        started = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(started,))
        self.thread.start()
        assert started.wait(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(self.loop.create_server(self._protocol, "127.0.0.1", 0))
        self.address = server.sockets[0].getsockname()
        self.loop.call_soon(started.set)
        self.loop.run_forever()
        server.close()
        for connection in list(self.state.connections):
            connection.transport.abort()
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()

    def _protocol(self) -> TakingProtocol:
        return self.protocol(config=self.config, server_state=self.state, app_state={}, bounds=self.bounds)

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.address)
        client.settimeout(30)
        return client

    @contextlib.contextmanager
    def busy(self) -> Generator[None]:
        """The event loop does nothing else meanwhile."""
        begun, ended = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            ended.wait(30)

        self.loop.call_soon_threadsafe(wait)
        assert begun.wait(30)
        try:
            yield
        finally:
            ended.set()

    def wait_no_connections(self) -> None:
        # Connections are seen in the order in which they came: with this one all that have left before.
        ask(self, [b"GET /ignore HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"])
        deadline_s = time.monotonic() + 30
        while self.state.connections or self.state.tasks:
            assert time.monotonic() < deadline_s, self.state.connections
            time.sleep(0.005)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        assert not self.errors


def read_all(client: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65_536):
            got += piece
    return got


def ask(server: Server, pieces: list[bytes], pause_s: float = 0.0) -> bytes:
    with server.connect() as client:
        for piece in pieces:
            with contextlib.suppress(OSError):  # the server may have answered and closed already
                client.sendall(piece)
            if pause_s:
                time.sleep(pause_s)
        return read_all(client)


def post(path: str, body: bytes, *, chunked: bool = False, more: str = "") -> bytes:
    if chunked:
        cut = len(body) // 2
        framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
        return (
            f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{more}\r\n".encode()
            + framed
            + b"0\r\n\r\n"
        )
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def head_end(request: bytes) -> int:
    return request.index(b"\r\n\r\n") + 4
