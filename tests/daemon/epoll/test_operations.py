"""What the plane may expect of each operation, whichever kernel interface serves it."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from daemon.plane.entries import (
    ACCEPT,
    ACCEPT_MULTISHOT,
    ASYNC_CANCEL,
    CLOSE,
    COMPLETION_MORE,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    NOP,
    POLL_ADD,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
    READ,
    RECV,
    RECVMSG,
    SEND,
    SHUT_WR,
    SHUTDOWN,
    SOCK_CLOEXEC,
    WRITE,
)
from daemon.ring.memory import KernelError
from tests.daemon.epoll.harness import Kernel, address_of, fill, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.epoll.harness import Array, Completion

Pair = tuple[socket.socket, socket.socket]
TEXT = np.frombuffer(b"data: one message of a stream\n\n", np.uint8)
BUFFER = np.zeros(1 << 16, np.uint8)
FIRST, SECOND, THIRD, FOURTH = (kind | 7 << 8 | 1 << 32 for kind in range(1, 5))  # tags of one slot


@pytest.fixture(params=["epoll", "io_uring"])
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    try:
        with opened(request.param) as kernel:
            yield kernel
    except KernelError as error:
        pytest.skip(f"this machine has no io_uring: {error}")


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "unix":
        left, right = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            right = socket.create_connection(listener.getsockname())
            left, _ = listener.accept()
    with left, right:
        yield left, right


@pytest.fixture
def pipe(kernel: Kernel) -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    kernel.set_modes(*ends)
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def listener(kernel: Kernel) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind(b"")
        bound.listen(256)
        kernel.set_modes(bound.fileno())
        yield bound


def connect(listener: socket.socket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(listener.getsockname())
    return client


def send(kernel: Kernel, fd: int, tag: int, data: Array = TEXT, flags: int = MSG_NOSIGNAL) -> None:
    kernel.submit(SEND, fd, tag, address=address_of(data), length=len(data), operation_flags=flags)


def receive(kernel: Kernel, fd: int, tag: int, flags: int = 0) -> None:
    kernel.submit(RECV, fd, tag, address=address_of(BUFFER), length=len(BUFFER), operation_flags=flags)


def poll(kernel: Kernel, fd: int, tag: int, mask: int) -> None:
    kernel.submit(POLL_ADD, fd, tag, operation_flags=mask)


def cancel(kernel: Kernel, target: int, tag: int) -> None:
    kernel.submit(ASYNC_CANCEL, -1, tag, address=target)


def test_nothing_completes_with_nothing(kernel: Kernel) -> None:
    kernel.submit(NOP, -1, FIRST)
    assert kernel.settle() == [(FIRST, 0, 0)]


def test_a_send_completes_at_once(kernel: Kernel, pair: Pair) -> None:
    send(kernel, pair[0].fileno(), FIRST)
    assert kernel.enter() == [(FIRST, len(TEXT), 0)]
    assert pair[1].recv(100) == TEXT.tobytes()


def test_a_send_without_room_resumes_when_the_reader_reads(kernel: Kernel, pair: Pair) -> None:
    fill(pair[0].fileno())
    send(kernel, pair[0].fileno(), FIRST)
    assert kernel.settle() == []
    pair[1].setblocking(False)
    completions: list[Completion] = []
    while not completions:
        pair[1].recv(1 << 20)
        completions = kernel.enter(20)
    assert completions == [(FIRST, len(TEXT), 0)]


def test_a_send_that_may_not_wait_says_so(kernel: Kernel, pair: Pair) -> None:
    fill(pair[0].fileno())
    send(kernel, pair[0].fileno(), FIRST, flags=MSG_NOSIGNAL | MSG_DONTWAIT)
    assert kernel.enter() == [(FIRST, -errno.EAGAIN, 0)]


def test_a_waiting_send_fails_when_the_reader_leaves(kernel: Kernel, pair: Pair) -> None:
    fill(pair[0].fileno())
    send(kernel, pair[0].fileno(), FIRST)
    assert kernel.settle() == []
    pair[1].close()
    tag, result, _ = kernel.expect()
    assert tag == FIRST
    assert result in {-errno.EPIPE, -errno.ECONNRESET}


def test_a_send_to_nobody_fails_without_a_signal(kernel: Kernel) -> None:
    left, right = socket.socketpair()
    right.close()
    with left:
        send(kernel, left.fileno(), FIRST)
        assert kernel.settle() == [(FIRST, -errno.EPIPE, 0)]


def test_a_receive_takes_what_is_there(kernel: Kernel, pair: Pair) -> None:
    pair[1].sendall(b"GET /")
    receive(kernel, pair[0].fileno(), FIRST, MSG_DONTWAIT)
    assert kernel.settle() == [(FIRST, 5, 0)]
    assert bytes(BUFFER[:5]) == b"GET /"


def test_a_receive_that_may_not_wait_says_so(kernel: Kernel, pair: Pair) -> None:
    receive(kernel, pair[0].fileno(), FIRST, MSG_DONTWAIT)
    assert kernel.enter() == [(FIRST, -errno.EAGAIN, 0)]


def test_a_receive_waits_for_bytes_and_for_the_end(kernel: Kernel, pair: Pair) -> None:
    receive(kernel, pair[0].fileno(), FIRST)
    assert kernel.settle() == []
    pair[1].sendall(b"more")
    assert kernel.expect() == (FIRST, 4, 0)
    receive(kernel, pair[0].fileno(), SECOND)
    assert kernel.settle() == []
    pair[1].shutdown(socket.SHUT_WR)
    assert kernel.expect() == (SECOND, 0, 0)


def test_a_message_brings_descriptors_that_programs_do_not_inherit(kernel: Kernel) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ancillary = np.zeros(64, np.uint8)
    vector = np.array([address_of(BUFFER), 100], np.int64)
    header = np.array([0, 0, address_of(vector), 1, address_of(ancillary), 64, 0], np.int64)
    flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC
    with left, right:
        kernel.submit(RECVMSG, left.fileno(), FIRST, address=address_of(header), length=1, operation_flags=flags)
        assert kernel.settle() == [(FIRST, -errno.EAGAIN, 0)]
        right.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [right.fileno()]))])
        kernel.submit(RECVMSG, left.fileno(), SECOND, address=address_of(header), length=1, operation_flags=flags)
        assert kernel.settle() == [(SECOND, 2, 0)]
    length, level, kind, fd = struct.unpack_from("qiii", ancillary.tobytes())
    assert (length, level, kind) == (20, socket.SOL_SOCKET, socket.SCM_RIGHTS)
    assert os.get_inheritable(fd) is False
    os.close(fd)


def test_a_poll_of_what_is_ready_completes_at_once(kernel: Kernel, pair: Pair) -> None:
    pair[1].sendall(b"x")
    poll(kernel, pair[0].fileno(), FIRST, POLLIN | POLLRDHUP)
    assert kernel.expect() == (FIRST, POLLIN, 0)
    poll(kernel, pair[0].fileno(), SECOND, POLLOUT)
    assert kernel.expect() == (SECOND, POLLOUT, 0)


def test_a_poll_waits_and_fires_once(kernel: Kernel, pair: Pair) -> None:
    poll(kernel, pair[0].fileno(), FIRST, POLLIN | POLLRDHUP)
    assert kernel.settle() == []
    pair[1].sendall(b"x")
    assert kernel.expect() == (FIRST, POLLIN, 0)
    pair[1].sendall(b"y")
    assert kernel.settle() == []


def test_a_poll_that_asks_for_less_is_not_disturbed_by_unread_input(kernel: Kernel, pair: Pair) -> None:
    pair[1].sendall(b"x")
    poll(kernel, pair[0].fileno(), FIRST, POLLIN | POLLRDHUP)
    assert kernel.expect() == (FIRST, POLLIN, 0)
    poll(kernel, pair[0].fileno(), SECOND, POLLRDHUP)
    assert kernel.settle() == []
    pair[1].shutdown(socket.SHUT_WR)
    assert kernel.expect() == (SECOND, POLLRDHUP, 0)


def test_errors_and_hang_ups_are_reported_unasked(kernel: Kernel) -> None:
    left, right = socket.socketpair()
    with left:
        poll(kernel, left.fileno(), FIRST, POLLERR | POLLHUP)
        assert kernel.settle() == []
        right.close()
        tag, result, _ = kernel.expect()
        assert tag == FIRST
        assert result & POLLHUP


def test_reader_writer_and_polls_share_a_descriptor(kernel: Kernel, pair: Pair) -> None:
    fd = pair[0].fileno()
    fill(fd)
    poll(kernel, fd, FIRST, POLLRDHUP)
    receive(kernel, fd, SECOND)
    send(kernel, fd, THIRD)
    assert kernel.settle() == []
    pair[1].sendall(b"hello")
    assert kernel.expect() == (SECOND, 5, 0)
    pair[1].setblocking(False)
    completions: list[Completion] = []
    while not completions:
        pair[1].recv(1 << 20)
        completions = kernel.enter(20)
    assert completions == [(THIRD, len(TEXT), 0)]
    pair[1].close()
    tag, result, _ = kernel.expect()
    assert tag == FIRST
    assert result & POLLRDHUP


def test_a_read_waits_for_bytes_and_for_the_end(kernel: Kernel, pipe: tuple[int, int]) -> None:
    kernel.submit(READ, pipe[0], FIRST, address=address_of(BUFFER), length=100, offset=-1)
    assert kernel.settle() == []
    os.write(pipe[1], b"command")
    assert kernel.expect() == (FIRST, 7, 0)
    kernel.submit(READ, pipe[0], SECOND, address=address_of(BUFFER), length=100, offset=-1)
    assert kernel.settle() == []
    read_end = os.dup(pipe[0])  # so that the fixture may close its number
    os.dup2(read_end, pipe[1])
    os.close(read_end)
    assert kernel.expect() == (SECOND, 0, 0)


def test_a_write_waits_for_room(kernel: Kernel, pipe: tuple[int, int]) -> None:
    kernel.submit(WRITE, pipe[1], FIRST, address=address_of(TEXT), length=len(TEXT), offset=-1)
    assert kernel.expect() == (FIRST, len(TEXT), 0)
    assert os.read(pipe[0], 100) == TEXT.tobytes()
    filled = fill(pipe[1])
    kernel.submit(WRITE, pipe[1], SECOND, address=address_of(TEXT), length=len(TEXT), offset=-1)
    assert kernel.settle() == []
    while filled > 0:
        filled -= len(os.read(pipe[0], filled))
    assert kernel.expect() == (SECOND, len(TEXT), 0)


@pytest.mark.parametrize("kind", ["poll", "receive", "send"])
def test_a_cancel_ends_what_waits(kernel: Kernel, pair: Pair, kind: str) -> None:
    fd = pair[0].fileno()
    fill(fd)
    begin = {"poll": lambda: poll(kernel, fd, FIRST, POLLIN), "receive": lambda: receive(kernel, fd, FIRST)}
    begin.get(kind, lambda: send(kernel, fd, FIRST))()
    assert kernel.settle() == []
    cancel(kernel, FIRST, SECOND)
    assert sorted(kernel.settle()) == [(FIRST, -errno.ECANCELED, 0), (SECOND, 0, 0)]
    pair[1].sendall(b"x")
    assert kernel.settle() == []


def test_a_cancel_leaves_the_others(kernel: Kernel, pair: Pair) -> None:
    fd = pair[0].fileno()
    poll(kernel, fd, FIRST, POLLIN)
    poll(kernel, fd, SECOND, POLLRDHUP)
    poll(kernel, fd, THIRD, POLLIN)
    assert kernel.settle() == []
    cancel(kernel, SECOND, FOURTH)
    assert sorted(kernel.settle()) == [(SECOND, -errno.ECANCELED, 0), (FOURTH, 0, 0)]
    pair[1].sendall(b"x")
    assert sorted(kernel.settle()) == [(FIRST, POLLIN, 0), (THIRD, POLLIN, 0)]


def test_a_cancel_of_nothing_finds_nothing(kernel: Kernel) -> None:
    cancel(kernel, FIRST, SECOND)
    assert kernel.settle() == [(SECOND, -errno.ENOENT, 0)]


def test_a_shutdown_ends_our_side(kernel: Kernel, pair: Pair) -> None:
    kernel.submit(SHUTDOWN, pair[0].fileno(), FIRST, length=SHUT_WR)
    assert kernel.settle() == [(FIRST, 0, 0)]
    assert pair[1].recv(1) == b""


def test_a_close_after_a_cancel_lets_the_other_side_know(kernel: Kernel, pair: Pair) -> None:
    fd = pair[0].detach()
    poll(kernel, fd, FIRST, POLLIN | POLLRDHUP)
    assert kernel.settle() == []
    cancel(kernel, FIRST, SECOND)
    kernel.settle()
    kernel.submit(CLOSE, fd, THIRD)
    assert kernel.settle() == [(THIRD, 0, 0)]
    pair[1].settimeout(5)
    assert pair[1].recv(1) == b""


def test_a_number_is_used_again_though_a_duplicate_lives_elsewhere(kernel: Kernel) -> None:
    left, right = socket.socketpair()
    fd = left.detach()
    with right, socket.socket(fileno=os.dup(fd)) as duplicate:
        poll(kernel, fd, FIRST, POLLIN)
        right.sendall(b"x")
        assert kernel.expect() == (FIRST, POLLIN, 0)
        kernel.submit(CLOSE, fd, SECOND)
        assert kernel.settle() == [(SECOND, 0, 0)]
        other, peer = socket.socketpair()
        with peer:
            other_fd = other.detach()
            if other_fd != fd:
                os.dup2(other_fd, fd)
                os.close(other_fd)
            poll(kernel, fd, THIRD, POLLIN)
            right.sendall(b"for the duplicate")
            assert kernel.settle() == []
            peer.sendall(b"for the new one")
            assert kernel.expect() == (THIRD, POLLIN, 0)
            os.close(fd)
        assert duplicate.recv(1) == b"x"


@pytest.mark.parametrize("opcode", [SEND, RECV, READ, WRITE, CLOSE, POLL_ADD, SHUTDOWN])
def test_what_is_no_descriptor_is_refused(kernel: Kernel, opcode: int) -> None:
    left, right = socket.socketpair()
    fd = left.fileno()
    left.close()
    with right:
        for number in (fd, 1 << 30):
            kernel.submit(opcode, number, FIRST, operation_flags=POLLIN if opcode == POLL_ADD else 0)
            assert kernel.settle() == [(FIRST, -errno.EBADF, 0)]


def arm(kernel: Kernel, listener: socket.socket) -> None:
    kernel.submit(ACCEPT, listener.fileno(), FIRST, priority=ACCEPT_MULTISHOT, operation_flags=SOCK_CLOEXEC)


def test_one_accept_brings_every_peer(kernel: Kernel, listener: socket.socket) -> None:
    early = connect(listener)
    arm(kernel, listener)
    completions = kernel.settle()
    late = [connect(listener) for _ in range(3)]
    completions += kernel.settle()
    assert [(tag, flags) for tag, _, flags in completions] == [(FIRST, COMPLETION_MORE)] * 4
    for (_, fd, _), client in zip(completions, [early, *late], strict=True):
        assert os.get_inheritable(fd) is False
        assert os.get_blocking(fd) is True
        client.send(b"%d" % fd)
        assert os.read(fd, 10) == b"%d" % fd
        os.close(fd)
        client.close()


def test_a_cancelled_accept_leaves_peers_to_others(kernel: Kernel, listener: socket.socket) -> None:
    arm(kernel, listener)
    assert kernel.settle() == []
    cancel(kernel, FIRST, SECOND)
    assert sorted(kernel.settle()) == [(FIRST, -errno.ECANCELED, 0), (SECOND, 0, 0)]
    with connect(listener):
        assert kernel.settle() == []
        listener.settimeout(5)
        listener.accept()[0].close()


def test_an_accept_without_descriptors_ends(kernel: Kernel, listener: socket.socket) -> None:
    with connect(listener):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        arm(kernel, listener)  # io_uring looks at the limit here, epoll when a peer comes
        try:
            completions = kernel.settle()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert completions == [(FIRST, -errno.EMFILE, 0)]
        assert kernel.settle() == []
        arm(kernel, listener)
        tag, fd, flags = kernel.expect()
        assert (tag, flags) == (FIRST, COMPLETION_MORE)
        os.close(fd)
