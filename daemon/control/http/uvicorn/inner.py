"""A stream that is read in this process: the data plane writes to a socket pair, and the front reads its other end.

For answers that are put together before they are sent, and for connections that cannot be taken (TLS, WebSockets).
The stream is admitted, limited and counted like any other; what is read is parsed by httptools.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import httptools

from daemon.control.http.uvicorn.interface import StreamCut
from daemon.control.stream.adoption import Adoption

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemon.control.admission.admission import Admission
    from daemon.control.stream.adoption import Entry

READ_BYTES = 65_536
_LAST_CHUNK = b"0\r\n\r\n"


class InnerStream:
    """One stream, read as the HTTP response that it is."""

    def __init__(self, admission: Admission, entry: Entry) -> None:
        """Open what was let in. Raises OSError where no descriptors are left; the entry is the caller's then."""
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._is_head_complete = False
        self._is_complete = False
        self.status = 0
        self.headers: dict[str, str] = {}
        planes_end, self._socket = socket.socketpair()
        self._socket.setblocking(False)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {entry.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        adoption = Adoption(entry, head.encode(), chunked=True)
        if entry.has_body:
            adoption.expect_body(None, b"", expects_100=False)
        admission.adopt(planes_end.detach(), adoption)

    async def open(self) -> None:
        """Wait for the head: `status` and `headers` are known then. Raises StreamCut."""
        while not self._is_head_complete:
            await self._read()

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises StreamCut where it ends without its true end."""
        return self._body()

    async def body(self, bytes_max: int) -> bytes:
        """The rest of a body that is short."""
        body = b""
        async for piece in self:
            body += piece
            if len(body) > bytes_max:
                raise StreamCut(f"an error is longer than {bytes_max} bytes")
        return body

    async def send(self, data: bytes) -> None:
        """A piece of the upload; waits until it has been taken. Raises StreamCut where the stream is over."""
        if data:
            await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def finish(self) -> None:
        """The upload's end."""
        await self._send(_LAST_CHUNK)

    def leave(self) -> None:
        """End it, as a client that leaves does: who reads here finds it cut."""
        with contextlib.suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Read no further. Nobody may be reading."""
        self._socket.close()

    async def _body(self) -> AsyncIterator[bytes]:
        while True:
            pieces, self._pieces = self._pieces, []
            if pieces:
                yield b"".join(pieces) if len(pieces) > 1 else pieces[0]
            elif self._is_complete:
                return
            else:
                await self._read()

    async def _read(self) -> None:
        try:
            data = await self._loop.sock_recv(self._socket, READ_BYTES)
        except OSError as error:
            raise StreamCut("the stream was cut") from error
        if not data:
            raise StreamCut("the stream was cut")
        self._parser.feed_data(data)

    async def _send(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError as error:
            raise StreamCut("the stream takes no more of the upload") from error

    # ---- what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self.status = self._parser.get_status_code()
        self._is_head_complete = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body, without its framing."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The true end."""
        self._is_complete = True
