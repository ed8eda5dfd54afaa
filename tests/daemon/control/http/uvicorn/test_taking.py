"""Taking sockets out of uvicorn, on both event loops: no byte is lost, and no response is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.control.http.uvicorn.taking import HELD_BYTES_MAX, REFUSED_MAX, Bounds
from tests.daemon.control.http.uvicorn.taking_server import TAKEN_HEAD, Server, ask, head_end, post, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(request.param, Bounds(head_bytes_max=8192, head_timeout_s=3.0, connections_max=50))
    yield made
    made.close()


def test_a_request_without_a_body_is_taken(server: Server) -> None:
    assert ask(server, [b"GET /take HTTP/1.1\r\nHost: a\r\n\r\n"]) == TAKEN_HEAD
    server.wait_no_connections()


@pytest.mark.parametrize("size", [0, 1, 10, HELD_BYTES_MAX - 1, HELD_BYTES_MAX, HELD_BYTES_MAX + 1, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_every_byte_of_an_unread_body_is_there(server: Server, size: int, chunked: bool) -> None:
    request = post("/take", random.Random(size).randbytes(size), chunked=chunked)
    assert ask(server, [request]) == TAKEN_HEAD + request[head_end(request) :]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_was_read_is_whole(server: Server, chunked: bool) -> None:
    body = random.Random(1).randbytes(300_000)
    assert ask(server, [post("/body-then-take", body, chunked=chunked)]) == TAKEN_HEAD + body


@pytest.mark.parametrize("path", ["/take", "/body-then-take", "/echo"])
def test_a_request_cut_at_every_byte(server: Server, path: str) -> None:
    request = post(path, b"0123456789", more="Connection: close\r\n")
    whole = ask(server, [request])
    for cut in range(1, len(request)):
        assert ask(server, [request[:cut], request[cut:]], 0.002) == whole


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.lists(st.sampled_from(["/echo", "/ignore"]), max_size=4),
    last=st.sampled_from(["/take", "/body-then-take"]),
    sizes=st.lists(st.integers(0, 9000), min_size=5, max_size=5),
    chunked=st.lists(st.booleans(), min_size=5, max_size=5),
    cuts=st.lists(st.integers(1, 30_000), max_size=6),
)
def test_whatever_comes_before_no_byte_is_lost_and_no_response_sent_twice(
    server: Server, paths: list[str], last: str, sizes: list[int], chunked: list[bool], cuts: list[int]
) -> None:
    requests = [
        post(path, bytes([65 + number]) * sizes[number], chunked=chunked[number])
        for number, path in enumerate([*paths, last])
    ]
    data = b"".join(requests)
    edges = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    got = ask(server, [data[a:b] for a, b in itertools.pairwise(edges)], 0.001)
    position = 0
    for number, path in enumerate(paths):
        start = got.index(b"\r\n\r\n", position) + 4
        head = got[position:start]
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(got[start : start + length])
        assert answer["path"] == path
        assert answer["body"] == (chr(65 + number) * sizes[number] if path == "/echo" else "")
        position = start + length
        if b"connection: close" in head:
            # A body that nobody wanted was not all there, or the next request came in one piece with a chunked one.
            assert path == "/ignore" or chunked[number]
            assert position == len(got)
            return
    body = requests[-1][head_end(requests[-1]) :] if last == "/take" else b"%c" % (65 + len(paths)) * sizes[len(paths)]
    assert got[position:] == TAKEN_HEAD + body


def test_connections_are_kept_and_taken_at_last(server: Server) -> None:
    with server.connect() as client:
        for number in range(5):
            client.sendall(post("/echo", b"%d" % number))
            got = b""
            while not got.endswith(b"}"):
                got += client.recv(4096)
            assert b'"body": "%d"' % number in got
        client.sendall(b"GET /take HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_all(client) == TAKEN_HEAD


def test_what_is_pipelined_behind_a_taken_request_is_not_answered(server: Server) -> None:
    request = b"GET /take HTTP/1.1\r\nHost: a\r\n\r\n"
    assert ask(server, [request + b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"]) == TAKEN_HEAD


def test_http_1_0_is_taken_too(server: Server) -> None:
    assert ask(server, [b"GET /take HTTP/1.0\r\n\r\n"]) == TAKEN_HEAD


def test_expect_100_continue(server: Server) -> None:
    request = post("/take", b"abc", more="Expect: 100-continue\r\n")
    with server.connect() as client:
        client.sendall(request[:-3])
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert read_all(client) == TAKEN_HEAD + b"abc"
    request = post("/echo", b"abc", more="Expect: 100-continue\r\nConnection: close\r\n")
    with server.connect() as client:
        client.sendall(request[:-3])
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert read_all(client).endswith(b'"body": "abc"}')


def test_a_large_body_that_nobody_wants_does_not_destroy_the_answer(server: Server) -> None:
    got = ask(server, [post("/ignore", bytes(700_000))])
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert got.endswith(b'{"path": "/ignore", "body": ""}')


def test_no_http(server: Server) -> None:
    got = ask(server, [b"\x16\x03\x01 what is this\r\n\r\n"])
    assert got.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_head_that_is_too_large(server: Server) -> None:
    got = ask(server, [b"GET / HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n"])
    assert got.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


def test_a_head_that_comes_too_slowly(server: Server) -> None:
    began_s = time.monotonic()
    with server.connect() as client:
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\nA: ":
            with contextlib.suppress(OSError):  # it may have been answered already
                client.sendall(bytes([byte]))
            time.sleep(0.01)
        got = read_all(client)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert 0.8 < time.monotonic() - began_s < 20


def test_silence_is_cut(server: Server) -> None:
    with server.connect() as client:
        assert read_all(client) == b""
    server.wait_no_connections()


def test_too_many_connections(server: Server) -> None:
    server.wait_no_connections()
    clients = [server.connect() for _ in range(52)]
    last = clients[-1]
    assert last.recv(4096).startswith(b"HTTP/1.1 503 ")
    for client in clients:
        client.close()
    server.wait_no_connections()


def test_far_too_many_connections_are_closed_without_a_word(server: Server) -> None:
    server.wait_no_connections()
    clients = [server.connect() for _ in range(50 + REFUSED_MAX)]
    assert clients[-1].recv(4096).startswith(b"HTTP/1.1 503 ")
    clients += [server.connect() for _ in range(3)]
    with contextlib.suppress(ConnectionResetError):
        assert clients[-1].recv(4096) == b""
    for client in clients:
        client.close()
    server.wait_no_connections()


def test_an_aborted_connection_has_no_response(server: Server) -> None:
    assert ask(server, [b"GET /abort HTTP/1.1\r\nHost: a\r\n\r\n"]) == b""


def test_clients_that_leave_at_every_moment_leave_nothing(server: Server) -> None:
    server.wait_no_connections()
    before = len(os.listdir("/proc/self/fd"))
    request = post("/body-then-take", b"x" * 100) + post("/take", b"y" * 100)
    for length in range(0, len(request), 7):
        with server.connect() as client:
            client.sendall(request[:length])
            if length % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.wait_no_connections()
    deadline_s = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
