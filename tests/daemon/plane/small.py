"""A small plane for tests of single functions, compiled or interpreted."""

from __future__ import annotations

import ctypes
from typing import Any

import msgspec

from config.compilation import INTERPRETED
from config.settings import Settings
from daemon.plane import table

BLOCK_BYTES = 4096
Record = Any  # a record of the plane: NumPy's when compiled, the accessor's view when interpreted


def small_plane() -> table.Plane:
    """Eight slots, blocks of 4,096 bytes."""
    settings, replace = Settings(), msgspec.structs.replace
    return table.allocate(
        replace(
            settings,
            server=replace(settings.server, max_connections=8),
            limits=replace(settings.limits, slot_reserve=0),
            performance=replace(settings.performance, output_block_bytes=BLOCK_BYTES, submission_entries=64),
        )
    )


def stream(plane: table.Plane, slot: int) -> Record:
    """A slot's record as the plane's functions take it, writing through to the table."""
    return table.stream_of(plane.globals[0], slot) if INTERPRETED else plane.streams[slot]


def empty_stream(plane: table.Plane, slot: int) -> Record:
    """As `stream`, with the few fields that are not zero at first."""
    record = plane.streams[slot]
    for name in ("block", "client_fd", "peer_fd", "handoff_buffer", "body_buffer"):
        record[name] = -1
    return stream(plane, slot)


def bytes_at(address: int, count: int) -> bytes:
    return ctypes.string_at(address, count)
