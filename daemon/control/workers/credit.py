"""Flow control for a stream's output: bytes that a worker has pushed, less those that the plane has released.

Pure bookkeeping; docs/contract.md, "Credit".
"""

from __future__ import annotations

from collections import deque

from daemon.plane.messages import PAYLOAD_BYTES_MAX
from daemon.plane.paced import RESERVE_BYTES
from daemon.plane.table import RANGES_MAX

_MARGIN_BYTES = 64 + RESERVE_BYTES  # the plane's own framing, and the error event of a STOP
_FRAME_BYTES = 16  # per piece


def framing_bytes(size: int) -> int:
    """Bytes that chunked framing adds to a piece: its size in hexadecimal and two line ends (RFC 9112, 7.1)."""
    return (size.bit_length() + 3) // 4 + 4 if size > 0 else 0


class Credit:
    """The credit of one stream. Holds ranges until the plane releases them."""

    __slots__ = (
        "_inline_bytes_max",
        "_inline_pushed",
        "_inline_released",
        "_range_bytes_max",
        "_ranges",
        "_ranges_done",
    )

    def __init__(self, output_block_bytes: int, range_bytes_max: int) -> None:
        """`output_block_bytes` is the plane's block per stream; `range_bytes_max` bounds what is pushed by address."""
        self._inline_bytes_max = output_block_bytes - _MARGIN_BYTES
        self._range_bytes_max = range_bytes_max
        self._inline_pushed = 0
        self._inline_released = 0
        self._ranges: deque[bytes] = deque()
        self._ranges_done = 0

    @staticmethod
    def piece_bytes_max(output_block_bytes: int) -> int:
        """The largest inline piece that always fits eventually.

        The plane reports sent bytes in steps of half a block, so that much may appear unsent for ever.
        """
        return min(PAYLOAD_BYTES_MAX, output_block_bytes // 2 - _MARGIN_BYTES - _FRAME_BYTES)

    def inline_fits(self, size: int) -> bool:
        """Whether a piece of this size, head and framing included, may be pushed now."""
        return self._inline_pushed - self._inline_released + size + _FRAME_BYTES <= self._inline_bytes_max

    def inline_pushed(self, size: int) -> None:
        """Record that these bytes were pushed."""
        self._inline_pushed += size

    def range_fits(self, size: int) -> bool:
        """Whether these bytes may be pushed by address. One range of any size may."""
        if not self._ranges:
            return True
        return len(self._ranges) < RANGES_MAX and self.range_bytes + size <= self._range_bytes_max

    def range_pushed(self, data: bytes) -> None:
        """Record that these bytes were pushed by address: the plane reads them until it releases them."""
        self._ranges.append(data)

    def released(self, inline_bytes: int, range_count: int) -> None:
        """What the plane has released so far, both counts cumulative."""
        self._inline_released = max(self._inline_released, inline_bytes)
        while self._ranges_done < range_count and self._ranges:
            self._ranges.popleft()
            self._ranges_done += 1

    @property
    def range_bytes(self) -> int:
        """Bytes pushed by address and not released, at most."""
        return sum(map(len, self._ranges))

    @property
    def holds(self) -> bool:
        """Whether the plane may still read bytes held here."""
        return bool(self._ranges)

    def drop(self) -> None:
        """The plane has released everything."""
        self._ranges.clear()
