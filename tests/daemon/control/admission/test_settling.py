"""Whatever was let in is accounted for once, also where its socket never comes."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from backends.interface import Fields, Request
from backends.mock import Mock
from backends.registry import Registry
from config.settings import Server, Settings
from daemon.control.admission.admission import Admission
from daemon.control.channel.command_pipe import CommandWriter
from daemon.control.channel.scripts import ScriptBook
from daemon.control.relay.attempts import Relays
from daemon.control.relay.reachability import Reachability
from daemon.control.relay.resolver import Resolver
from daemon.control.stream.adoption import Adoption
from daemon.control.workers.pool import WorkerPool
from daemon.plane import state as st
from daemon.plane.table import allocate
from tests.daemon.control.admission.test_admission import Counts
from tests.daemon.control.relay.test_attempts import Accounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.control.stream.stream import Stream
    from daemon.plane.event_records import EndedEvent, UsageEvent

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def never(stream: Stream) -> tuple[UsageEvent, EndedEvent]:
    raise AssertionError(f"slot {stream.slot} has no stream")


@pytest.fixture(name="admission")
def _admission() -> Iterator[Admission]:
    loop = asyncio.new_event_loop()
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    settings = Settings(server=Server(max_connections=4))
    writer, resolver = CommandWriter(write_fd, loop), Resolver(loop)
    reachability = Reachability(loop, resolver)

    def relays(stream_of: Callable[[int], Stream | None]) -> Relays:
        return Relays(loop, writer, resolver, reachability, stream_of)

    registry = Registry(settings)
    book = ScriptBook(allocate(settings), [script for _, backend in registry for script in backend.scripts()])
    pool = WorkerPool([], write_fd, queue_count_max=1, output_block_bytes=4096, credit_bytes=4096)
    yield Admission(settings, registry, book, writer, pool, Counts(), kernel="epoll", relays=relays)
    reachability.close()
    resolver.close()
    loop.close()
    os.close(read_fd)
    os.close(write_fd)


@pytest.fixture(name="relay")
def _relay(monkeypatch: pytest.MonkeyPatch) -> Accounted:
    """The one stream that the default backend opens."""
    relay = Accounted()

    def opened(_backend: Mock, _request: Request) -> Accounted:
        return relay

    monkeypatch.setattr(Mock, "open", opened)
    return relay


def test_what_was_let_in_and_never_adopted_ends_with_the_daemon(admission: Admission, relay: Accounted) -> None:
    entry = admission.admit("mock", Request(Fields()))
    assert admission.active_count == 1
    assert relay.outcomes == []
    admission.settle(never)
    assert [outcome.reason for outcome in relay.outcomes] == ["shutdown"]
    assert admission.active_count == 0
    admission.abandon(entry)  # a request's own end, which comes later
    admission.settle(never)
    assert len(relay.outcomes) == 1, "it is accounted for once"


def test_what_waits_for_a_slot_ends_with_the_daemon(admission: Admission, relay: Accounted) -> None:
    reasons: list[int] = []
    near, far = socket.socketpair()
    with near, far:
        adoption = Adoption(admission.admit("mock", Request(Fields())), HEAD, ended=reasons.append)
        admission.adopt(near.fileno(), adoption)
        admission.settle(never)
    assert [outcome.reason for outcome in relay.outcomes] == ["shutdown"]
    assert reasons == [st.SHUTDOWN]
    assert admission.active_count == 0


def test_a_client_that_left_before_is_not_accounted_for_again(admission: Admission, relay: Accounted) -> None:
    admission.abandon(admission.admit("mock", Request(Fields())))
    admission.settle(never)
    assert [outcome.reason for outcome in relay.outcomes] == ["refused"]
