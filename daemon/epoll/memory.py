"""Set up the epoll kernel: its descriptor, its table of interests, and its list of waiting operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daemon.plane.table import Plane


def attach(kernel: Any, plane: Plane) -> Any:
    """Make the epoll descriptor and its memory, and enter their addresses in the kernel's record."""
    raise NotImplementedError
