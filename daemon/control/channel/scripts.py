"""Scripts of paced streams, written into the plane's memory once, before its thread starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.interface import TEXT_BYTES_MAX, Mark, Script
from daemon.control.channel.responses import STANDARD_HEAD
from daemon.plane.paced import CLOSING, INDEX, LITERAL, TEXT
from daemon.plane.table import SCRIPT_COUNT_MAX, SCRIPT_MESSAGES_MAX, SCRIPT_PARTS_MAX, TEMPLATE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.interface import Parts
    from daemon.plane.table import Plane

INDEX_DIGITS_MAX = 20
_KINDS = {Mark.INDEX: INDEX, Mark.TEXT: TEXT, Mark.CLOSING: CLOSING}
RENDERED_BYTES_MAX = 4096  # a message must fit in a stream's block, with room for what is not yet sent


class ScriptError(Exception):
    """A backend's scripts are too many or too large; the message says which limit."""


class ScriptBook:
    """Numbers the scripts of all backends and puts them, and the standard head, where the plane reads them."""

    def __init__(self, plane: Plane, scripts: Iterable[Script]) -> None:
        """Write everything. Raises ScriptError."""
        self._plane = plane
        self._numbers: dict[int, int] = {}
        self._kept: list[Script] = []  # what is known by its identity must stay alive
        self._message_count = 0
        self._part_count = 0
        self._template_bytes = 0
        self._literals: dict[bytes, int] = {}
        assert self._store(STANDARD_HEAD) == 0, "the plane finds the standard head at offset 0"
        plane.globals[0].head_bytes = len(STANDARD_HEAD)
        for script in scripts:
            self._add(script)

    def number(self, script: Script) -> int | None:
        """The number of a script, or None where its backend did not announce it."""
        return self._numbers.get(id(script))

    def _add(self, script: Script) -> None:
        if id(script) in self._numbers:
            return
        number = len(self._kept)
        if number >= SCRIPT_COUNT_MAX:
            raise ScriptError(f"backends have more than {SCRIPT_COUNT_MAX} scripts")
        if self._message_count + len(script.messages) + 1 > SCRIPT_MESSAGES_MAX:
            raise ScriptError(f"the scripts of backends have more than {SCRIPT_MESSAGES_MAX} messages, ends included")
        record = self._plane.scripts[number]
        record.first_message = self._message_count
        record.message_count = len(script.messages)
        record.end_message = self._message_count + len(script.messages)
        record.end_counts = script.end_counts
        for parts in (*script.messages, script.end):
            self._add_message(parts)
        self._numbers[id(script)] = number
        self._kept.append(script)

    def _add_message(self, parts: Parts) -> None:
        if self._part_count + len(parts) > SCRIPT_PARTS_MAX:
            raise ScriptError(f"the scripts of backends have more than {SCRIPT_PARTS_MAX} parts")
        bytes_max = 0
        message = self._plane.script_messages[self._message_count]
        message.first_part = self._part_count
        message.part_count = len(parts)
        for part in parts:
            record = self._plane.script_parts[self._part_count]
            if isinstance(part, bytes):
                record.kind, record.offset, record.length = LITERAL, self._store(part), len(part)
                bytes_max += len(part)
            else:
                record.kind = _KINDS[part]
                bytes_max += INDEX_DIGITS_MAX if part is Mark.INDEX else TEXT_BYTES_MAX
            self._part_count += 1
        if bytes_max > RENDERED_BYTES_MAX:
            raise ScriptError(f"a message of a script can have {bytes_max} bytes; {RENDERED_BYTES_MAX} are allowed")
        message.bytes_max = bytes_max
        self._message_count += 1

    def _store(self, data: bytes) -> int:
        """Offset of these bytes in the template memory; equal pieces are stored once."""
        offset = self._literals.get(data)
        if offset is not None:
            return offset
        offset = self._template_bytes
        if offset + len(data) > TEMPLATE_BYTES_MAX:
            raise ScriptError(f"the scripts of backends have more than {TEMPLATE_BYTES_MAX} bytes")
        self._plane.templates[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self._template_bytes += len(data)
        self._literals[data] = offset
        return offset
