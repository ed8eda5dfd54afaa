"""A relay in plain Python, in the daemon's place: enough of one for the harness to find nothing wrong with it.

    python -m tests.scripts.bench.relay_standin SOCKET PORT|/UPSTREAM_SOCKET

A thread for each stream. With WRONG_TOKEN in the environment that token of each stream is another.
"""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import threading

from scripts.bench.probe import STANDARD_HEAD

_CONTENT = re.compile(rb'"content":"([^"]*)"')
_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
WRONG_TOKEN = os.environ.get("WRONG_TOKEN", "").encode()


def _connected(upstream: str) -> socket.socket:
    if upstream.startswith("/"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(upstream)
        return connection
    return socket.create_connection(("127.0.0.1", int(upstream)))


def _pass_on(client: socket.socket, text: bytes) -> None:
    if WRONG_TOKEN:
        text = text.replace(b"-%s " % WRONG_TOKEN, b"-X ")
    client.sendall(b'data: {"content":"%s"}\n\n' % text)


def _relay(client: socket.socket, data: bytes, upstream: str) -> None:
    """Both are closed at the upstream's end, and as soon as the client is gone."""
    client.setblocking(True)
    with client, _connected(upstream) as connection:
        connection.sendall(_REQUEST % (len(data), data))
        received, taken, is_begun = b"", 0, False
        while not received.endswith(b"\r\n0\r\n\r\n"):
            ready, _, _ = select.select([connection, client], [], [])
            if client in ready:
                return
            received += connection.recv(65_536)
            whole = received.rfind(b"\n\n")
            for found in _CONTENT.finditer(received, taken, max(whole, taken)):
                if not is_begun:
                    client.sendall(STANDARD_HEAD)
                    is_begun = True
                _pass_on(client, found.group(1))
                taken = found.end()
        client.sendall(b"data: [DONE]\n\n")


def main(path: str, upstream: str) -> None:
    """Take handoffs until a signal ends the process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(1024)
        while True:
            peer, _ = listener.accept()
            with peer:
                data, descriptors, _, _ = socket.recv_fds(peer, 65_536, 1)
            for descriptor in descriptors:
                client = socket.socket(fileno=descriptor)
                threading.Thread(target=_relay, args=(client, data, upstream), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
