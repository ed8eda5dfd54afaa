"""The plane's ends of the channels, for tests of those at the other ends: commands are recorded, events are written."""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass
from typing import Any

import numpy as np

from daemon.plane import messages as m
from daemon.plane.command_records import COMMAND_HEADER, COMMAND_LAYOUTS
from daemon.plane.event_records import EVENT_LAYOUTS, KIND_BYTES

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Recorded:
    """One command as the plane would read it."""

    fields: dict[str, int]  # those of its kind
    payload: bytes

    def __getattr__(self, name: str) -> int:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def head(self) -> bytes:
        start = self._texts_bytes
        return self.payload[start : start + self.fields.get("head_bytes", 0)]

    @property
    def text(self) -> bytes:
        return self.payload[: self.fields["text_bytes"]]

    @property
    def closing(self) -> bytes:
        return self.payload[self.fields["text_bytes"] : self._texts_bytes]

    @property
    def rest(self) -> bytes:
        return self.payload[self._texts_bytes + self.fields.get("head_bytes", 0) :]

    @property
    def _texts_bytes(self) -> int:
        return self.fields.get("text_bytes", 0) + self.fields.get("closing_bytes", 0)


def parse(data: bytes) -> list[Recorded]:
    """Every command in these bytes; nothing may be left over."""
    commands: list[Recorded] = []
    while data:
        kind = int(np.frombuffer(data[: m.COMMAND_BYTES], COMMAND_HEADER)[0]["kind"])
        fields: dict[str, int] = {}
        # An ADOPT has the fields of OPEN, too.
        for dtype in (COMMAND_LAYOUTS[shown].dtype for shown in ((m.OPEN, m.ADOPT) if kind == m.ADOPT else (kind,))):
            record = np.frombuffer(data[: m.COMMAND_BYTES], dtype)[0]
            fields |= {name: int(record[name]) for name in dtype.names}
        total = fields["total_bytes"]
        assert total == m.padded(fields["payload_bytes"])
        assert len(data) >= total
        commands.append(Recorded(fields, data[m.COMMAND_BYTES : m.COMMAND_BYTES + fields["payload_bytes"]]))
        data = data[total:]
    return commands


class Channels:
    """A command pipe that keeps the boundaries of writes, and an event pipe."""

    def __init__(self) -> None:
        # A packet-mode pipe: one read returns what one write wrote.
        self.command_read_fd, self.command_fd = os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
        self.event_fd, self.event_write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._parsed: list[Recorded] = []

    def close(self) -> None:
        for fd in (self.command_read_fd, self.command_fd, self.event_fd, self.event_write_fd):
            os.close(fd)

    def writes(self) -> list[bytes]:
        """What was written since the last time, one element a write."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(os.read(self.command_read_fd, m.MESSAGE_BYTES_MAX))
        return found

    def commands(self) -> list[Recorded]:
        """Every command since the last time."""
        return [command for data in self.writes() for command in parse(data)]

    def next_command(self) -> Recorded:
        """The next command of another thread, waiting for it."""
        while not self._parsed:
            ready, _, _ = select.select([self.command_read_fd], [], [], TIMEOUT_S)
            assert ready, "no command came"
            self._parsed.extend(self.commands())
        return self._parsed.pop(0)

    def keep(self, commands: list[Recorded]) -> None:
        """Let `next_command` return these, which were read too early."""
        self._parsed.extend(commands)

    def nothing_comes(self, seconds: float) -> bool:
        """Whether no command comes for so long."""
        return not self._parsed and not select.select([self.command_read_fd], [], [], seconds)[0]

    def event(self, kind: int, **fields: int | bytes) -> None:
        """Write one event."""
        os.write(self.event_write_fd, event(kind, **fields))


def event(kind: int, **fields: int | bytes) -> bytes:
    """One event's bytes; descriptors are -1 unless given, other fields 0."""
    layout = EVENT_LAYOUTS[kind]
    values: dict[str, Any] = {name: -1 if name.endswith("_fd") else 0 for name in layout.record._fields}
    if "model" in values:
        values["model"] = b""
    assert fields.keys() <= values.keys(), f"{layout.record.__name__} lacks some of {sorted(fields)}"
    record = layout.record(**(values | fields))
    return kind.to_bytes(KIND_BYTES, "little") + layout.struct.pack(*record)[KIND_BYTES:]
