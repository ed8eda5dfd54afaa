"""Packing commands and writing them: whole, several to a write, never blocking the control plane."""

from __future__ import annotations

import os
import select
import struct
from collections import deque
from typing import TYPE_CHECKING

from daemon.plane import messages as m

if TYPE_CHECKING:
    import asyncio

# The layout of messages.COMMAND; a test compares the two field by field.
_COMMAND = struct.Struct("<HHIIIIIIIHHHHi4xqqqqqIIIIIIIII4x")
assert _COMMAND.size == m.COMMAND_BYTES
_PADDING = [bytes(size) for size in range(m.PAYLOAD_ALIGNMENT)]


def pack_command(
    kind: int,
    slot: int,
    generation: int,
    payload: bytes = b"",
    *,
    flags: int = 0,
    head_bytes: int = 0,
    text_bytes: int = 0,
    prefix_bytes: int = 0,
    source: int = 0,
    channel: int = 0,
    reason: int = 0,
    script: int = 0,
    client_fd: int = -1,
    cookie: int = 0,
    address: int = 0,
    length: int = 0,
    message_count: int = 0,
    interval_ps: int = 0,
    latency_ms: int = 0,
    deadlines: tuple[int, int, int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0, 0, 0),
) -> bytes:
    """One command, padded. `deadlines`: stream, queue, first byte, silence, keep-alive, write, linger, handoff; in ms."""
    payload_bytes = len(payload)
    padding = -payload_bytes % m.PAYLOAD_ALIGNMENT
    total_bytes = m.COMMAND_BYTES + payload_bytes + padding
    assert total_bytes <= m.MESSAGE_BYTES_MAX
    header = _COMMAND.pack(
        kind, flags, total_bytes, slot, generation, payload_bytes, head_bytes, text_bytes, prefix_bytes, source, channel,
        reason, script, client_fd, cookie, address, length, message_count, interval_ps, latency_ms, *deadlines,
    )  # fmt: skip
    return header + payload + _PADDING[padding]


def pack_either(
    kind: int, slot: int, generation: int, response: bytes, event: bytes, *, reason: int, flags: int = 0
) -> bytes:
    """A command with both endings: a whole response if nothing has left yet, otherwise an event."""
    return pack_command(kind, slot, generation, response + event, head_bytes=len(response), reason=reason, flags=flags)


class CommandWriter:
    """The control plane's end of the command pipe. Commands are collected, then written by `flush`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._blocked = False

    def send(self, command: bytes) -> None:
        """Put a command in line; it leaves with the next `flush`."""
        self._waiting.append(command)

    def flush(self) -> None:
        """Write as much as the pipe takes, whole commands only; the rest follows when there is room."""
        if self._blocked:
            return
        waiting = self._waiting
        while waiting:
            batch = [waiting.popleft()]
            size = len(batch[0])
            while waiting and size + len(waiting[0]) <= m.MESSAGE_BYTES_MAX:
                size += len(waiting[0])
                batch.append(waiting.popleft())
            try:
                # Up to PIPE_BUF bytes are written whole or not at all.
                os.write(self._descriptor, b"".join(batch))
            except BlockingIOError:
                waiting.extendleft(reversed(batch))
                self._blocked = True
                self._loop.add_writer(self._descriptor, self._unblock)
                return

    def _unblock(self) -> None:
        self._loop.remove_writer(self._descriptor)
        self._blocked = False
        self.flush()


def write_waiting(descriptor: int, command: bytes) -> None:
    """Write one command from a worker thread, waiting for room in the pipe: the plane always empties it."""
    while True:
        try:
            os.write(descriptor, command)
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll(1000)
        else:
            return
