"""Clients that misbehave, descriptors that run out, kernels that refuse: the others notice nothing, nothing leaks."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, LATE_S_MAX, Daemon, read_all, tcp_pair
from tests.behaviour.test_streams import assert_whole

if TYPE_CHECKING:
    from collections.abc import Callable

UNPACED = "[backend.mock]\ntokens = 100000000\n"
SLOW_READERS = 20


def reset(client: socket.socket) -> None:
    """Close so that the other side sees a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def ended(reason: str) -> str:
    return f'streaming_daemon_streams_ended_total{{reason="{reason}"}}'


@pytest.mark.parametrize("tcp", [True, False])
def test_a_client_that_never_reads_is_cut_and_memory_stays_bounded(start: Callable[..., Daemon], tcp: bool) -> None:
    daemon = start(UNPACED + "[timeouts]\nwrite_timeout_ms = 700\n")
    before = daemon.resident_bytes()
    clients = [daemon.open(tcp=tcp) for _ in range(SLOW_READERS)]
    time.sleep(0.3)
    grown = daemon.resident_bytes() - before
    assert grown < 8 << 20, f"{grown} bytes for {SLOW_READERS} slow readers"
    daemon.wait_for_metric(ended("write_timeout"), SLOW_READERS)
    daemon.wait_idle()
    for client in clients:
        answer = read_all(client)
        assert not answer.raw.endswith(DONE)
        client.close()


def test_no_close_waits_for_a_client_that_does_not_read(start: Callable[..., Daemon]) -> None:
    daemon = start(UNPACED + "[timeouts]\nwrite_timeout_ms = 300\n")
    server, client = tcp_pair()
    # What a handoff's sender has asked for: that a close waits until everything has been read.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    daemon.hand_over(b"{}", [server.fileno()])
    server.close()
    was_closed = False
    while not was_closed:  # and once behind it
        was_closed = daemon.metric(ended("write_timeout")) == 1
        began_s = time.monotonic()
        assert daemon.ask({"max_tokens": 1}).body.endswith(DONE)
        assert time.monotonic() - began_s < LATE_S_MAX, "another client's close holds up everybody"
        time.sleep(0.02)
    client.close()


def test_slow_readers_do_not_slow_the_others(start: Callable[..., Daemon]) -> None:
    daemon = start("[backend.mock]\ntokens = 200\ntokens_per_second = 200\n")
    slow = [daemon.open({"prompt": "x", "max_tokens": 100_000_000}) for _ in range(5)]
    began = time.monotonic()
    answer = daemon.ask()
    assert len(answer.contents) == 200
    assert answer.body.endswith(DONE)
    assert 0.9 < time.monotonic() - began < LATE_S_MAX  # who does not read is cut after 30 s
    for client in slow:
        client.close()
    daemon.wait_idle()


def test_a_slow_reader_gets_everything(start: Callable[..., Daemon]) -> None:
    daemon = start("[backend.mock]\ntokens = 30000\n")
    server, client = socket.socketpair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server.setblocking(False)
    daemon.hand_over(b"{}", [server.fileno()])
    server.close()
    pieces: list[bytes] = []
    with client:
        client.settimeout(30)
        while piece := client.recv(7777):
            pieces.append(piece)
            if len(pieces) < 20:
                time.sleep(0.005)
    body = b"".join(pieces).partition(b"\r\n\r\n")[2]
    expected = b"".join(b'data: {"content":"token_%d"}\n\n' % n for n in range(30_000)) + DONE
    assert body == expected


# A Unix socket cannot be closed so that the other side sees a reset.
@pytest.mark.pairwise
@pytest.mark.parametrize("delay_s", [0, 0.001, 0.01, 0.03])
@pytest.mark.parametrize(
    ("tcp", "how"), [(True, "close"), (True, "reset"), (True, "half_close"), (False, "close"), (False, "half_close")]
)
def test_clients_that_leave_at_any_moment(daemon: Daemon, delay_s: float, tcp: bool, how: str) -> None:
    descriptors = daemon.descriptor_count()
    for _ in range(20):
        client = daemon.open(tcp=tcp)
        time.sleep(delay_s)
        if how == "half_close":
            client.shutdown(socket.SHUT_WR)
            read_all(client)
            client.close()
        elif how == "reset":
            reset(client)
        else:
            client.close()
    daemon.wait_idle()
    assert_whole(daemon.ask(tcp=tcp))
    daemon.wait_for_descriptors(descriptors + 1)


