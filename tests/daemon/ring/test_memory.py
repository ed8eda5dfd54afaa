"""A real ring: made on its own thread, restricted, used through the plane's own submissions, closed."""

from __future__ import annotations

import ctypes
import errno
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from config.settings import Performance, Server, Settings
from daemon.plane import entries
from daemon.plane.kernel_record import KERNEL, TIMESPEC
from daemon.plane.submissions import prepare, prepare_cancel, prepare_poll, prepare_receive, prepare_send
from daemon.plane.table import allocate
from daemon.ring.enter import ARGUMENT, ring_enter
from daemon.ring.memory import close_ring, open_ring

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = 64
OPCODE_OPENAT = 18


class RingUnderTest:
    """A plane with a ring of its own; everything on the calling thread."""

    def __init__(self, *, sqpoll: bool = False, no_sqarray: bool = True, restrict: bool = True) -> None:
        settings = Settings(server=Server(max_connections=16), performance=Performance(submission_entries=ENTRIES))
        self.plane = allocate(settings)
        self.shared = self.plane.globals[0]
        self.ring = open_ring(ENTRIES, sqpoll=sqpoll, no_sqarray=no_sqarray, restrict=restrict)
        self.kernel: Any = np.zeros(1, KERNEL)[0]
        self.kept = (np.zeros(1, ARGUMENT), np.zeros(1, TIMESPEC))
        self.kernel.argument, self.kernel.timespec = (memory.ctypes.data for memory in self.kept)
        self.kernel.fd = self.ring.fd
        self.kernel.sqpoll = bool(sqpoll)
        submission, completion = self.ring.structure.sq, self.ring.structure.cq
        self.kernel.sq_head, self.kernel.sq_tail, self.kernel.sq_flags = (
            submission.head, submission.tail, submission.flags,
        )  # fmt: skip
        self.kernel.cq_head, self.kernel.cq_tail = completion.head, completion.tail
        self.shared.submissions, self.shared.completions = submission.sqes, completion.cqes
        self.shared.completion_mask = completion.ring_entries - 1
        self.completions = np.ctypeslib.as_array(
            (ctypes.c_byte * (16 * completion.ring_entries)).from_address(completion.cqes)
        ).view(entries.COMPLETION)

    def enter(self, wait_ns: int = 0) -> list[tuple[int, int]]:
        """One enter; (tag, result) of every completion it brought."""
        self.shared.now_ns, self.shared.wait_until_ns = 0, wait_ns
        assert ring_enter(self.shared, self.kernel) == 0
        found: list[tuple[int, int]] = []
        for index in range(int(self.shared.completion_count)):
            entry = self.completions[(int(self.shared.completion_base) + index) % len(self.completions)]
            found.append((int(entry["tag"]), int(entry["result"])))
        self.shared.completion_base += self.shared.completion_count
        self.shared.completion_count = 0
        return found


@pytest.fixture(params=[{}, {"no_sqarray": False}, {"restrict": False}], ids=["all", "sqarray", "unrestricted"])
def ring(request: pytest.FixtureRequest) -> Iterator[RingUnderTest]:
    under_test = RingUnderTest(**request.param)
    yield under_test
    close_ring(under_test.ring)


def test_bytes_go_through_the_ring(ring: RingUnderTest) -> None:
    ours, theirs = socket.socketpair()
    data, received = np.frombuffer(b"hello ring", np.uint8).copy(), np.zeros(64, np.uint8)
    with ours, theirs:
        prepare_receive(ring.shared, theirs.fileno(), received.ctypes.data, 64, 0, 2)
        prepare_send(ring.shared, ours.fileno(), data.ctypes.data, len(data), False, 1)
        found = dict(ring.enter(1_000_000_000) + ring.enter())
    assert found == {1: 10, 2: 10}
    assert bytes(received[:10]) == b"hello ring"


def test_waiting_ends_at_its_time(ring: RingUnderTest) -> None:
    assert ring.enter(5_000_000) == []


def test_more_submissions_than_entries_over_time(ring: RingUnderTest) -> None:
    seen = 0
    for number in range(5 * ENTRIES):
        prepare(ring.shared, entries.NOP, -1, number)
        if number % 7 == 0:
            seen += len(ring.enter())
    seen += len(ring.enter())
    assert seen == 5 * ENTRIES
    assert ring.shared.submission_pending == 0


def test_a_poll_is_cancelled(ring: RingUnderTest) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        prepare_poll(ring.shared, ours.fileno(), entries.POLLIN, 7)
        assert ring.enter() == []
        prepare_cancel(ring.shared, 7, 8)
        assert dict(ring.enter() + ring.enter()) == {7: -errno.ECANCELED, 8: 0}


def test_operations_not_in_use_are_refused() -> None:
    ring = RingUnderTest()
    assert ring.ring.features["restrictions"]
    prepare(ring.shared, OPCODE_OPENAT, -1, 3)
    assert ring.enter() == [(3, -errno.EACCES)]
    close_ring(ring.ring)


def test_another_thread_may_not_enter() -> None:
    ring = RingUnderTest()
    prepare(ring.shared, entries.NOP, -1, 3)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(ring_enter, ring.shared, ring.kernel).result() == -errno.EEXIST
    assert ring.enter() == [(3, 0)]
    close_ring(ring.ring)


def test_the_kernels_own_poller() -> None:
    ring = RingUnderTest(sqpoll=True)
    for number in range(3 * ENTRIES):
        while ring.shared.submission_pending == ENTRIES:
            ring.enter(1_000_000)
        prepare(ring.shared, entries.NOP, -1, number)
        ring.enter()
    while ring.shared.submission_pending:
        ring.enter(1_000_000)
    assert ring.shared.submission_base == 3 * ENTRIES
    close_ring(ring.ring)
