"""Our own upstream, by hand: what it answers, at what pace, and what it knows of clients that leave."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from scripts.bench import upstreams
from scripts.bench.tables import render
from scripts.bench.upstreams import Upstream, answer_of, token_text
from tests.scripts.bench.chunks import without_chunks

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

NUMBER = 12_345_678
BODY = b'{"messages":[{"role":"user","content":"benchmark stream 12345678, max 4096"}],"user":"87654321"}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 1234567890\r\nCONTENT-Length: %d\r\naccept: */*\r\n\r\n"
REQUEST = HEAD % len(BODY) + BODY
WAIT_SECONDS_MAX = 5.0


@contextlib.contextmanager
def connected(upstream: Upstream, *, unix: bool = False) -> Generator[socket.socket]:
    family = socket.AF_UNIX if unix else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(WAIT_SECONDS_MAX)
        client.connect(upstream.path if unix else ("127.0.0.1", upstream.port))
        yield client


def read_answer(client: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        piece = client.recv(65_536)
        assert piece, f"closed after {received!r}"
        received += piece
    return received


def wait_until_closed(upstream: Upstream, number: int) -> int:
    deadline_s = time.monotonic() + WAIT_SECONDS_MAX
    while not (closed_ns := upstream.story(number).closed_ns):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    return closed_ns


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_the_answer_is_the_one_that_is_announced(tmp_path: Path, *, unix: bool) -> None:
    with upstreams.running(tmp_path, 5, 0) as upstream, connected(upstream, unix=unix) as client:
        client.sendall(REQUEST)
        answer = read_answer(client)
        counts = upstream.counts()
    assert answer == render(answer_of(5)[0], NUMBER)
    events = without_chunks(answer.partition(b"\r\n\r\n")[2]).decode().split("\n\n")
    assert events[5:] == ["data: [DONE]", ""]
    contents = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"]["content"] for event in events[:5]]
    assert contents == [token_text(index).replace("{number}", str(NUMBER)) for index in range(5)]
    assert (counts["accepted_count"], counts["request_count"], counts["token_sent_count"]) == (1, 1, 5)
    assert counts["aborted_count"] == 0


def test_a_request_may_come_byte_by_byte_and_a_connection_is_kept(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 2, 0) as upstream, connected(upstream) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(REQUEST)):
            client.sendall(REQUEST[at : at + 1])
        first = read_answer(client)
        client.sendall(REQUEST.replace(b"12345678", b"20000000"))
        second = read_answer(client)
        assert upstream.counts()["accepted_count"] == 1
    assert first == render(answer_of(2)[0], NUMBER)
    assert second == render(answer_of(2)[0], 20_000_000)


def test_tokens_leave_at_their_pace_and_the_first_at_once(tmp_path: Path) -> None:
    interval_s = 0.1
    with upstreams.running(tmp_path, 4, interval_s * 1000) as upstream, connected(upstream) as client:
        client.sendall(REQUEST)
        started_s = time.monotonic()
        arrived_s = [0.0] * 4
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += client.recv(65_536)
            for index in range(4):
                if b"-%d " % index in received and not arrived_s[index]:
                    arrived_s[index] = time.monotonic() - started_s
        story = upstream.story(NUMBER)
    assert all(arrived_s[index] > index * interval_s - 0.01 for index in range(4)), arrived_s
    assert arrived_s[0] < interval_s
    assert 0 < story.request_ns <= story.first_token_ns < story.request_ns + interval_s * 1e9


def test_an_answer_larger_than_the_sockets_buffers_comes_whole(tmp_path: Path) -> None:
    token_count = 20_000
    with upstreams.running(tmp_path, token_count, 0) as upstream, connected(upstream) as client:
        client.sendall(REQUEST)
        time.sleep(0.2)  # both buffers are full by now
        answer = read_answer(client)
    assert answer == render(answer_of(token_count)[0], NUMBER)


def test_it_knows_when_a_client_has_left(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 1_000, 5) as upstream:
        with connected(upstream) as client:
            client.sendall(REQUEST)
            assert b"-0 " in client.recv(4096)
            left_ns = time.monotonic_ns()
        closed_ns = wait_until_closed(upstream, NUMBER)
        assert left_ns < closed_ns
        assert 1 <= upstream.story(NUMBER).token < 1_000
        assert upstream.counts()["aborted_count"] == 1
        # What was still to be sent is forgotten: a new connection, likely with the same descriptor, is not disturbed.
        with connected(upstream) as client:
            client.sendall(REQUEST.replace(b"12345678", b"20000000"))
            time.sleep(0.05)
            assert set(re.findall(rb"(\d{8})-\d+ ", client.recv(65_536))) == {b"20000000"}


def test_it_can_hold_its_answers(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 3, 1) as upstream:
        upstream.hold(is_holding=True)
        with connected(upstream) as client:
            client.sendall(REQUEST)
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
        wait_until_closed(upstream, NUMBER)
        assert upstream.story(NUMBER).token == 0
        upstream.hold(is_holding=False)
        with connected(upstream) as client:
            client.sendall(REQUEST)
            assert read_answer(client) == render(answer_of(3)[0], NUMBER)


def test_it_can_go_on_until_the_client_leaves(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 3, 2) as upstream:
        upstream.go_on(is_endless=True)
        with connected(upstream) as client:
            client.sendall(REQUEST)
            received = b""
            while received.count(b"-1 ") < 10:
                received += client.recv(65_536)
            assert received.count(b"-0 ") == 1
            assert b"-2 " not in received
        wait_until_closed(upstream, NUMBER)
        upstream.go_on(is_endless=False)
        with connected(upstream) as client:
            client.sendall(REQUEST)
            assert read_answer(client) == render(answer_of(3)[0], NUMBER)


def test_many_streams_keep_apart(tmp_path: Path) -> None:
    with upstreams.running(tmp_path, 20, 2) as upstream, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(upstream, unix=index % 2 == 0)) for index in range(50)]
        for index, client in enumerate(clients):
            client.sendall(REQUEST.replace(b"12345678", b"%d" % (30_000_000 + index)))
        for index, client in enumerate(clients):
            assert read_answer(client) == render(answer_of(20)[0], 30_000_000 + index)
