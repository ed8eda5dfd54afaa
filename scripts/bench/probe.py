"""One stream read in plain Python before a run: what a right answer looks like, number and all."""

from __future__ import annotations

import array
import socket
import time

from scripts.bench.scanning import NUMBER_DIGITS
from scripts.bench.tables import NUMBER_PLACEHOLDER, render

STANDARD_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: close\r\nX-Accel-Buffering: no\r\n\r\n"
)
_PROBE_NUMBER = 10**NUMBER_DIGITS - 1  # 99999999: found again in the answer, and no stream of a run has it
_DONE = b"data: [DONE]\n\n"


class ProbeError(Exception):
    """The one stream before the run was not answered as a stream."""


def hand_over(path: str, socket_type: socket.SocketKind, data: bytes, descriptor: int) -> None:
    """What Apache does: connect, one sendmsg with the data (or one NUL byte) and one descriptor, close."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    with socket.socket(socket.AF_UNIX, socket_type) as peer:
        peer.connect(path)
        peer.sendmsg([data or b"\0"], rights)


def _read_to_end(client: socket.socket, timeout_s: float) -> bytes:
    received = bytearray()
    deadline = time.monotonic() + timeout_s
    while True:
        client.settimeout(max(0.001, deadline - time.monotonic()))
        piece = client.recv(65_536)
        if not piece:
            return bytes(received)
        received += piece


def learn(
    path: str, socket_type: socket.SocketKind, handoff: bytes, timeout_s: float, *, head: bytes = STANDARD_HEAD
) -> bytes:
    """The whole response to one stream, its own number replaced by {number}. ProbeError where it is none.

    It must begin with `head`, whole or the beginning of one.

    What a server does wrong every time cannot be seen this way: give the expected body in a file for that.
    """
    client, sent = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with client:
        with sent:
            sent.setblocking(False)
            hand_over(path, socket_type, render(handoff, _PROBE_NUMBER), sent.fileno())
        try:
            response = _read_to_end(client, timeout_s)
        except OSError as error:
            raise ProbeError(f"the stream before the run failed: {error}") from error
    if not response.startswith(head):
        wanted = "the standard head" if head == STANDARD_HEAD else repr(head)
        raise ProbeError(f"the stream before the run did not begin with {wanted}: {response[:300]!r}")
    if not response.endswith(_DONE):
        raise ProbeError(f"the stream before the run did not end with [DONE]: {response[-300:]!r}")
    return without_comments(response).replace(b"%d" % _PROBE_NUMBER, NUMBER_PLACEHOLDER)


def without_comments(response: bytes) -> bytes:
    """The response less the blocks that begin with a colon: keep-alives depend on time, so nothing may expect them."""
    head, separator, body = response.partition(b"\r\n\r\n")
    blocks = [block + b"\n\n" for block in body.split(b"\n\n")[:-1] if not block.startswith(b":")]
    return head + separator + b"".join(blocks)


def message_count(expected: bytes) -> int:
    """How many messages an expected response holds: blocks less comments and [DONE]."""
    _, _, body = without_comments(expected).partition(b"\r\n\r\n")
    return sum(1 for block in body.split(b"\n\n")[:-1] if block and block + b"\n\n" != _DONE)
