"""The output of --check-kernel: what this machine's kernel offers, which interface is used, and why."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from config.library import PLANE, path_of

if TYPE_CHECKING:
    from daemon.data_plane import KernelReport


def render(report: KernelReport) -> str:
    """The report as text; its last line names the chosen interface and the reason."""
    lines = [
        f"kernel        Linux {platform.release()} ({platform.machine()})",
        f"io_uring      {'available' if report.io_uring_available else 'not used'}",
    ]
    lines += [f"  {name:<18}{'yes' if offered else 'no'}" for name, offered in sorted(report.features.items())]
    lines.append(f"machine code  {path_of(PLANE)}")
    lines.append(f"will be used  {report.chosen}: {report.reason}")
    return "\n".join(lines)
