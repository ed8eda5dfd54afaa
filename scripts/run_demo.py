"""What `make run` does once the program is installed: build the data plane, start the daemon, show a stream, stay.

The daemon runs in a session of its own, so that Ctrl-C reaches only this program, which passes it on once: the daemon
takes a second signal as the wish to end at once, without draining.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from config.library import PLANE, build_command
from scripts.handoff import SOCKET_DEFAULT, hand_over, show_stream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
METRICS_PORT_DEFAULT = 9090
HTTP_PORT_DEFAULT = 8000
PORTS_TRIED_MAX = 20
START_TIMEOUT_S = 60.0
START_POLL_S = 0.05
LOG_LINES_SHOWN_MAX = 40
STREAM_TIMEOUT_S = 30.0
DAEMON = (sys.executable, "-m", "daemon")
PASSED_ON = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    # A closed terminal ends the demo; to the daemon itself SIGHUP would mean: reload, and run on unseen.
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
}


class DemoError(Exception):
    """The demo cannot go on; the message says why, to the person in front of it."""


def someone_listens(path: Path) -> bool:
    """Whether a process answers on this socket already."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def free_port(first: int) -> int:
    """The first free port on 127.0.0.1, from this one on.

    Raises:
        DemoError: none of them is free.
    """
    for port in range(first, first + PORTS_TRIED_MAX):
        with socket.socket() as probe:
            # As the daemon binds: connections of an earlier run that are in TIME_WAIT are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DemoError(f"no free port from {first} to {first + PORTS_TRIED_MAX - 1}")


class Demo:
    """One daemon process with its socket and its log."""

    def __init__(self, socket_path: Path, metrics_port: int, http_port: int, command: Sequence[str] = DAEMON) -> None:
        self.socket_path = socket_path
        self.metrics_port = metrics_port
        self.http_port = http_port
        self.log_path = socket_path.with_suffix(".log")
        self.stopping = False
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def build(self) -> None:
        """Build the data plane's machine code where it is missing or stale, with progress on the terminal.

        Raises:
            DemoError: it failed; the compiler has said why.
        """
        status = subprocess.run(build_command(PLANE), cwd=ROOT, check=False).returncode
        if status != 0:
            raise DemoError(f"the data plane could not be built (status {status})")

    def start(self) -> None:
        """Start the daemon, its log in a file, and pass this program's signals on to it.

        Raises:
            DemoError: another daemon has the socket.
        """
        self.socket_path.parent.mkdir(parents=True, exist_ok=True)
        if someone_listens(self.socket_path):
            raise DemoError(
                f"a daemon listens on {self.socket_path} already: stop it, or hand a stream to it with\n"
                f"  {self.handoff_command()}"
            )
        options = ["--socket", str(self.socket_path), "--delay", "50"]
        options += ["--metrics", f"127.0.0.1:{self.metrics_port}", "--log-format", "text"]
        options += ["--http", f"127.0.0.1:{self.http_port}"]
        for caught in PASSED_ON:
            signal.signal(caught, self._pass_on)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, *options], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        if self.stopping:
            # The signal came before there was a process to pass it on to.
            self._process.terminate()

    def hand_over_when_ready(self) -> socket.socket:
        """Hand the first stream over as soon as the daemon takes it; returns the client's end.

        The attempt itself is the probe: a connection without a handoff would be counted as a rejected one.

        Raises:
            DemoError: the daemon ended, or does not listen in time.
        """
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self.status() is not None:
                raise DemoError(f"the daemon ended with status {self.status()} before it was ready")
            try:
                return hand_over(self.socket_path, {"user_id": 1, "prompt": "Show me a stream"})
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(START_POLL_S)
        raise DemoError(f"the daemon did not listen on {self.socket_path} within {START_TIMEOUT_S:.0f} s")

    def status(self) -> int | None:
        """The daemon's exit status as a shell would give it, or None while it runs."""
        assert self._process is not None, "start() comes first"
        returned = self._process.poll()
        return 128 - returned if returned is not None and returned < 0 else returned

    def wait(self) -> int:
        """Wait until the daemon has ended and return its exit status."""
        assert self._process is not None, "start() comes first"
        self._process.wait()
        status = self.status()
        assert status is not None, "it was waited for"
        return status

    def stop(self) -> None:
        """End the daemon if it runs: drained if it can, killed if it does not end."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """The last lines of the daemon's log."""
        if self._process is None:
            return ""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES_SHOWN_MAX:])

    def handoff_command(self) -> str:
        """The command that hands another stream over, for this socket."""
        return f"{_shown(Path(sys.executable))} -m scripts.handoff --socket {_shown(self.socket_path)} 'Your prompt'"

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        passed_on = PASSED_ON[signal.Signals(number)]
        self.stopping = self.stopping or passed_on is not signal.SIGUSR1
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(passed_on)


