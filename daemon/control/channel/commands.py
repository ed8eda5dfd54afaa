"""Commands down to the data plane: packed here, written whole and at most 4,096 bytes at a time, never blocking.

Layout and meaning are in daemon/plane/messages.py and docs/contract.md. `CommandWriter` is the main thread's; a worker
writes its own commands to the same pipe (daemon/control/workers/thread.py), which the kernel keeps apart.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from typing import TYPE_CHECKING

from daemon.plane.messages import (
    ADOPT,
    COMMAND,
    COMMAND_BYTES,
    MESSAGE_BYTES_MAX,
    PAYLOAD_ALIGNMENT,
    PAYLOAD_BYTES_MAX,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_HEADER = struct.Struct("<HH5IHHIHHHHi4x5q9I4x")
# The part that differs from one command of a stream to the next: kind, flags, total_bytes, slot, generation,
# payload_bytes, head_bytes, text_bytes, closing_bytes. What follows it is packed once and kept.
_PREFIX = struct.Struct("<HHIIIIIHH")
PREFIX_BYTES = _PREFIX.size
FIELDS: tuple[str, ...] = COMMAND.names
_PADDING = tuple(bytes(-count % PAYLOAD_ALIGNMENT) for count in range(PAYLOAD_ALIGNMENT))
_ALIGN_MASK = PAYLOAD_ALIGNMENT - 1
_KIND = struct.Struct("<H")
_SOCKET = struct.Struct("<i4xq")  # client_fd, cookie
_SOCKET_OFFSET: int = COMMAND.fields["client_fd"][1]


def pack(payload: bytes = b"", /, **fields: int) -> bytes:
    """One command by the names of its fields; those not given are 0. For what is not sent once per token."""
    assert len(payload) <= PAYLOAD_BYTES_MAX, f"{len(payload)} bytes do not fit in a command"
    padding = _PADDING[len(payload) & _ALIGN_MASK]
    values = {**fields, "payload_bytes": len(payload), "total_bytes": COMMAND_BYTES + len(payload) + len(padding)}
    header = _HEADER.pack(*(values.pop(name, 0) for name in FIELDS))
    assert not values, f"no such fields: {values}"
    return header + payload + padding


def tail(**fields: int) -> bytes:
    """What `pack_with_tail` puts after the prefix: the fields that many commands have in common."""
    return pack(b"", **fields)[PREFIX_BYTES:]


def pack_with_tail(  # noqa: PLR0913, PLR0917  (a record's fields; an object that bundled them would cost as much again)
    common: bytes,
    kind: int,
    flags: int,
    slot: int,
    generation: int,
    payload: bytes,
    head_bytes: int,
    text_bytes: int = 0,
    closing_bytes: int = 0,
) -> bytes:
    """As `pack`, for the commands of the hot paths: all fields past `closing_bytes` come from `tail`."""
    size = len(payload)
    assert size <= PAYLOAD_BYTES_MAX, f"{size} bytes do not fit in a command"
    padding = _PADDING[size & _ALIGN_MASK]
    total = COMMAND_BYTES + size + len(padding)
    prefix = _PREFIX.pack(kind, flags, total, slot, generation, size, head_bytes, text_bytes, closing_bytes)
    return prefix + common + payload + padding


def adopting(opened: bytes, client_fd: int, cookie: int) -> bytes:
    """An OPEN as the ADOPT of a socket, which the plane opens so as soon as it comes, where a slot is free."""
    command = bytearray(opened)
    _KIND.pack_into(command, 0, ADOPT)
    _SOCKET.pack_into(command, _SOCKET_OFFSET, client_fd, cookie)
    return bytes(command)


class CommandWriter:
    """The main thread's end of the command pipe. What one callback produced leaves in as few writes as possible."""

    __slots__ = ("_batch", "_batch_bytes", "_closed", "_fd", "_flush_is_due", "_loop", "_waiting")

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        """`fd` must not block. It is not closed here."""
        self._fd = fd
        self._loop = loop
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._closed = False
        self._flush_is_due = False
        # Batches the pipe had no room for, and callbacks that wait behind them. Bounded by what admission has open:
        # a stream gets few commands from here, and no handoff comes while the plane does not read.
        self._waiting: deque[bytes | Callable[[], None]] = deque()

    def add(self, command: bytes) -> None:
        """Send a command with the next flush."""
        self._batch_bytes += len(command)
        if self._batch_bytes > MESSAGE_BYTES_MAX:
            self._write_batch()
            self._batch_bytes = len(command)
        self._batch.append(command)

    def send(self, payload: bytes = b"", **fields: int) -> None:
        """Pack a command and send it now."""
        self.add(pack(payload, **fields))
        self.flush()

    def add_soon(self, command: bytes) -> None:
        """Send a command after the callbacks that are ready now: theirs leave in the same write."""
        self.add(command)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_is_due = False
        self.flush()

    def flush(self) -> None:
        """Send what was added. Called at the end of every callback that adds commands."""
        if self._batch:
            self._write_batch()

    def after_flush(self, callback: Callable[[], None]) -> None:
        """Call back once everything added until now is in the pipe: what a worker sends must come behind it."""
        self.flush()
        if self._waiting:
            self._waiting.append(callback)
        else:
            callback()

    @property
    def waiting_count(self) -> int:
        """Batches that wait for room in the pipe."""
        return len(self._waiting)

    def _write_batch(self) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        self._batch_bytes = 0
        if self._waiting or not self._write(data):
            if not self._waiting:
                self._loop.add_writer(self._fd, self._drain)
            self._waiting.append(data)

    def _write(self, data: bytes) -> bool:
        """False when the pipe has no room. At most 4,096 bytes go whole or not at all."""
        if self._closed:
            return True
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            # The plane's thread has ended, which the service notices by itself; nobody is left to be commanded.
            self._closed = True
            return True
        assert written == len(data), "the kernel split a write of at most PIPE_BUF bytes"
        return True

    def _drain(self) -> None:
        while self._waiting:
            item = self._waiting[0]
            if not isinstance(item, bytes):
                self._waiting.popleft()
                item()
            elif self._write(item):
                self._waiting.popleft()
            else:
                return
        self._loop.remove_writer(self._fd)
