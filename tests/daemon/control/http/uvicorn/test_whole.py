"""Requests that come whole: a shortcut gets each once, and what it does not take the application gets unaltered."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from daemon.control.http.uvicorn import whole
from daemon.control.http.uvicorn.taking import HELD_BYTES_MAX, Bounds, Taken
from daemon.control.http.uvicorn.whole import WholeRequestProtocol, WholeTakingProtocol
from tests.daemon.control.http.uvicorn.taking_server import TAKEN_HEAD, Server, ask, head_end, post, read_all, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What the application does at these paths is `application`'s; the shortcut takes all but bodies that begin with "no".
OFFERED = ("/echo", "/take", "/body-then-take", "/wait")
TAKEN = b"by the shortcut: "


class Shortcut:
    """Streams what it is asked about, as an application that takes sockets does."""

    paths = frozenset(path.encode() for path in OFFERED)

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.meanwhile: Callable[[], object] = list  # what clients do while it is asked

    def take(self, scope: dict[str, Any], body: bytes, let_go: Callable[[], int]) -> bool:
        assert scope["method"] == "POST"
        assert scope["client"][0] == "127.0.0.1"
        assert (b"host", b"a") in scope["headers"]
        self.asked.append((scope["path"], body))
        self.meanwhile()
        if body.startswith(b"no"):
            return False
        taken = Taken(let_go(), b"", expects_100=False, client_address="")
        threading.Thread(target=stream, args=(taken, TAKEN + body, False, scope)).start()
        return True


@pytest.fixture(scope="module", params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Shortcut]]:
    shortcut = Shortcut()
    protocol = functools.partial(WholeTakingProtocol, shortcut=shortcut)
    made = Server(request.param, Bounds(head_bytes_max=8192, head_timeout_s=30.0, connections_max=50), protocol)
    yield made, shortcut
    made.close()


@pytest.fixture(name="server")
def _server(running: tuple[Server, Shortcut]) -> Server:
    running[1].asked.clear()
    return running[0]


@pytest.fixture(name="shortcut")
def _shortcut(running: tuple[Server, Shortcut]) -> Shortcut:
    return running[1]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body is waited for, however slow the machine is."""
    monkeypatch.setattr(whole, "BODY_WAIT_S", 60.0)


def test_a_request_that_comes_whole_is_the_shortcuts(server: Server, shortcut: Shortcut) -> None:
    assert ask(server, [post("/echo", b"0123456789")]) == TAKEN_HEAD + TAKEN + b"0123456789"
    assert shortcut.asked == [("/echo", b"0123456789")]
    server.wait_no_connections()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("body", [b"0123456789", b"no, thanks"])
def test_a_request_cut_at_every_byte_is_as_whole(server: Server, shortcut: Shortcut, body: bytes) -> None:
    request = post("/echo", body, more="Connection: close\r\n")
    expected = ask(server, [request])
    for cut in range(1, len(request)):
        assert ask(server, [request[:cut], request[cut:]], 0.002) == expected
    assert set(shortcut.asked) == {("/echo", body)}
    server.wait_no_connections()


def test_a_body_that_is_late_is_the_applications(server: Server, shortcut: Shortcut) -> None:
    server.wait_no_connections()
    request = post("/body-then-take", b"0123456789")
    end = head_end(request)
    with server.connect() as client:
        client.sendall(request[: end + 3])
        deadline_s = time.monotonic() + 30
        while not server.state.tasks:  # the application has been started
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        client.sendall(request[end + 3 :])
        assert read_all(client) == TAKEN_HEAD + b"0123456789"
    assert not shortcut.asked


