"""What is epoll's own: its bounds, its waits, and that nothing makes it spin."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from daemon.epoll.calls import EVENT_BYTES
from daemon.epoll.enter import ACCEPTS_MAX, COMPLETIONS_MAX
from daemon.epoll.memory import attach
from daemon.epoll.waiting import INTEREST, OPERATION
from daemon.plane.entries import (
    ACCEPT,
    ACCEPT_MULTISHOT,
    ASYNC_CANCEL,
    CLOSE,
    COMPLETION_MORE,
    MSG_NOSIGNAL,
    NOP,
    POLL_ADD,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
    RECV,
    SEND_ZC,
    SOCK_CLOEXEC,
)
from daemon.plane.kernel_record import KERNEL
from tests.daemon.epoll.harness import SUBMISSION_COUNT, Kernel, address_of, fill, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]
FIRST, SECOND, THIRD, FOURTH = (kind | 7 << 8 | 1 << 32 for kind in range(1, 5))  # tags of one slot
BUFFER = np.zeros(4096, np.uint8)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with opened("epoll") as kernel:
        yield kernel


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def poll(kernel: Kernel, fd: int, tag: int, mask: int) -> None:
    kernel.submit(POLL_ADD, fd, tag, operation_flags=mask)


def registered(kernel: Kernel, fd: int) -> int:
    """The mask with which epoll itself watches a descriptor; 0 when it does not."""
    with open(f"/proc/self/fdinfo/{int(kernel.record.epoll_fd)}", encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if words[0] == "tfd:" and int(words[1]) == fd:
                return int(words[3], 16)
    return 0


def assert_sleeps(kernel: Kernel) -> None:
    """Nothing that was left behind may wake the loop, except once to be put away."""
    kernel.enter(20)
    began = time.monotonic()
    assert kernel.enter(30) == []
    assert time.monotonic() - began >= 0.03


def test_layouts() -> None:
    assert OPERATION.itemsize == 64
    assert INTEREST.itemsize == 8
    assert KERNEL.itemsize == 256
    assert (12 if os.uname().machine == "x86_64" else 16) == EVENT_BYTES


def test_an_operation_that_nobody_knows_is_refused(kernel: Kernel) -> None:
    kernel.submit(99, -1, FIRST)
    assert kernel.enter() == [(FIRST, -errno.EINVAL, 0)]


def test_a_zero_copy_send_copies_and_promises_no_notification(kernel: Kernel, pair: Pair) -> None:
    kernel.submit(SEND_ZC, pair[0].fileno(), FIRST, address=address_of(BUFFER), length=5, operation_flags=MSG_NOSIGNAL)
    assert kernel.settle() == [(FIRST, 5, 0)]


def test_completions_never_exceed_their_ring(kernel: Kernel) -> None:
    bound = 4 * SUBMISSION_COUNT
    submitted = 0
    for _ in range(6):
        while kernel.shared.submission_pending < SUBMISSION_COUNT:
            kernel.submit(NOP, -1, submitted)
            submitted += 1
        assert kernel.enter_only() == 0
    assert bound - COMPLETIONS_MAX < kernel.shared.completion_count <= bound
    assert kernel.shared.submission_pending > 0
    tags = [tag for tag, _, _ in kernel.consume() + kernel.settle()]
    assert tags == list(range(submitted))


def test_events_wait_until_there_is_room_for_their_completions(kernel: Kernel) -> None:
    pairs = [socket.socketpair() for _ in range(40)]
    for index, (left, right) in enumerate(pairs):
        poll(kernel, left.fileno(), index << 8, POLLIN)
        right.sendall(b"x")
    kernel.shared.completion_count = 4 * SUBMISSION_COUNT  # a turn that has not looked yet
    assert kernel.enter_only() == 0
    assert kernel.shared.completion_count == 4 * SUBMISSION_COUNT
    kernel.consume()
    found = kernel.settle()
    assert sorted(found) == [(index << 8, POLLIN, 0) for index in range(40)]
    for left, right in pairs:
        left.close()
        right.close()


def test_a_turn_accepts_a_bounded_number(kernel: Kernel) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(b"")
        listener.listen(256)
        listener.setblocking(False)
        clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2 * ACCEPTS_MAX + 2)]
        for client in clients:
            client.connect(listener.getsockname())
        kernel.submit(ACCEPT, listener.fileno(), FIRST, priority=ACCEPT_MULTISHOT, operation_flags=SOCK_CLOEXEC)
        turns = [kernel.enter() for _ in range(4)]
        assert [len(turn) for turn in turns] == [ACCEPTS_MAX, ACCEPTS_MAX, 2, 0]
        for _, fd, flags in [completion for turn in turns for completion in turn]:
            assert flags == COMPLETION_MORE
            os.close(fd)
        kernel.submit(ASYNC_CANCEL, -1, SECOND, address=FIRST)
        kernel.settle()
        assert registered(kernel, listener.fileno()) == 0
        for client in clients:
            client.close()


def test_attach_makes_the_listener_non_blocking() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, opened("epoll") as kernel:
        kernel.shared.listener_fd = listener.fileno()
        kept = attach(kernel.record, kernel.plane)
        assert os.get_blocking(listener.fileno()) is False
        kept[0].close()


def test_a_close_ends_everything_that_waits(kernel: Kernel, pair: Pair) -> None:
    fd = pair[0].detach()
    fill(fd)
    poll(kernel, fd, FIRST, POLLIN)
    kernel.submit(RECV, fd, SECOND, address=address_of(BUFFER), length=10)
    poll(kernel, fd, THIRD, POLLOUT)
    kernel.submit(CLOSE, fd, FOURTH)
    found = kernel.settle()
    assert sorted(found[:3]) == [(tag, -errno.ECANCELED, 0) for tag in (FIRST, SECOND, THIRD)]
    assert found[3:] == [(FOURTH, 0, 0)]
    assert_sleeps(kernel)


def test_a_send_needs_no_registration(kernel: Kernel, pair: Pair) -> None:
    kernel.submit(SEND_ZC, pair[0].fileno(), FIRST, address=address_of(BUFFER), length=5)
    kernel.settle()
    assert registered(kernel, pair[0].fileno()) == 0


def test_a_cancelled_descriptor_is_no_longer_watched(kernel: Kernel, pair: Pair) -> None:
    fd = pair[0].fileno()
    poll(kernel, fd, FIRST, POLLIN | POLLRDHUP)
    kernel.enter()
    assert registered(kernel, fd) & (POLLIN | POLLRDHUP) == POLLIN | POLLRDHUP
    kernel.submit(ASYNC_CANCEL, -1, SECOND, address=FIRST)
    kernel.enter()
    assert registered(kernel, fd) == 0


def test_unread_input_does_not_spin(kernel: Kernel, pair: Pair) -> None:
    pair[1].sendall(b"x")
    poll(kernel, pair[0].fileno(), FIRST, POLLIN)
    assert kernel.settle() == [(FIRST, POLLIN, 0)]
    assert_sleeps(kernel)
    poll(kernel, pair[0].fileno(), SECOND, POLLRDHUP)
    assert kernel.settle() == []
    assert_sleeps(kernel)


def test_room_to_write_does_not_spin(kernel: Kernel, pair: Pair) -> None:
    poll(kernel, pair[0].fileno(), FIRST, POLLIN)
    poll(kernel, pair[0].fileno(), SECOND, POLLOUT)
    assert kernel.settle() == [(SECOND, POLLOUT, 0)]
    assert_sleeps(kernel)
    assert registered(kernel, pair[0].fileno()) & POLLOUT == 0


def test_a_client_that_left_does_not_spin(kernel: Kernel, pair: Pair) -> None:
    poll(kernel, pair[0].fileno(), FIRST, POLLRDHUP)
    pair[1].close()
    assert len(kernel.settle()) == 1
    assert_sleeps(kernel)


def test_a_descriptor_closed_by_another_is_found_out(kernel: Kernel) -> None:
    """The table thinks that it is registered; epoll knows better, and says so."""
    left, right = socket.socketpair()
    fd = left.fileno()
    poll(kernel, fd, FIRST, POLLIN)
    right.sendall(b"x")
    assert kernel.settle() == [(FIRST, POLLIN, 0)]
    poll(kernel, fd, FIRST, POLLRDHUP)
    kernel.settle()
    kernel.submit(ASYNC_CANCEL, -1, SECOND, address=FIRST)
    kernel.settle()
    poll(kernel, fd, FIRST, POLLRDHUP)
    kernel.enter()
    left.close()
    other, peer = socket.socketpair()
    assert fd in {other.fileno(), peer.fileno()}
    poll(kernel, fd, THIRD, POLLIN | POLLRDHUP)
    (peer if other.fileno() == fd else other).sendall(b"x")
    assert (THIRD, POLLIN, 0) in kernel.settle()
    for one in (right, other, peer):
        one.close()


def test_no_room_for_another_waiting_operation(kernel: Kernel, pair: Pair) -> None:
    kernel.record.operation_count = 2
    for tag in (FIRST, SECOND, THIRD):
        poll(kernel, pair[0].fileno(), tag, POLLIN)
    assert kernel.settle() == [(THIRD, -errno.ENOMEM, 0)]
    pair[1].sendall(b"x")
    assert sorted(kernel.settle()) == [(FIRST, POLLIN, 0), (SECOND, POLLIN, 0)]
    poll(kernel, pair[0].fileno(), FOURTH, POLLIN)
    assert kernel.settle() == [(FOURTH, POLLIN, 0)]


def test_a_descriptor_beyond_the_table_cannot_be_waited_for(kernel: Kernel, pair: Pair) -> None:
    kernel.record.interest_count = 3
    poll(kernel, pair[0].fileno(), FIRST, POLLIN)
    assert kernel.settle() == [(FIRST, -errno.EBADF, 0)]


def test_a_file_cannot_be_waited_for(kernel: Kernel) -> None:
    with open("/proc/self/exe", "rb") as file:
        poll(kernel, file.fileno(), FIRST, POLLIN)
        assert kernel.settle() == [(FIRST, -errno.EPERM, 0)]
    assert kernel.record.operation_free != 0


@pytest.mark.parametrize("coarse", [False, True])
def test_a_wait_lasts_as_long_as_it_should(kernel: Kernel, pair: Pair, *, coarse: bool) -> None:
    kernel.record.coarse = coarse
    began = time.monotonic()
    assert kernel.enter(12.3) == []
    assert 0.0123 <= time.monotonic() - began < 1
    poll(kernel, pair[0].fileno(), FIRST, POLLIN)
    pair[1].sendall(b"x")
    assert kernel.enter(-1) == [(FIRST, POLLIN, 0)]


def test_a_lost_epoll_ends_the_loop(kernel: Kernel) -> None:
    kernel.record.epoll_fd = -1
    assert kernel.enter_only() == -errno.EBADF


def test_waiting_operations_follow_a_model(kernel: Kernel) -> None:
    """Polls begin, fire, are cancelled and closed in any order; each completes once, with its own result."""
    generator = np.random.default_rng(11)
    pairs: dict[int, Pair] = {index: socket.socketpair() for index in range(8)}
    waiting: dict[int, int] = {}  # tag: pair
    tag = 0
    for _ in range(600):
        index, action = int(generator.integers(8)), int(generator.integers(6))
        left, right = pairs[index]
        if action <= 2 and len(waiting) < 40:
            tag += 1
            poll(kernel, left.fileno(), tag << 8, POLLIN)
            waiting[tag << 8] = index
            assert kernel.settle(0.01) == []
        elif action == 3 and waiting:
            target = int(generator.choice(list(waiting)))
            kernel.submit(ASYNC_CANCEL, -1, 1, address=target)
            assert kernel.settle(0.01) == [(target, -errno.ECANCELED, 0), (1, 0, 0)]
            del waiting[target]
        elif action == 4:
            right.sendall(b"x")
            _expect(kernel, waiting, index, POLLIN)
            left.recv(1)
        elif action == 5:
            kernel.submit(CLOSE, left.detach(), 1)
            _expect(kernel, waiting, index, -errno.ECANCELED, 1)
            right.close()
            pairs[index] = socket.socketpair()
    for left, right in pairs.values():
        left.close()
        right.close()


def _expect(kernel: Kernel, waiting: dict[int, int], index: int, result: int, more: int = 0) -> None:
    expected: list[Any] = [(one, result, 0) for one, where in waiting.items() if where == index]
    expected += [(1, 0, 0)] * more
    # One wait may return only the bits to be put away: events of a descriptor come with it or before.
    assert sorted(kernel.settle(0.01)) == sorted(expected)
    for one in [one for one, where in waiting.items() if where == index]:
        del waiting[one]


def test_memory_is_for_every_descriptor_that_may_come(kernel: Kernel) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert kernel.record.interest_count == min(hard, 1 << 22)
    assert select.epoll.fromfd(os.dup(int(kernel.record.epoll_fd))).closed is False
