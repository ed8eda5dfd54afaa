"""Clients that do not read what the HTTP front has for them: they are cut off, and those that read slowly are not."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.http_helpers import COMPLETIONS, Front, asking, http_config, post, relayed, serving, tls
from tests.upstream import Upstream
from tests.upstream.events import openai_stream
from tests.upstream.plan import Fault, Plan

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

CONNECTIONS = "streaming_daemon_http_connections"
WRITE_TIMEOUT_S = 4.0
CONFIGURATION = f"[timeouts]\nwrite_timeout_ms = {WRITE_TIMEOUT_S * 1000:.0f}\n[backend.mel]\nenabled = true"
WHOLE = asking(stream=False, prompt="x " * 1_500_000, echo=True, n=6, max_tokens=1)  # 18 MB, more than the kernel keeps
TEXT, BINARY, PING = 1, 2, 9


@pytest.fixture(scope="module", params=["plain", "tls"])
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    own = {"idle_timeout_ms": 100, **(tls() if request.param == "tls" else {})}
    with serving("epoll", tmp_path_factory.mktemp("unread"), http_config(own, CONFIGURATION)) as serving_front:
        yield serving_front


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_who_reads_slowly_gets_a_whole_answer_to_its_end(front: Front, connection: str) -> None:
    with front.connect(receive_buffer_bytes=4096) as wire:
        wire.send(post(COMPLETIONS, WHOLE, {"Connection": connection}))
        head = wire.socket.recv(65_536)
        length = re.search(rb"content-length: (\d+)\r\n", head)
        assert length, head
        begin_s = time.monotonic()
        got = len(head.partition(b"\r\n\r\n")[2])
        while got < int(length[1]):
            if time.monotonic() - begin_s < 2 * WRITE_TIMEOUT_S:
                time.sleep(0.05)
            piece = wire.socket.recv(65_536)
            assert piece, f"{got} of {int(length[1])} bytes"
            got += len(piece)


def test_who_does_not_read_an_answer_is_cut_off(front: Front) -> None:
    request = post(COMPLETIONS, WHOLE)
    with front.leaves_nothing(), front.connect(receive_buffer_bytes=4096) as wire:
        wire.send(request)
        wire.socket.settimeout(1)
        with contextlib.suppress(TimeoutError):  # the second request is not read to its end before its turn
            wire.send(request)
        front.daemon.wait_for_metric(CONNECTIONS, 1)
        front.daemon.wait_for_metric(CONNECTIONS, 0, 4 * WRITE_TIMEOUT_S)


def test_who_does_not_read_a_stream_that_is_forwarded_is_cut_off(front: Front) -> None:
    if not front.url.startswith("https"):
        pytest.skip("its socket is taken")
    with front.leaves_nothing(), front.connect(receive_buffer_bytes=4096) as wire:
        wire.send(post(COMPLETIONS, asking(max_tokens=1_000_000)))
        front.daemon.wait_for_metric(CONNECTIONS, 1)
        front.daemon.wait_for_metric(CONNECTIONS, 0, 6 * WRITE_TIMEOUT_S)


def frame(kind: int, data: bytes = b"") -> bytes:
    """One of a client's, masked with nothing."""
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xff" + len(data).to_bytes(8, "big")
    return bytes([0x80 | kind]) + length + bytes(4) + data


@contextlib.contextmanager
def listening(front: Front) -> Generator[socket.socket]:
    """A WebSocket that gets features of what it sends."""
    with front.connect(receive_buffer_bytes=4096) as wire:
        key = base64.b64encode(os.urandom(16)).decode()
        wire.send(
            "GET /audio/ws HTTP/1.1\r\nHost: daemon\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert wire.socket.recv(4096).startswith(b"HTTP/1.1 101 ")
        wire.send(frame(TEXT, b'{"format":"s16le","sample_rate":16000,"bins":128}'))
        yield wire.socket


@pytest.mark.parametrize("sent", [frame(PING, bytes(125)) * 500, frame(BINARY, bytes(1 << 18))], ids=["pings", "sound"])
def test_a_websocket_whose_client_does_not_read_is_cut_off(front: Front, sent: bytes) -> None:
    with front.leaves_nothing(), listening(front) as client:
        deadline_s = time.monotonic() + 60
        client.settimeout(1)
        while front.daemon.metric(CONNECTIONS) > 0:
            assert time.monotonic() < deadline_s
            with contextlib.suppress(OSError):
                client.sendall(sent)


def test_a_message_that_crosses_with_the_end_is_no_failure_of_the_daemon(front: Front) -> None:
    for number in range(120):
        with listening(front) as client:
            client.settimeout(1)
            client.sendall(frame(BINARY, bytes(100)) + frame(TEXT, b'{"type":"end"}'))
            time.sleep(number % 40 * 0.0002)
            with contextlib.suppress(OSError):
                client.sendall(frame(TEXT, b"too late"))
                got = b""
                while b"\x88" not in got[-200:] and (piece := client.recv(65_536)):
                    got += piece
    front.is_well()
    assert "Traceback" not in front.daemon.log, front.daemon.log[-4000:]


BIG = "w" * 900_000


@pytest.fixture(scope="module")
def relaying_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Upstream() as upstream:
        upstream.answer("cut", Plan(openai_stream([BIG] * 8, finish=None, done=False), fault=Fault.CUT))
        configuration = http_config(tls(), relayed(upstream, {"cut": "only"}), backend="openai")
        with serving("epoll", tmp_path_factory.mktemp("relaying"), configuration) as front:
            yield front


CUT = {"model": "cut", "prompt": "", "stream": True}


def test_who_reads_slowly_is_told_over_tls_that_a_stream_was_cut(relaying_front: Front) -> None:
    with relaying_front.connect(receive_buffer_bytes=4096) as wire:
        wire.send(post(COMPLETIONS, CUT))
        time.sleep(2)  # for the stream's end to wait behind what is not read
        reply = wire.reply()
    assert reply.body.count(BIG.encode()) == 8
    assert b"event: error\n" in reply.body[-300:]
    assert not reply.is_whole


def test_what_is_cut_over_tls_does_not_look_complete_to_http_10(relaying_front: Front) -> None:
    with relaying_front.connect() as wire:
        assert isinstance(wire.socket, ssl.SSLSocket)
        vars(wire.socket)["suppress_ragged_eofs"] = False  # or an end without TLS's own would pass for one with it
        wire.send(post(COMPLETIONS, CUT, version="1.0"))
        reply = wire.reply()
    assert reply.framing == "close"
    assert wire.was_reset, "TLS has ended, too"
    assert b"[DONE]" not in reply.body


def test_http_10_over_tls_gets_a_stream_without_chunks(relaying_front: Front) -> None:
    with relaying_front.connect() as wire:
        wire.send(post(COMPLETIONS, asking(max_tokens=3), version="1.0"))
        reply = wire.reply()
    assert (reply.framing, reply.is_closing) == ("close", True)
    assert reply.body.startswith(b"data: {")
    assert reply.body.endswith(b"data: [DONE]\n\n")