def _shown(path: Path) -> str:
    """The path as a person would type it: relative to the project where it lies inside."""
    # Not resolved: .venv/bin/python is a link out of the project.
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


def _show_first_stream(demo: Demo) -> None:
    with demo.hand_over_when_ready() as client:
        client.settimeout(STREAM_TIMEOUT_S)
        _say("One stream, handed over as Apache does it (its socket over SCM_RIGHTS, the request as JSON):\n")
        try:
            whole = show_stream(client, sys.stdout, time.monotonic())
        except OSError as error:
            raise DemoError(f"the stream was cut: {error}") from error
    if not whole and not demo.stopping:
        raise DemoError("the stream ended without its [DONE]")
    print(flush=True)


def _say_what_next(demo: Demo) -> None:
    _say("The daemon runs until Ctrl-C. From another terminal, in this directory:")
    print(
        f"""
      in a browser     http://127.0.0.1:{demo.http_port}/ (a chat), http://127.0.0.1:{demo.http_port}/docs (the API)
      by curl          curl -N http://127.0.0.1:{demo.http_port}/v1/completions -H 'Content-Type: application/json' \\
                         -d '{{"model": "test-model", "prompt": "Hello", "stream": true}}'
      by openai        OPENAI_BASE_URL=http://127.0.0.1:{demo.http_port}/v1 OPENAI_API_KEY=none python ...
      handed over      {demo.handoff_command()}
      metrics          curl -s http://127.0.0.1:{demo.metrics_port}/metrics | grep streaming_daemon
      health           curl -s http://127.0.0.1:{demo.metrics_port}/ready
      its log          tail -f {_shown(demo.log_path)}

    The HTTP front: docs/http.md.
    Behind Apache: docs/deployment.md. Every setting: docs/settings.md. How it works: docs/architecture.md.
""",
        flush=True,
    )


def run(demo: Demo) -> int:
    """The demo from the build to the daemon's end; returns the daemon's exit status."""
    try:
        _say("Building the data plane (half a minute, the first time only)")
        demo.build()
        _say(f"Starting the daemon on {_shown(demo.socket_path)}")
        demo.start()
        _show_first_stream(demo)
    except DemoError as error:
        if demo.stopping:
            return demo.wait()
        print(f"error: {error}", file=sys.stderr)
        if log := demo.log_tail():
            print(f"\nThe end of its log ({_shown(demo.log_path)}):\n{log}", file=sys.stderr)
        demo.stop()
        return 1
    if not demo.stopping:
        _say_what_next(demo)
    status = demo.wait()
    _say("The daemon has ended." if status == 0 else f"The daemon ended with status {status}:\n{demo.log_tail()}")
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the few options and run the demo."""
    parser = argparse.ArgumentParser(prog="python -m scripts.run_demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--socket", type=Path, default=ROOT / SOCKET_DEFAULT, help="where the daemon listens")
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT_DEFAULT, help="the first port to try")
    parser.add_argument("--http-port", type=int, default=HTTP_PORT_DEFAULT, help="the first to try for the HTTP front")
    options = parser.parse_args(arguments)
    try:
        return run(Demo(options.socket.absolute(), free_port(options.metrics_port), free_port(options.http_port)))
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Only before the daemon started: from then on its signals are passed on.
        return 130


if __name__ == "__main__":
    sys.exit(main())
