"""What --check-kernel prints: what this machine's kernel offers, which of the two interfaces will be used, and why."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.loop import KernelReport


def render(report: KernelReport) -> str:
    """The report as lines for a person."""
    lines = [
        f"kernel          Linux {platform.release()} ({platform.machine()})",
        f"io_uring        {'available' if report.io_uring_available else 'not available'}",
        f"will be used    {report.chosen}: {report.reason}",
    ]
    for name, offered in sorted(report.features.items()):
        lines.append(f"  {name:<20}  {'yes' if offered else 'no'}")
    if report.chosen == "epoll" and not report.io_uring_available:
        lines.append("epoll serves the same streams, at a somewhat higher price per message.")
    return "\n".join(lines)
