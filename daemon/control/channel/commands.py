"""Commands down to the data plane, as bytes. Layout and meaning: daemon/plane/messages.py and docs/contract.md."""

from __future__ import annotations

import struct

from daemon.plane.messages import (
    ADOPT,
    COMMAND,
    COMMAND_BYTES,
    PAYLOAD_ALIGNMENT,
    PAYLOAD_BYTES_MAX,
)

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
