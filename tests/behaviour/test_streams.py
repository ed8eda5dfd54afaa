"""What a client gets: the exact head, every message in order, the end; and what bad handoffs get instead."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, LATE_S_MAX, Answer, Daemon, read_all, tcp_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MESSAGES = 18
LIMIT = 131_072


def assert_whole(answer: Answer) -> None:
    """A complete mock stream."""
    assert answer.head == HEAD
    assert len(answer.contents) == MESSAGES
    assert answer.contents[-1] == "[DONE-CONTENT]"
    assert answer.body.endswith(DONE)
    assert answer.body.count(b"[DONE]") == 1


@pytest.mark.parametrize("tcp", [False, True])
def test_a_stream_arrives_whole(daemon: Daemon, tcp: bool) -> None:
    answer = daemon.ask({"prompt": "Tell me", "user_id": 7}, tcp=tcp)
    assert_whole(answer)
    assert answer.contents[0].endswith("Prompt: Tell me")
    assert answer.contents[1] == "User ID: 7"
    assert answer.contents[12:17] == [f"This is message {n} of 18." for n in range(13, 18)]


def test_every_message_is_counted(daemon: Daemon) -> None:
    before = daemon.metric("streaming_daemon_messages_total")
    assert_whole(daemon.ask())
    daemon.wait_for_metric("streaming_daemon_messages_total", before + MESSAGES)


def test_messages_are_paced(daemon: Daemon) -> None:
    began = time.monotonic()
    with daemon.open() as client:
        assert_whole(read_all(client))
        assert time.monotonic() - began >= 0.080


def test_prompts_are_escaped_and_cut_on_characters(daemon: Daemon) -> None:
    answer = daemon.ask({"prompt": 'a"b\\c\n' + "é" * 60})
    assert answer.contents[0].endswith('Prompt: a"b\\c\n' + "é" * 44 + "...")


@pytest.mark.parametrize("data", [b"\0", b""])
def test_a_handoff_without_data_is_a_request_without_fields(daemon: Daemon, data: bytes) -> None:
    assert_whole(daemon.ask(data))


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"{nonsense", 400, "JSON"),
        (b"[1, 2]", 400, "object"),
        (b'"text"', 400, "object"),
        (b'{"prompt": 5}', 400, "prompt"),
        (b'{"messages": "no list"}', 400, "messages"),
        (b'{"max_tokens": "many"}', 400, "max_tokens"),
        (b'{"backend": "nowhere"}', 400, "backend"),
        (b'{"prompt": "\xff"}', 400, "UTF-8"),
    ],
)
def test_bad_data_gets_a_problem_that_names_it(daemon: Daemon, data: bytes, status: int, word: str) -> None:
    answer = daemon.ask(data)
    assert answer.status == status
    assert word.lower() in json.dumps(answer.problem).lower()


def test_the_largest_handoff_is_served_and_one_byte_more_is_refused(daemon: Daemon) -> None:
    frame = len(json.dumps({"prompt": ""}))
    assert_whole(daemon.ask(json.dumps({"prompt": "x" * (LIMIT - frame)}).encode()))
    answer = daemon.ask(json.dumps({"prompt": "x" * (LIMIT - frame + 1)}).encode())
    assert answer.status == 413
    assert str(LIMIT) in answer.problem["detail"]


def test_no_descriptor_frees_the_slot(daemon: Daemon) -> None:
    name = 'streaming_daemon_handoffs_rejected_total{reason="handoff_no_descriptor"}'
    before = daemon.metric(name)
    daemon.hand_over(b"{}", [])
    daemon.wait_for_metric(name, before + 1)
    daemon.wait_idle()


def test_of_two_descriptors_the_first_is_served_and_the_second_closed(daemon: Daemon) -> None:
    first, client = socket.socketpair()
    second, other = socket.socketpair()
    daemon.hand_over(b"{}", [first.fileno(), second.fileno()])
    first.close()
    second.close()
    with client, other:
        assert_whole(read_all(client))
        assert read_all(other).raw == b""


@pytest.mark.parametrize("kind", ["udp", "pipe", "file"])
def test_a_descriptor_that_is_no_stream_socket_is_closed(daemon: Daemon, kind: str, tmp_path: Path) -> None:
    name = 'streaming_daemon_handoffs_rejected_total{reason="descriptor_refused"}'
    before, descriptors = daemon.metric(name), daemon.descriptor_count()
    if kind == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            daemon.hand_over(b"{}", [udp.fileno()])
    elif kind == "pipe":
        read_end, write_end = os.pipe()
        daemon.hand_over(b"{}", [write_end])
        os.close(write_end)
        assert os.read(read_end, 10) == b""
        os.close(read_end)
    else:
        with (tmp_path / "file").open("wb") as file:
            daemon.hand_over(b"{}", [file.fileno()])
    daemon.wait_for_metric(name, before + 1)
    daemon.wait_idle()
    assert daemon.descriptor_count() <= descriptors + 1
    if kind == "file":
        assert (tmp_path / "file").read_bytes() == b""


def test_a_client_that_has_left_already(daemon: Daemon) -> None:
    server, client = socket.socketpair()
    client.close()
    daemon.hand_over(b"{}", [server.fileno()])
    server.close()
    daemon.wait_idle()
    assert_whole(daemon.ask())


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("tcp", [True, False])
def test_descriptors_blocking_or_not(daemon: Daemon, blocking: bool, tcp: bool) -> None:
    server, client = tcp_pair() if tcp else socket.socketpair()
    server.setblocking(blocking)
    daemon.hand_over(b"{}", [server.fileno()])
    server.close()
    with client:
        assert_whole(read_all(client))


def test_response_headers_are_added_and_injection_is_not(daemon: Daemon) -> None:
    headers = {
        "X-Request-Id": "abc",
        "X-Bad": "one\r\nSet-Cookie: stolen=1",
        "Bad Name": "x",
        "Content-Type": "text/html",
        "X-Number": 5,
    }
    answer = daemon.ask({"prompt": "x", "response_headers": headers})
    assert answer.headers["x-request-id"] == "abc"
    assert answer.head.startswith(HEAD[:-2])
    assert b"stolen" not in answer.head
    assert answer.headers["content-type"] == "text/event-stream"
    assert "x-number" not in answer.headers
    assert answer.body.endswith(DONE)


def test_unknown_fields_are_ignored(daemon: Daemon) -> None:
    assert_whole(daemon.ask({"prompt": "x", "langgraph_input": {"deep": [1]}, "timestamp": 5}))


def test_a_peer_that_says_nothing_loses_its_slot(start: Callable[..., Daemon]) -> None:
    daemon = start("[timeouts]\nhandoff_timeout_ms = 200\n", "--delay", "1")
    began = time.monotonic()
    with daemon.connect() as peer:
        peer.settimeout(LATE_S_MAX)
        assert peer.recv(10) == b""
        assert time.monotonic() - began > 0.15
    daemon.wait_for_metric('streaming_daemon_handoffs_rejected_total{reason="handoff_timeout"}', 1)
    assert_whole(daemon.ask())


def test_silent_peers_hold_up_nobody(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--delay", "1")
    peers = [daemon.connect() for _ in range(300)]
    assert_whole(daemon.ask())
    for peer in peers:
        peer.close()
    daemon.wait_idle()


def test_stream_type_sockets(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--delay", "1", "--socket-type", "stream")
    server, client = socket.socketpair()
    peer = daemon.connect(socket.SOCK_STREAM)
    data = json.dumps({"prompt": "y" * 100_000}).encode()
    socket.send_fds(peer, [data[:10]], [server.fileno()])
    server.close()
    peer.sendall(data[10:])
    peer.close()
    with client:
        assert_whole(read_all(client))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as wrong:
        assert wrong.connect_ex(str(daemon.socket_path)) != 0
