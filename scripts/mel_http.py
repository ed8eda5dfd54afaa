"""Uploads for `scripts.mel_client`: POST /audio/stream, with the audio sent and the features read at the same time."""

from __future__ import annotations

import re
import socket
import time
import urllib.parse
from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_TIMEOUT_S = 10.0
SEND_BYTES_MAX = 1 << 18
_URL = re.compile(r"http://(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^/:\[\]]+)):(?P<port>\d{1,5})/?")


class Upload:
    """One request: what of it has still to be sent, and the response without its framing."""

    def __init__(self, url: str, query: Mapping[str, str | int], body: bytes) -> None:
        """Connect. ValueError for what is no URL, OSError where nobody listens."""
        found = _URL.fullmatch(url)
        if found is None:
            raise ValueError(f"{url} is no http://HOST:PORT")
        host = found["v6"] or found["host"]
        self.client = socket.create_connection((host, int(found["port"])), CONNECT_TIMEOUT_S)
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client.setblocking(False)
        head = (
            f"POST /audio/stream?{urllib.parse.urlencode(query)} HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: audio/wav\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._unsent = [memoryview(head.encode()), memoryview(body)]
        self._parser = httptools.HttpResponseParser(self)
        self._arrived = b""

    @property
    def has_unsent(self) -> bool:
        """Whether more of the audio is to be sent."""
        return bool(self._unsent)

    def send(self) -> None:
        """As much as the socket takes at once."""
        try:
            sent = self.client.send(self._unsent[0][:SEND_BYTES_MAX])
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()  # the daemon has answered already: it is read why
            return
        self._unsent[0] = self._unsent[0][sent:]
        if not self._unsent[0]:
            self._unsent.pop(0)

    def take(self, data: bytes) -> bytes:
        """The response as it would be without its framing: a head, and the body."""
        self._arrived = b""
        self._parser.feed_data(data)
        return self._arrived

    def on_headers_complete(self) -> None:
        """For the parser."""
        self._arrived += f"HTTP/1.1 {self._parser.get_status_code()} \r\n\r\n".encode()

    def on_body(self, body: bytes) -> None:
        """For the parser."""
        self._arrived += body


def sustained(audio_s: float, began_s: float) -> float:
    """Seconds of audio for each second since the beginning."""
    return audio_s / (time.monotonic() - began_s)