def test_leaving_is_noticed_before_the_next_message(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--delay", "60000")
    client = daemon.open(tcp=True)
    client.recv(100)
    client.close()
    daemon.wait_for_metric(ended("client_gone"), 1, LATE_S_MAX)


def test_a_half_closed_client_can_be_kept(start: Callable[..., Daemon]) -> None:
    daemon = start('[streaming]\nhalf_close = "keep"\n', "--delay", "5")
    client = daemon.open(tcp=True)
    client.shutdown(socket.SHUT_WR)
    with client:
        assert_whole(read_all(client))


def test_unread_input_does_not_destroy_the_answer(daemon: Daemon) -> None:
    server, client = tcp_pair()
    client.sendall(b"GET /next HTTP/1.1\r\n\r\n" * 50)
    daemon.hand_over(b"{}", [server.fileno()])
    server.close()
    with client:
        time.sleep(0.2)
        answer = read_all(client)
    assert_whole(answer)
    assert not answer.reset


def test_a_client_that_is_still_sending_reads_its_whole_refusal(daemon: Daemon) -> None:
    server, client = tcp_pair()
    stop = threading.Event()
    client.settimeout(30)

    def send() -> None:
        try:
            for _ in range(40):
                if stop.is_set():
                    return
                client.sendall(b"x" * 10_000)
                time.sleep(0.005)
        except OSError:
            return

    sender = threading.Thread(target=send)
    sender.start()
    daemon.hand_over(json.dumps({"prompt": "x" * 200_000}).encode()[:150_000], [server.fileno()])
    server.close()
    time.sleep(0.1)
    answer = read_all(client)
    stop.set()
    sender.join()
    client.close()
    assert answer.status == 413
    assert answer.problem["status"] == 413
    daemon.wait_idle()


@pytest.mark.serial
def test_a_thousand_handoffs_at_once_with_room_for_a_hundred(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--max-connections", "100", "--delay", "600")  # all come before the first of them ends
    clients = [daemon.open({"user_id": n}) for n in range(1000)]
    answers = [read_all(client) for client in clients]
    for client in clients:
        client.close()
    refused = [answer for answer in answers if answer.status == 503]
    served = [answer for answer in answers if answer.status == 200]
    assert len(served) == 100
    assert len(refused) == 900
    for answer in served:
        assert_whole(answer)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert refused[0].problem["title"]
    daemon.wait_idle()


@pytest.mark.serial
def test_descriptors_that_run_out_pause_accepting_and_nothing_leaks(start: Callable[..., Daemon]) -> None:
    limited = ["prlimit", "--nofile=256:256"]
    daemon = start("[timeouts]\nhandoff_timeout_ms = 60000\n", "--delay", "1", wrapper=limited)
    assert_whole(daemon.ask())
    daemon.wait_idle()
    descriptors = daemon.descriptor_count()
    # Peers that say nothing hold a descriptor each; the backlog takes those that find none.
    peers = [daemon.connect() for _ in range(300)]
    deadline = time.monotonic() + LATE_S_MAX
    while not re.search(r"accept.*paused|no descriptors", daemon.log, re.IGNORECASE):
        assert time.monotonic() < deadline, daemon.log
        time.sleep(0.02)
    assert daemon.descriptor_count() >= 250
    for peer in peers:
        peer.close()
    assert_whole(daemon.ask())
    daemon.wait_idle()
    assert daemon.metric("streaming_daemon_accept_pauses_total") >= 1
    daemon.wait_for_descriptors(descriptors + 1)


SECCOMP_WRAPPER = """
import ctypes, os, sys
class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter))]
# Load the system call's number; io_uring_setup (425) gets EPERM, as under Docker's default profile; others pass.
load, compare = Filter(0x20, 0, 0, 0), Filter(0x15, 0, 1, 425)
rules = (Filter * 4)(load, compare, Filter(0x06, 0, 0, 0x00050001), Filter(0x06, 0, 0, 0x7FFF0000))
program = Program(4, rules)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_where_io_uring_is_refused_epoll_serves(start: Callable[..., Daemon], kernel: str) -> None:
    if kernel == "epoll":
        kernel = "auto"
    else:
        with pytest.raises(AssertionError, match="forbidden"):
            start("", kernel="io_uring", wrapper=[sys.executable, "-c", SECCOMP_WRAPPER])
        return
    daemon = start("", "--delay", "1", kernel="auto", wrapper=[sys.executable, "-c", SECCOMP_WRAPPER])
    assert_whole(daemon.ask())
    assert "seccomp" in daemon.log
    assert any('kernel="epoll"' in name for name in daemon.metrics() if name.startswith("streaming_daemon_info"))


@pytest.mark.soak
def test_nothing_leaks_over_a_hundred_thousand_streams(start: Callable[..., Daemon]) -> None:
    daemon = start("", "--delay", "0")
    for _ in range(200):
        daemon.ask()
    daemon.wait_idle()
    descriptors, memory = daemon.descriptor_count(), daemon.resident_bytes()
    for _ in range(500):
        clients = [daemon.open() for _ in range(200)]
        for number, client in enumerate(clients):
            if number % 10 == 0:
                client.close()
                continue
            read_all(client)
            client.close()
    daemon.wait_idle()
    assert daemon.descriptor_count() <= descriptors + 1
    assert daemon.resident_bytes() - memory < 6 << 20
    assert daemon.metric("streaming_daemon_slots_used") == 0
