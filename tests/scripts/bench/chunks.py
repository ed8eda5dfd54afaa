"""Undoes HTTP's chunked framing, and is strict about it."""

from __future__ import annotations


def without_chunks(framed: bytes) -> bytes:
    """The body in these chunks, which must end with the last one and with nothing after it."""
    rest, body = framed, b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        assert rest[length : length + 2] == b"\r\n", "a chunk is as long as it says"
        rest = rest[length + 2 :]
        if length == 0:
            assert rest == b""
            return body
