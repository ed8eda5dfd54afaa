"""Serve every pending submission with non-blocking system calls, wait, and post completions."""

from __future__ import annotations

from typing import Any

from config.compilation import compiled


@compiled
def epoll_enter(plane: Any, kernel: Any) -> int:
    """Not there yet."""
    return -38
