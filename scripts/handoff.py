"""Hands one stream to a running daemon, exactly as Apache's module does, and shows what comes back.

A handoff is one message on a Unix socket: JSON as its bytes, and the client's socket beside it as SCM_RIGHTS. Here the
client is a socket pair: one end goes to the daemon, the other is read and printed.

    python -m scripts.handoff --socket ./run/streaming-daemon.sock 'Tell me a story'
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SOCKET_DEFAULT = Path("run/streaming-daemon.sock")
READ_BYTES_MAX = 65_536
DONE_LINE = "data: [DONE]"
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
ADVICE = {
    errno.ENOENT: "no daemon has been started there, or it has ended: `make run` starts one",
    errno.ECONNREFUSED: "the daemon there has ended",
    errno.EACCES: "the socket's owner and mode say who may",
    errno.EPROTOTYPE: "the daemon speaks the other socket type: try the other --socket-type",
}
SOCKET_TYPES = {"seqpacket": socket.SOCK_SEQPACKET, "stream": socket.SOCK_STREAM}


def hand_over(
    daemon_path: Path, handoff: Mapping[str, object], socket_type: socket.SocketKind = socket.SOCK_SEQPACKET
) -> socket.socket:
    """Hand a new client to the daemon and return the client's end.

    An empty handoff is sent as one NUL byte, because a descriptor cannot travel without any byte beside it.

    Raises:
        OSError: no daemon answers on this path, or it speaks the other socket type.
    """
    data = json.dumps(handoff, ensure_ascii=False).encode() if handoff else b"\0"
    client, daemon_end = socket.socketpair()
    try:
        with daemon_end, socket.socket(socket.AF_UNIX, socket_type) as channel:
            channel.connect(str(daemon_path))
            socket.send_fds(channel, [data], [daemon_end.fileno()])
    except OSError:
        client.close()
        raise
    return client


def received_lines(client: socket.socket) -> Iterator[str]:
    """The lines of a response as they arrive, without their ends; returns when the daemon has closed.

    Raises:
        ConnectionResetError: the daemon ended while something that it had not read was on its way.
    """
    pending = b""
    while received := client.recv(READ_BYTES_MAX):
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
    if pending:
        yield pending.decode(errors="replace")


def show_stream(client: socket.socket, output: TextIO, started_s: float) -> bool:
    """Print a response as it arrives, each event with the time since `started_s`; true if it ended with [DONE].

    The head is dimmed on a terminal: what matters is the stream.
    """
    dim, plain = (DIM, PLAIN) if output.isatty() and "NO_COLOR" not in os.environ else ("", "")
    in_head, done = True, False
    for line in received_lines(client):
        if in_head:
            in_head = line != ""
            print(f"{dim}            {line}{plain}" if line else "", file=output, flush=True)
        elif line:
            elapsed_ms = (time.monotonic() - started_s) * 1_000
            print(f"{dim}{elapsed_ms:8.1f} ms{plain} {line}", file=output, flush=True)
            done = done or line == DONE_LINE
    return done


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.handoff", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default="Hello", help="what to ask (default: %(default)s)")
    parser.add_argument(
        "--socket", type=Path, default=SOCKET_DEFAULT, help="the daemon's socket (default: %(default)s)"
    )
    parser.add_argument("--socket-type", choices=sorted(SOCKET_TYPES), default="seqpacket")
    parser.add_argument("--user-id", type=int, default=1, help="who asks (default: %(default)s)")
    parser.add_argument("--backend", help="the backend to ask (default: the daemon's)")
    parser.add_argument("--data", help="the whole handoff as JSON, in place of the options above")
    return parser.parse_args(arguments)


def _handoff_from(options: argparse.Namespace) -> Mapping[str, object]:
    """The handoff that the options describe.

    Raises:
        ValueError: --data is no JSON object.
    """
    if options.data is not None:
        handoff: object = json.loads(options.data)
        if not isinstance(handoff, dict):
            raise ValueError("it is no object")
        return cast("dict[str, object]", handoff)
    handoff_fields: dict[str, object] = {"user_id": options.user_id, "prompt": options.prompt}
    if options.backend is not None:
        handoff_fields["backend"] = options.backend
    return handoff_fields


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand one stream over and show it; 0 if it ended whole, 1 if it did not, 2 if it could not begin."""
    options = _parse(arguments)
    started_s = time.monotonic()
    try:
        client = hand_over(options.socket, _handoff_from(options), SOCKET_TYPES[options.socket_type])
    except ValueError as error:
        print(f"--data must be a JSON object: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        advice = f" ({ADVICE[error.errno]})" if error.errno in ADVICE else ""
        print(f"cannot hand over to {options.socket}: {error.strerror or error}{advice}", file=sys.stderr)
        return 2
    try:
        with client:
            if show_stream(client, sys.stdout, started_s):
                return 0
            print("the stream ended without [DONE]: it is not whole, or was no stream", file=sys.stderr)
            return 1
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does. Nothing may be left for the interpreter to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConnectionError as error:
        print(f"the stream was cut: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
