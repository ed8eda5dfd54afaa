"""Commands and events as bytes, packed and unpacked with `struct`: the other side of the two pipes."""

from __future__ import annotations

import struct
from typing import NamedTuple

from daemon.plane import messages as m

_COMMAND = struct.Struct("<HHIIIIIHHIHHHHi4xqqqqqIIIIIIIII4x")
_EVENT = struct.Struct("<HHIIHHqqiiqqq")
_FIELDS = tuple(name for name in m.COMMAND.names)
_INDEX = {name: index for index, name in enumerate(_FIELDS)}
assert _COMMAND.size == m.COMMAND_BYTES
assert _EVENT.size == m.EVENT_BYTES


class Event(NamedTuple):
    """One record of an event pipe."""

    kind: int
    flags: int
    slot: int
    generation: int
    reason: int
    state: int
    address: int
    length: int
    client_fd: int
    peer_fd: int
    time_ns: int
    sent_bytes: int  # `bytes` of the record
    number: int  # `count` of the record

    @property
    def key(self) -> tuple[int, int]:
        return self.slot, self.generation


def command(kind: int, key: tuple[int, int] = (0, 0), payload: bytes = b"", **fields: int) -> bytes:
    """A whole command."""
    values = [0] * len(_FIELDS)
    values[0] = kind
    values[_INDEX["total_bytes"]] = m.padded(len(payload))
    values[_INDEX["slot"]], values[_INDEX["generation"]] = key
    values[_INDEX["payload_bytes"]] = len(payload)
    for name, value in fields.items():
        values[_INDEX[name]] = value
    data = _COMMAND.pack(*values) + payload
    return data.ljust(m.padded(len(payload)), b"\0")


def events(data: bytes) -> list[Event]:
    """The whole records in `data`."""
    whole = len(data) // m.EVENT_BYTES * m.EVENT_BYTES
    return [Event(*fields) for fields in _EVENT.iter_unpack(data[:whole])]


def chunk(data: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""