@pytest.mark.parametrize(
    "request_bytes",
    [
        post("/echo", b""),
        post("/echo", b"0123456789", chunked=True),
        post("/echo", b"x" * (HELD_BYTES_MAX + 1)),
        post("/echo", b"0123456789", more="Expect: 100-continue\r\n"),
        post("/echo", b"0123456789", more="Upgrade: other\r\nConnection: upgrade\r\n"),
        post("/echo", b"0123456789").replace(b"HTTP/1.1", b"HTTP/1.0"),
        post("/echo", b"0123456789").replace(b"POST", b"PUT"),
        post("/echo?a=b", b"0123456789"),
        post("/ignore", b"0123456789"),
        b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["empty", "chunked", "long", "expect", "upgrade", "1.0", "PUT", "query", "path", "GET"],
)
def test_whatever_is_out_of_the_ordinary_is_the_applications(
    server: Server, shortcut: Shortcut, request_bytes: bytes
) -> None:
    with server.connect() as client:
        client.sendall(request_bytes)
        answer = b""
        while b'"path"' not in answer:
            piece = client.recv(65_536)
            assert piece, answer
            answer += piece
    assert not shortcut.asked


def test_what_the_shortcut_leaves_goes_on_with_its_connection(server: Server, shortcut: Shortcut) -> None:
    refused, last = post("/echo", b"no, thanks"), post("/echo", b"yes")
    got = ask(server, [refused, refused, last], 0.05)
    assert got.count(b'{"path": "/echo", "body": "no, thanks"}') == 2
    assert got.endswith(TAKEN_HEAD + TAKEN + b"yes")
    # All at once: the shortcut is asked about each in its turn, and what is pipelined behind a stream is not answered.
    assert ask(server, [refused + last + refused]).endswith(TAKEN_HEAD + TAKEN + b"yes")
    assert [body for _, body in shortcut.asked] == [b"no, thanks", b"no, thanks", b"yes", b"no, thanks", b"yes"]


def test_clients_that_leave_before_their_body_leave_nothing(server: Server, shortcut: Shortcut) -> None:
    for _ in range(20):
        with server.connect() as client:
            client.sendall(post("/echo", b"0123456789")[:-5])
    server.wait_no_connections()
    assert not shortcut.asked


@pytest.mark.usefixtures("patient")
def test_a_request_whose_body_is_awaited_is_answered_where_the_server_ends(server: Server, shortcut: Shortcut) -> None:
    server.wait_no_connections()
    request = post("/echo", b"0123456789")
    with server.connect() as client:
        client.sendall(request[:-5])
        deadline_s = time.monotonic() + 30
        while not any(getattr(one, "_awaited_bytes", None) for one in list(server.state.connections)):
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        server.loop.call_soon_threadsafe(lambda: [one.shutdown() for one in list(server.state.connections)])
        while any(getattr(one, "_awaited_bytes", None) for one in list(server.state.connections)):
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        client.sendall(request[-5:])
        assert b'"body": "0123456789"' in read_all(client)
    assert not shortcut.asked


def test_a_request_that_has_come_is_read_before_others_are_seen(server: Server, shortcut: Shortcut) -> None:
    server.wait_no_connections()
    seen: list[int] = []
    shortcut.meanwhile = lambda: seen.append(len(server.state.connections))
    try:
        with server.busy():
            clients = [server.connect() for _ in range(5)]
            for client in clients:
                client.sendall(post("/echo", b"0123456789"))
        for client in clients:
            assert read_all(client) == TAKEN_HEAD + TAKEN + b"0123456789"
            client.close()
    finally:
        shortcut.meanwhile = list
    assert len(seen) == 5
    assert seen[0] == 1, "its own connection"
    server.wait_no_connections()


@pytest.mark.parametrize("path", ["/wait", "/echo"])
def test_what_came_before_the_connection_was_seen_is_bounded_like_all_else(server: Server, path: str) -> None:
    """The event loop is busy while the client sends, so that it finds a head and much behind it."""
    request = post(path, b"x" * 20_000_000)
    with server.connect() as client:
        client.setblocking(False)
        with server.busy():
            sent = client.send(request)
        client.settimeout(30)
        if path == "/echo":  # it is read, and comes back
            client.sendall(request[sent:])
            assert answer_of(client).endswith(b'xx"}')
            return
        client.settimeout(1.0)
        with pytest.raises(TimeoutError):  # nobody reads it
            client.sendall(request[sent:])
        assert 0 < held_bytes(server) <= HELD_BYTES_MAX
    server.wait_no_connections()


def test_what_comes_while_a_whole_request_is_passed_on_is_bounded(server: Server, shortcut: Shortcut) -> None:
    server.wait_no_connections()
    asked = threading.Event()

    def flood() -> None:
        client.setblocking(False)
        client.send(b"x" * 1_000_000)
        client.settimeout(30)
        asked.set()

    with server.connect() as client:
        shortcut.meanwhile = flood
        try:
            with server.busy():
                client.sendall(post("/wait", b"no, thanks"))
            assert asked.wait(30)
        finally:
            shortcut.meanwhile = list
        for _ in range(20):
            time.sleep(0.02)
            assert 0 < held_bytes(server) <= HELD_BYTES_MAX
    server.wait_no_connections()


def held_bytes(server: Server) -> int:
    """Of the one connection."""
    (connection,) = list(server.state.connections)
    assert isinstance(connection, WholeRequestProtocol)
    return len(connection.held)


def answer_of(client: socket.socket) -> bytes:
    """What comes, to the end of what says that it is one."""
    got = b""
    while not got.endswith(b'"}'):
        piece = client.recv(1 << 20)
        assert piece, got[-100:]
        got += piece
    return got


def test_a_client_that_has_left_before_it_was_seen_leaves_nothing(server: Server) -> None:
    with server.busy():
        for number in range(20):
            with server.connect() as client:
                if number % 2:
                    client.sendall(post("/ignore", b"0123456789")[: 10 * number])
                if number % 3 == 0:  # with a reset
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.wait_no_connections()
