"""Many HTTP/2 streams on one connection, one of which reads for all; and many transfers that are served together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from backends.relay import Attempt
from daemon.control.transfers.loop import GATHER_TRANSFERS_MIN, TransferLoop
from daemon.control.transfers.origin_pool import Pool
from daemon.plane import messages as m
from daemon.plane import state as st
from tests.daemon.control.transfer_plane import Plane, origin, plain_origin
from tests.upstream import Fault, Gate, Plan, Upstream, openai_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.relay import Origin

    Make = Callable[..., Origin]

EVENTS = openai_stream([f"token {number} " for number in range(20)])
BODY = b"".join(EVENTS)
PACED = Plan(EVENTS, interval_s=0.02)


def by_tls(upstream: Upstream) -> Origin:
    return origin(upstream, http2=True)


every_way = pytest.mark.parametrize("make", [by_tls, plain_origin])


@every_way
def test_one_reads_for_all(plane: Plane, upstream: Upstream, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Pool._run  # pyright: ignore[reportPrivateUsage]
    alone: list[bool] = []

    def counted(self: Pool, fd: int, selected: int) -> None:
        alone.append(fd < 0)
        run(self, fd, selected)

    monkeypatch.setattr(Pool, "_run", counted)
    monkeypatch.setattr("daemon.control.transfers.origin_pool.ALL_INTERVAL_S", 1000.0)  # however slow the machine is
    gate = Gate()
    upstream.answer("m", Plan([*EVENTS[:10], gate, *EVENTS[10:]]))
    asked = make(upstream)
    streams = [plane.begin(slot, asked) for slot in range(20)]
    begun = b"".join(EVENTS[:10])
    plane.until(lambda: all(seen.body == begun for seen in streams), "the first half")
    alone.clear()
    gate.open()
    plane.until_over(*streams)
    assert all(seen.is_complete and seen.body == BODY for seen in streams)
    assert len(upstream.connections()) == 1
    assert any(alone)


@every_way
def test_where_one_reads_nothing_all_do(
    plane: Plane, upstream: Upstream, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_pool: Pool, _transfer: object) -> None:
        pass

    monkeypatch.setattr(Pool, "_read_alone", nothing)
    upstream.answer("m", PACED)
    asked = make(upstream)
    streams = [plane.begin(slot, asked) for slot in range(20)]
    plane.until_over(*streams)
    assert all(seen.is_complete and seen.body == BODY for seen in streams)


@every_way
def test_others_go_on_when_the_one_that_reads_has_left(plane: Plane, upstream: Upstream, make: Make) -> None:
    gate = Gate()
    upstream.answer("m", Plan([*EVENTS[:10], gate, *EVENTS[10:]], interval_s=0.01))
    asked = make(upstream)
    streams = [plane.begin(slot, asked) for slot in range(10)]
    begun = b"".join(EVENTS[:10])
    plane.until(lambda: all(seen.body == begun for seen in streams), "the first half")
    for slot in (9, 0, 5, 8):  # whoever reads, it is among them, or the next one is
        plane.stopped(slot, st.CLIENT_GONE)
        plane.go_on(0.05)
    gate.open()
    left = [streams[slot] for slot in (1, 2, 3, 4, 6, 7)]
    plane.until_over(*left)
    assert all(seen.is_complete and seen.body == BODY for seen in left)
    assert len(upstream.connections()) == 1


@every_way
def test_a_reset_a_pause_and_an_upload_beside_streams_that_go_on(plane: Plane, upstream: Upstream, make: Make) -> None:
    upstream.answer("m", PACED)
    upstream.answer("reset", Plan(EVENTS, interval_s=0.01, fault=Fault.RESET))
    upstream.answer("much", Plan([b"x" * 10_000] * 100))
    plane.releases = False
    asked = make(upstream)
    streams = [plane.begin(slot, asked) for slot in range(10)]
    reset = plane.begin(10, asked, "reset")
    much = plane.begin(11, asked, "much")
    body = b'{"model":"m","padding":"' + b"x" * 500_000 + b'"}'  # several windows
    upload = plane.begin_attempt(12, Attempt(asked, "/v1/chat/completions", (), body))
    plane.until_over(*streams, reset, upload)
    assert all(seen.is_complete and seen.body == BODY for seen in (*streams, upload))
    assert not reset.is_complete
    assert reset.body == BODY
    assert len(much.body) == m.RAW_CREDIT_BYTES
    assert len(upstream.connections()) == 1
    plane.releases = True
    plane.release(11, m.RAW_CREDIT_BYTES)
    plane.until_over(much)
    assert much.is_complete
    assert len(much.body) == 1_000_000


@every_way
def test_all_hear_that_their_connection_is_cut(plane: Plane, upstream: Upstream, make: Make) -> None:
    gate = Gate()
    upstream.answer("m", Plan([*EVENTS[:5], gate, *EVENTS[5:]], interval_s=0.01))
    upstream.answer("cut", Plan([*EVENTS[:5], gate], interval_s=0.01, fault=Fault.CUT))
    asked = make(upstream)
    streams = [plane.begin(slot, asked, "cut" if slot == 7 else "m") for slot in range(10)]
    begun = b"".join(EVENTS[:5])
    plane.until(lambda: all(seen.body == begun for seen in streams), "the beginning")
    gate.open()
    plane.until_over(*streams)
    assert not any(seen.is_complete for seen in streams)


@pytest.mark.parametrize("http2", [False, True])
def test_many_are_served_together(
    plane: Plane, upstream: Upstream, http2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather_s = 0.02  # long enough that without it there would be many more passes
    monkeypatch.setattr("daemon.control.transfers.loop.GATHER_S", gather_s)
    push = TransferLoop._push_touched  # pyright: ignore[reportPrivateUsage]
    passes_s: list[float] = []

    def counted(self: TransferLoop) -> None:
        is_many = self.active_count > GATHER_TRANSFERS_MIN
        passes_s.append(time.monotonic() if is_many else 0.0)
        push(self)

    monkeypatch.setattr(TransferLoop, "_push_touched", counted)
    upstream.answer("m", Plan(EVENTS, interval_s=0.01))
    asked = origin(upstream, http2=http2)
    streams = [plane.begin(slot, asked) for slot in range(2 * GATHER_TRANSFERS_MIN)]
    plane.until_over(*streams)
    assert all(seen.is_complete and seen.body == BODY for seen in streams)
    many_s = [pass_s for pass_s in passes_s if pass_s > 0]
    assert many_s
    # Each pass begins so long after the one before, and its pushing comes at its end.
    assert len(many_s) <= (many_s[-1] - many_s[0]) / gather_s + 2
