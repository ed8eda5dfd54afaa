"""Run a command as on a machine that is slow and busy: `python -m tests.slow_machine [--stop S] [--run S] COMMAND ...`.

The command and what it starts in its process group are stopped for a while, again and again, so that whatever counts
on a quiet machine shows itself: `python -m tests.slow_machine .venv/bin/python -m pytest -n 0 tests/behaviour`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time


def main() -> int:
    """The command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stop", type=float, default=0.3, help="seconds for which everything stands still, about")
    parser.add_argument("--run", type=float, default=0.2, help="seconds for which it runs in between, about")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("a command is missing")
    process = subprocess.Popen(arguments.command, start_new_session=True)
    try:
        while process.poll() is None:
            time.sleep(arguments.run * random.uniform(0.3, 1.7))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGSTOP)
                time.sleep(arguments.stop * random.uniform(0.3, 1.7))
                os.killpg(process.pid, signal.SIGCONT)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
