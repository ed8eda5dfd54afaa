"""Commands and events as bytes, packed and unpacked with `struct`: the other side of the two pipes."""

from __future__ import annotations

import struct

from daemon.plane import messages as m
from daemon.plane.event_records import EVENT_LAYOUTS, Event, StreamEvent

_COMMAND = struct.Struct("<HHIIIIIHHIHHHHi4xqqqqqIIIIIIIII4x")
_FIELDS = tuple(name for name in m.COMMAND.names)
_INDEX = {name: index for index, name in enumerate(_FIELDS)}
assert _COMMAND.size == m.COMMAND_BYTES


def key_of(event: StreamEvent) -> tuple[int, int]:
    """Which stream it is about."""
    return event.slot, event.generation


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
    found: list[Event] = []
    for offset in range(0, len(data) // m.EVENT_BYTES * m.EVENT_BYTES, m.EVENT_BYTES):
        layout = EVENT_LAYOUTS[int.from_bytes(data[offset : offset + 2], "little")]
        found.append(layout.record(*layout.struct.unpack_from(data, offset)))
    return found


def chunk(data: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""
