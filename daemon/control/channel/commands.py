"""Commands down to the data plane, as bytes. daemon/plane/command_records.py declares them.

`pack` serves all kinds. OPEN and PUSH, which leave once for each stream or token, have ways of their own that make no
record; what many OPENs have in common is packed once, by `open_tail`.
"""

from __future__ import annotations

from daemon.plane.command_records import COMMAND_LAYOUTS, HEADER_FIELDS, Command, OpenCommand
from daemon.plane.message_layout import struct_of
from daemon.plane.messages import (
    ADOPT,
    COMMAND_BYTES,
    OPEN,
    PAYLOAD_ALIGNMENT,
    PAYLOAD_BYTES_MAX,
    PUSH,
)

_PACKERS = {layout.record: (kind, layout.struct.pack) for kind, layout in COMMAND_LAYOUTS.items() if kind != ADOPT}
_PADDING = tuple(bytes(-count % PAYLOAD_ALIGNMENT) for count in range(PAYLOAD_ALIGNMENT))
_ALIGN_MASK = PAYLOAD_ALIGNMENT - 1

_pack_push = COMMAND_LAYOUTS[PUSH].struct.pack
# The part of an OPEN that differs from one to the next: the header and the first fields, up to `flags`.
_OPEN_FIELDS = COMMAND_LAYOUTS[OPEN].fields
_PREFIX_FIELDS = _OPEN_FIELDS[: OpenCommand._fields.index("flags") + 1]
_PREFIX_BYTES = _PREFIX_FIELDS[-1].end
_pack_prefix = struct_of((*HEADER_FIELDS, *_PREFIX_FIELDS), 0, _PREFIX_BYTES).pack

_KIND = struct_of(HEADER_FIELDS[:1], 0, HEADER_FIELDS[0].end)
_ADOPT_FIELDS = COMMAND_LAYOUTS[ADOPT].fields
_ADOPTION = struct_of(_ADOPT_FIELDS, _ADOPT_FIELDS[0].offset, _ADOPT_FIELDS[-1].end)


def pack(command: Command, payload: bytes = b"") -> bytes:
    """One command, whole."""
    size = len(payload)
    assert size <= PAYLOAD_BYTES_MAX, f"{size} bytes do not fit in a command"
    kind, pack_record = _PACKERS[type(command)]
    padding = _PADDING[size & _ALIGN_MASK]
    return pack_record(kind, COMMAND_BYTES + size + len(padding), size, *command) + payload + padding


def pack_push(slot: int, generation: int, payload: bytes, *, head_bytes: int, flags: int, attempt: int) -> bytes:
    """A PUSH."""
    size = len(payload)
    assert size <= PAYLOAD_BYTES_MAX, f"{size} bytes do not fit in a command"
    padding = _PADDING[size & _ALIGN_MASK]
    total_bytes = COMMAND_BYTES + size + len(padding)
    return _pack_push(PUSH, total_bytes, size, slot, generation, head_bytes, flags, attempt) + payload + padding


def open_tail(common: OpenCommand) -> bytes:
    """What `pack_open` puts behind the fields it is given: those that many OPENs have in common."""
    return pack(common)[_PREFIX_BYTES:]


def pack_open(  # noqa: PLR0913, PLR0917  (a record's fields; an object that bundled them would cost as much again)
    tail: bytes,
    slot: int,
    generation: int,
    flags: int,
    payload: bytes = b"",
    head_bytes: int = 0,
    text_bytes: int = 0,
    closing_bytes: int = 0,
) -> bytes:
    """An OPEN."""
    size = len(payload)
    assert size <= PAYLOAD_BYTES_MAX, f"{size} bytes do not fit in a command"
    padding = _PADDING[size & _ALIGN_MASK]
    total_bytes = COMMAND_BYTES + size + len(padding)
    prefix = _pack_prefix(OPEN, total_bytes, size, slot, generation, head_bytes, text_bytes, closing_bytes, flags)
    return prefix + tail + payload + padding


def adopting(opened: bytes, client_fd: int, cookie: int) -> bytes:
    """An OPEN as the ADOPT of a socket, which the plane opens so as soon as it comes, where a slot is free."""
    command = bytearray(opened)
    _KIND.pack_into(command, 0, ADOPT)
    _ADOPTION.pack_into(command, _ADOPT_FIELDS[0].offset, client_fd, cookie)
    return bytes(command)
