"""How both floors serve: a seqpacket socket to accept handoffs from, an epoll set, and turns until a signal comes."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SLICE_NS = 250_000_000  # how often Python looks up, for signals


def raise_descriptor_limit() -> int:
    """As many descriptors as the hard limit allows; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def serve(path: str, attach: Callable[[int, int], None], turns_until: Callable[[int], object]) -> None:
    """Listen at `path` until a signal ends the process.

    `attach` is given the listener's descriptor and the epoll set's, in which it is registered; `turns_until` works
    until a time of the monotonic clock, in ns.
    """
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, contextlib.closing(select.epoll()) as epoll:
        listener.bind(path)
        listener.setblocking(False)
        listener.listen(4096)
        epoll.register(listener.fileno(), select.EPOLLIN)
        attach(listener.fileno(), epoll.fileno())
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                turns_until(time.monotonic_ns() + _SLICE_NS)
