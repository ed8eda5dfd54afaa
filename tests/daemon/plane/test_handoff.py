"""What peers can do to the plane by coming in a flood, or by sending more descriptors than one."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest

from config.settings import Settings
from daemon.plane import table
from daemon.plane.counters import ACCEPTED_REFUSED
from daemon.plane.entries import CLOSE, COMPLETION_MORE, RECVMSG
from daemon.plane.handoff import SCM_RIGHTS, SOL_SOCKET
from daemon.plane.tag import ACCEPT, CLOSE_STRAY, SLOT_NONE, kind_of, pack
from daemon.plane.turn import turn

pytestmark = pytest.mark.plane

DESCRIPTORS_PER_MESSAGE = 12  # as many as the plane has room for; the kernel closes the others
TURNS_MAX = 1000


class Entry(NamedTuple):
    """A submission."""

    opcode: int
    fd: int
    address: int
    tag: int


class Kernel:
    """Takes everything that is submitted, and completes what a test says."""

    def __init__(self, streams: int, handoff_buffers: int) -> None:
        replace, settings = msgspec.structs.replace, Settings()
        self.plane = table.allocate(
            replace(
                settings,
                server=replace(settings.server, max_connections=streams),
                limits=replace(settings.limits, slot_reserve=16, handoff_bytes_max=1024),
                performance=replace(settings.performance, handoff_buffer_count=handoff_buffers),
            )
        )
        self.shared = self.plane.globals[0]
        self.shared.listener_fd = 3
        self.shared.now_ns = 10**9

    def turn(self, completions: list[tuple[int, int, int]]) -> list[Entry]:
        """One turn with these (tag, result, flags); what it submits."""
        for index, completion in enumerate(completions):
            place = (int(self.shared.completion_base) + index) & int(self.shared.completion_mask)
            self.plane.completions[place] = completion
        self.shared.completion_count = len(completions)
        turn(self.shared)
        base, mask = int(self.shared.submission_base), int(self.shared.submission_mask)
        filled = [self.plane.submissions[(base + n) & mask] for n in range(int(self.shared.submission_pending))]
        self.shared.submission_base += self.shared.submission_pending
        self.shared.submission_pending = 0
        return [Entry(int(e.opcode), int(e.fd), int(e.address), int(e.tag)) for e in filled]

    def accept(self, fds: range) -> list[Entry]:
        accept = pack(ACCEPT, SLOT_NONE, 0)
        return self.turn([(accept, fd, COMPLETION_MORE) for fd in fds])

    def strays(self, submitted: list[Entry]) -> list[int]:
        """Which strays are closed, beginning with what was submitted, until none is left."""
        closed: list[int] = []
        for _ in range(TURNS_MAX):
            closing = [entry for entry in submitted if entry.opcode == CLOSE and kind_of(entry.tag) == CLOSE_STRAY]
            if not closing:
                break
            closed += [entry.fd for entry in closing]
            submitted = self.turn([(entry.tag, 0, 0) for entry in closing])
        assert self.shared.stray_count == self.shared.stray_in_flight == 0
        return closed


def test_a_flood_of_peers_is_closed_where_it_finds_no_place() -> None:
    kernel = Kernel(streams=8, handoff_buffers=1)
    kernel.turn([])
    fds = range(100, 100 + len(kernel.plane.completions))
    more = range(fds.stop, fds.stop + len(kernel.plane.completions))
    closed = kernel.strays(kernel.accept(fds) + kernel.accept(more))  # accepting does not end at once
    assert len(closed) == kernel.plane.counters[ACCEPTED_REFUSED]
    assert sorted(closed) == [*range(more.stop - len(closed), more.stop)]


def test_descriptors_that_nobody_wants_are_closed_however_many_come_at_once() -> None:
    peers = 1024
    kernel = Kernel(streams=peers, handoff_buffers=peers)
    kernel.turn([])
    received = [entry for entry in kernel.accept(range(100, 100 + peers)) if entry.opcode == RECVMSG]
    assert len(received) == peers
    wanted: list[int] = []
    unwanted: list[int] = []
    for number, entry in enumerate(received):
        buffer = (entry.address - int(kernel.shared.headers)) // table.HEADER.itemsize
        fds = range(10_000 + number * DESCRIPTORS_PER_MESSAGE, 10_000 + (number + 1) * DESCRIPTORS_PER_MESSAGE)
        kernel.plane.ancillary[buffer] = (16 + 4 * len(fds), SOL_SOCKET, SCM_RIGHTS, *fds)
        wanted.append(fds[0])
        unwanted += fds[1:]
    closed = kernel.strays(kernel.turn([(entry.tag, 2, 0) for entry in received]))
    assert closed == unwanted
    assert [int(fd) for fd in kernel.plane.streams["client_fd"][:peers]] == wanted
