"""Programs that tests start: how they are ended."""

from __future__ import annotations

import subprocess
from typing import Any

STOP_SECONDS_MAX = 30.0


def stop(process: subprocess.Popen[Any]) -> None:
    """End the process; one that does not end is killed and reported, since that is a bug in what it ran."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
