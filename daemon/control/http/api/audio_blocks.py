"""Splits a byte stream into the backend `mel`'s binary blocks: a WebSocket sends each block as a message. Pure.

docs/backends.md defines the format. It is repeated here because the package that computes blocks may be missing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = struct.Struct("<4sBBHII")  # magic, number type, kind, bins, first frame, count
_FRAMES, _ERROR = 0, 2
_NUMBER_BYTES = (4, 2)
BLOCK_BYTES_MAX = _HEAD.size + 3000 * 128 * 4  # the longest that settings allow


class BlockError(Exception):
    """A block that reports that the stream failed."""

    def __init__(self, status: int, message: str) -> None:
        """Status and message from the block."""
        super().__init__(message)
        self.status = status
        self.message = message


class Blocks:
    """The splitter for one stream."""

    def __init__(self) -> None:
        """Nothing received yet."""
        self._waiting = bytearray()

    def take(self, data: bytes) -> Iterator[bytes]:
        """The blocks completed by these bytes. Raises BlockError for an error block."""
        self._waiting += data
        while len(self._waiting) >= _HEAD.size:
            head: tuple[bytes, int, int, int, int, int] = _HEAD.unpack_from(self._waiting)
            magic, number_type, kind, bins, _, count = head
            assert magic == b"MEL1", "the stream does not consist of blocks"
            end = _HEAD.size + (count * bins * _NUMBER_BYTES[number_type] if kind == _FRAMES else count)
            assert end <= BLOCK_BYTES_MAX, f"a block of {end} bytes"
            if len(self._waiting) < end:
                return
            block = bytes(self._waiting[:end])
            del self._waiting[:end]
            if kind == _ERROR:
                status, _, message = block[_HEAD.size :].decode(errors="replace").partition(" ")
                raise BlockError(int(status), message)
            yield block
