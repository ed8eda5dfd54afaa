"""Commands: the layout the plane reads, and writes that are whole, batched and in order."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.control.channel.command_pipe import CommandWriter
from daemon.control.channel.commands import pack, pack_with_tail, tail
from daemon.plane import messages as m
from tests.daemon.control.channels import Channels, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = ("kind", "total_bytes", "payload_bytes")


@pytest.fixture
def channels() -> Iterator[Channels]:
    made = Channels()
    yield made
    made.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """One pass of the loop, with what is ready."""
    loop.run_until_complete(asyncio.sleep(0.001))


@pytest.mark.parametrize("name", [name for name in m.COMMAND.names if name not in SIZES])
def test_every_field_stands_where_the_plane_reads_it(name: str) -> None:
    largest = int(np.iinfo(m.COMMAND[name]).max)
    for value in (1, largest):
        (command,) = parse(pack(kind=m.OPEN, **{name: value}))
        set_fields = {key: found for key, found in command.fields.items() if found and key not in SIZES}
        assert set_fields == {name: value}


def test_descriptors_may_be_negative() -> None:
    assert parse(pack(kind=m.ADOPT, client_fd=-1))[0].client_fd == -1


@given(some.binary(max_size=m.PAYLOAD_BYTES_MAX))
def test_payloads_are_padded_to_whole_units(payload: bytes) -> None:
    data = pack(payload, kind=m.PUSH)
    assert len(data) == m.padded(len(payload)) <= m.MESSAGE_BYTES_MAX
    assert parse(data)[0].payload == payload


@given(some.binary(max_size=200), some.integers(0, 2**32 - 1), some.integers(0, 2**31 - 1))
def test_the_quick_way_packs_the_same(payload: bytes, slot: int, generation: int) -> None:
    common = tail(script=3, message_count=5, linger_timeout_ms=7)
    quick = pack_with_tail(common, m.OPEN, m.QUEUED, slot, generation, payload, 2, 1, 3)
    named = pack(
        payload, kind=m.OPEN, flags=m.QUEUED, slot=slot, generation=generation, head_bytes=2, text_bytes=1,
        closing_bytes=3, script=3, message_count=5, linger_timeout_ms=7,
    )  # fmt: skip
    assert quick == named


def test_what_is_wrong_is_not_packed() -> None:
    with pytest.raises(AssertionError, match="no such fields"):
        pack(kind=m.OPEN, colour=1)
    with pytest.raises(AssertionError, match="do not fit"):
        pack(bytes(m.PAYLOAD_BYTES_MAX + 1), kind=m.PUSH)
    with pytest.raises(AssertionError, match="do not fit"):
        pack_with_tail(tail(), m.PUSH, 0, 0, 0, bytes(m.PAYLOAD_BYTES_MAX + 1), 0)


def test_commands_of_one_callback_leave_together(channels: Channels, loop: asyncio.AbstractEventLoop) -> None:
    writer = CommandWriter(channels.command_fd, loop)
    for slot in range(70):
        writer.add(pack(kind=m.TABLE, slot=slot))
    writer.flush()
    writes = channels.writes()
    assert [len(data) for data in writes] == [4096, 4096, 70 * 128 - 8192]
    assert [command.slot for data in writes for command in parse(data)] == list(range(70))
    writer.flush()
    assert channels.writes() == []


def test_a_full_pipe_is_waited_for_and_the_order_kept(channels: Channels, loop: asyncio.AbstractEventLoop) -> None:
    writer = CommandWriter(channels.command_fd, loop)
    sent = 0
    while not writer.waiting_count:
        writer.send(bytes(3000), kind=m.PUSH, slot=sent)
        sent += 1
    called: list[int] = []
    writer.after_flush(lambda: called.append(sent))
    writer.send(kind=m.PING, slot=sent)
    turn(loop)
    assert not called
    seen: list[int] = []
    while writer.waiting_count:
        seen += [command.slot for command in channels.commands()]
        turn(loop)
    seen += [command.slot for command in channels.commands()]
    assert seen == list(range(sent + 1))
    assert called == [sent]


def test_callbacks_come_at_once_when_nothing_waits(channels: Channels, loop: asyncio.AbstractEventLoop) -> None:
    writer = CommandWriter(channels.command_fd, loop)
    writer.add(pack(kind=m.OPEN))
    written: list[int] = []
    writer.after_flush(lambda: written.append(len(channels.writes())))
    assert written == [1]


def test_a_plane_that_is_gone_is_no_error_here(loop: asyncio.AbstractEventLoop) -> None:
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    os.close(read_fd)
    writer = CommandWriter(write_fd, loop)
    writer.send(kind=m.PING)
    writer.send(kind=m.PING)
    assert writer.waiting_count == 0
    os.close(write_fd)
