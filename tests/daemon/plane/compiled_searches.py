"""The searches as compiled code calls them: called from a test alone, their Python bodies would run.

Part of the tests' library (`tests.native_plane`).
"""

from __future__ import annotations

from config.compilation import compiled
from daemon.plane.bytes_search import control_bytes, find_byte, line_bytes, string_bytes, text_bytes


@compiled
def search_all(address: int, length: int, byte: int) -> tuple[int, int, int, int, int]:
    """What each of the searches finds."""
    return (
        find_byte(address, length, byte),
        line_bytes(address, length),
        string_bytes(address, length),
        text_bytes(address, length),
        control_bytes(address, length),
    )
