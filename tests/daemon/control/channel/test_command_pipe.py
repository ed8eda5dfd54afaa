"""Writes of commands are whole, batched and in order."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from daemon.control.channel.command_pipe import CommandWriter
from daemon.control.channel.commands import pack
from daemon.plane.command_records import BodyReturnCommand, OpenCommand, PingCommand, PushCommand
from tests.daemon.control.channels import Channels, parse

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def test_commands_of_one_callback_leave_together(channels: Channels, loop: asyncio.AbstractEventLoop) -> None:
    writer = CommandWriter(channels.command_fd, loop)
    for slot in range(70):
        writer.add(pack(BodyReturnCommand(slot, 1)))
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
        writer.add(pack(PushCommand(sent, 1), bytes(3000)))
        writer.flush()
        sent += 1
    called: list[int] = []
    writer.after_flush(lambda: called.append(sent))
    writer.send(BodyReturnCommand(sent, 1))
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
    writer.add(pack(OpenCommand(0, 1)))
    written: list[int] = []
    writer.after_flush(lambda: written.append(len(channels.writes())))
    assert written == [1]


def test_a_plane_that_is_gone_is_no_error_here(loop: asyncio.AbstractEventLoop) -> None:
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    os.close(read_fd)
    writer = CommandWriter(write_fd, loop)
    writer.send(PingCommand(1))
    writer.send(PingCommand(1))
    assert writer.waiting_count == 0
    os.close(write_fd)
