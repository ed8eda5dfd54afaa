"""What `make demo-apache` does: the example site in an Apache of its own, a daemon behind it, until Ctrl-C.

Apache, its module and the site live in a folder that is gone afterwards. The module is mod_socket_handoff where it is
installed, otherwise the stand-in of the tests, which behaves alike.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

from config.library import PLANE, build_command
from scripts.private_apache import (
    NEEDED,
    REAL_MODULE,
    ROOT,
    ApacheError,
    build_stand_in,
    prepare_site,
    require_packages,
    running_apache,
    running_daemon,
)
from scripts.processes import ProgramError
from scripts.run_demo import DemoError, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from scripts.private_apache import Apache

PORT_DEFAULT = 8080
STREAM_TIMEOUT_S = 30.0
PROMPT = "Show me a stream"


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


def _end(_number: int, _frame: FrameType | None) -> None:
    # As Ctrl-C does, so that everything that was started is ended.
    raise KeyboardInterrupt


def show_stream(apache: Apache) -> None:
    """Ask the example site for one stream, as a browser would, and print it as it arrives."""
    path = f"/stream.php?prompt={quote_plus(PROMPT)}"
    _say(f"One stream, by Apache and PHP: curl -N '{apache.base_url}{path}'\n")
    with closing(HTTPConnection("127.0.0.1", apache.port, timeout=STREAM_TIMEOUT_S)) as connection:
        connection.request("GET", path)
        with connection.getresponse() as response:
            for line in response:
                if line.strip():
                    print(f"      {line.decode().rstrip()}", flush=True)


def run(port: int) -> None:
    """The demonstration, until a signal ends it.

    Raises:
        ApacheError, ProgramError, DemoError: something is missing, or does not start.
    """
    require_packages(NEEDED)
    _say("Building the data plane (half a minute, the first time only)")
    if subprocess.run(build_command(PLANE), cwd=ROOT, check=False).returncode != 0:
        raise DemoError("the data plane could not be built")
    root = Path(tempfile.mkdtemp(prefix="streaming-daemon-apache-"))
    try:
        module = REAL_MODULE if REAL_MODULE.exists() else build_stand_in(root)
        prepare_site(root)
        _say(f"Starting Apache with {module.name}, and the daemon, in {root}")
        with running_apache(root, module, port) as apache, running_daemon(apache.default_socket, delay_ms=50):
            show_stream(apache)
            print(flush=True)
            _say(f"Open {apache.base_url}/ in a browser. Ctrl-C ends it.")
            print(f"      logs    tail -f {root}/log/error.log {root}/sockets/daemon.log", flush=True)
            signal.pause()
    finally:
        shutil.rmtree(root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the one option and run the demonstration."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m scripts.demo_apache", description=description)
    parser.add_argument("--port", type=int, default=PORT_DEFAULT, help="the first port to try")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        run(free_port(options.port))
    except (ApacheError, ProgramError, DemoError, OSError, HTTPException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(flush=True)
        _say("Ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
