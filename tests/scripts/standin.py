"""A daemon in forty lines, for the tests of the programs that talk to one: answers each handoff and ends on a signal.

Started as `python standin.py MODE --socket PATH ...`. MODE `good` answers whole streams, `cut` ends them early, `dies`
logs a line and exits at once.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
STATUS_BY_SIGNAL = {signal.SIGINT: 3, signal.SIGTERM: 4}
EVENT = b'data: {"content":"token"}\n\n'


def _answer(listener: socket.socket, *, whole: bool) -> None:
    connection, _ = listener.accept()
    with connection:
        data, descriptors, _, _ = socket.recv_fds(connection, 65_536, 1)
    print(f"received {data.decode()}", file=sys.stderr, flush=True)
    for descriptor in descriptors:
        with socket.socket(fileno=descriptor) as client:
            client.sendall(HEAD + EVENT)
            time.sleep(0.02)
            client.sendall(EVENT + (b"data: [DONE]\n\n" if whole else b""))


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(STATUS_BY_SIGNAL[signal.Signals(number)])


def main() -> None:
    mode = sys.argv[1]
    if mode == "dies":
        print("the reason for all this", file=sys.stderr, flush=True)
        sys.exit(70)
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    path = Path(sys.argv[sys.argv.index("--socket") + 1])
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            _answer(listener, whole=mode == "good")


if __name__ == "__main__":
    main()
