"""Commands and events as bytes: the other side of the two pipes."""

from __future__ import annotations

import numpy as np

from daemon.plane import messages as m
from daemon.plane.command_records import COMMAND_LAYOUTS
from daemon.plane.event_records import EVENT_LAYOUTS, Event, StreamEvent


def key_of(event: StreamEvent) -> tuple[int, int]:
    """Which stream it is about."""
    return event.slot, event.generation


def command(kind: int, key: tuple[int, int] = (0, 0), payload: bytes = b"", **fields: int) -> bytes:
    """A whole command; fields that are not given are 0. An ADOPT has those of OPEN, too."""
    data = bytearray(m.padded(len(payload)))
    data[m.COMMAND_BYTES : m.COMMAND_BYTES + len(payload)] = payload
    values = {**fields, "kind": kind, "total_bytes": len(data), "payload_bytes": len(payload)}
    dtypes = [COMMAND_LAYOUTS[kind].dtype]
    if kind == m.ADOPT:
        dtypes.append(COMMAND_LAYOUTS[m.OPEN].dtype)
    elif "slot" in dtypes[0].names:
        values["slot"], values["generation"] = key
    for dtype in dtypes:
        record = np.frombuffer(data, dtype, count=1)[0]
        for name in values.keys() & set(dtype.names):
            record[name] = values[name]
    known = {name for dtype in dtypes for name in dtype.names}
    assert values.keys() <= known, f"{sorted(values.keys() - known)} are not fields of this command"
    return bytes(data)


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
