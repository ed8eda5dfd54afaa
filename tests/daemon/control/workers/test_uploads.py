"""Uploads through the real planes, on both kernels: an adopted socket's body comes back from the echo backend."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from daemon.plane import state as st
from tests.daemon.control.upload_planes import HEAD, Planes, everything, send_all

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["io_uring", "epoll"])
def shared(request: pytest.FixtureRequest) -> Iterator[Planes]:
    made = Planes(request.param)
    yield made
    made.close()


@pytest.fixture
def planes(shared: Planes) -> Planes:
    deadline_s = time.monotonic() + 60
    while shared.admission.active_count > 0:
        assert time.monotonic() < deadline_s, "a stream of the test before has not ended"
        time.sleep(0.005)
    shared.reasons.clear()
    return shared


def unchunked(data: bytes) -> bytes:
    """A chunked body without its framing; it must have a true end."""
    body = b""
    while True:
        size_line, _, data = data.partition(b"\r\n")
        size = int(size_line, 16)
        if size == 0:
            assert data == b"\r\n"
            return body
        body += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1_000_000])
def test_a_body_of_a_known_length(planes: Planes, size: int) -> None:
    body = os.urandom(size)
    with planes.upload(size) as client:
        sender = send_all(client, body)
        answer = everything(client)
        sender.join()
    assert answer.startswith(HEAD)
    assert unchunked(answer.removeprefix(HEAD)) == body
    assert planes.ended(1) == [st.COMPLETE]


def test_an_empty_body_is_complete(planes: Planes) -> None:
    with planes.upload(0) as client:
        answer = everything(client)
    assert unchunked(answer.removeprefix(HEAD)) == b""
    assert planes.ended(1) == [st.COMPLETE]


def test_a_chunked_body_in_any_pieces(planes: Planes) -> None:
    body = os.urandom(50_000)
    sizes = [1, 15, 16, 17, 4096, 10_000, 1, 30_000]
    framed, start = b"", 0
    for size in [*sizes, len(body) - sum(sizes)]:
        framed += b"%x;note=x\r\n" % size + body[start : start + size] + b"\r\n"
        start += size
    framed += b"0\r\nTrailer: x\r\n\r\n"
    with planes.upload(None) as client:
        for start in range(0, 2000, 7):
            client.sendall(framed[start : min(start + 7, 2000)])
        sender = send_all(client, framed[2000:])
        answer = everything(client)
        sender.join()
    assert unchunked(answer.removeprefix(HEAD)) == body


def test_what_was_already_read_comes_first(planes: Planes) -> None:
    with planes.upload(10, b"abc") as client:
        client.sendall(b"defghij")
        assert unchunked(everything(client).removeprefix(HEAD)) == b"abcdefghij"


def test_a_client_that_asks_first_is_told_to_go_on(planes: Planes) -> None:
    with planes.upload(3, expects_100=True) as client:
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert unchunked(everything(client).removeprefix(HEAD)) == b"abc"


def test_an_upload_that_breaks_off_is_no_complete_answer(planes: Planes) -> None:
    with planes.upload(10) as client:
        client.sendall(b"abc")
        client.shutdown(socket.SHUT_WR)
        answer = everything(client)
    assert not answer.endswith(b"0\r\n\r\n")
    assert planes.ended(1) == [st.BODY_TRUNCATED]


def test_wrong_framing_is_a_400(planes: Planes) -> None:
    with planes.upload(None) as client:
        client.sendall(b"no number\r\n")
        assert everything(client).startswith(b"HTTP/1.1 400 ")
    assert planes.ended(1) == [st.BODY_TRUNCATED]


def test_a_client_that_vanishes_frees_its_worker(planes: Planes) -> None:
    for _ in range(4):
        planes.upload(1000).close()
    planes.ended(4)
    test_what_was_already_read_comes_first(planes)


def test_a_slow_reader_stops_its_own_upload(planes: Planes) -> None:
    body = os.urandom(3_000_000)
    with planes.upload(len(body)) as client:
        sender = send_all(client, body)
        time.sleep(0.3)
        assert sender.is_alive()  # 3 MB are in no buffer of ours
        assert unchunked(everything(client).removeprefix(HEAD)) == body
        sender.join()


def test_features_flow_while_their_audio_is_still_arriving(planes: Planes) -> None:
    with planes.upload(32_000, chunked=False, backend="mel") as client:
        client.sendall(bytes(16_000))
        got = b""
        while b'"first":0' not in got or not got.endswith(b"\n\n"):
            got += client.recv(65_536)
        client.sendall(bytes(16_000))
        got += everything(client)
    assert got.startswith(HEAD)
    assert got.endswith(b"\n\ndata: [DONE]\n\n")


def test_audio_that_breaks_off_has_no_true_end(planes: Planes) -> None:
    with planes.upload(32_000, chunked=False, backend="mel") as client:
        client.sendall(bytes(16_000))
        assert client.recv(10)
        client.shutdown(socket.SHUT_WR)
        assert b"[DONE]" not in everything(client)
