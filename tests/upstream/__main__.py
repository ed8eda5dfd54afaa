"""The upstream by hand: `python -m tests.upstream --tcp-port 8080`, then a pattern in X-Test-Pattern or --pattern."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from tests.upstream.patterns import names, plan_named
from tests.upstream.server import Upstream


def main() -> int:
    """Serve until a signal, and print every request."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.upstream",
        description="An OpenAI-compatible upstream that goes wrong on purpose.",
        epilog="Patterns, for --pattern or the header X-Test-Pattern: " + ", ".join(names()),
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--tcp-port", type=int, default=0, help="HTTP/1.1, and HTTP/2 by prior knowledge; 0 = any")
    parser.add_argument("--tls-port", type=int, default=0, help="HTTP/1.1 or HTTP/2 by ALPN; 0 = any")
    parser.add_argument("--unix-path", default="", help="a Unix socket; empty = one in a directory of its own")
    parser.add_argument("--pattern", default="", help="what a request gets that names no pattern itself")
    options = parser.parse_args()
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with Upstream(
        tcp_port=options.tcp_port, tls_port=options.tls_port, unix_path=options.unix_path, host=options.host
    ) as upstream:
        if options.pattern:
            upstream.journal.default = plan_named(options.pattern)
        _say(f"{upstream.base} {upstream.tls_base} {upstream.unix_path} ca_file={upstream.ca_file}")
        seen = 0
        while not stopped.wait(0.2):
            for request in upstream.requests()[seen:]:
                seen += 1
                _say(f"{request.number} {request.protocol} {request.method} {request.path} model={request.model!r}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
