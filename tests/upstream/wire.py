"""One connection's bytes, and how it ends. Runs on the upstream's thread."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_LINGER_NONE = struct.pack("ii", 1, 0)


class Speaker(Protocol):
    """Who speaks on a connection: HTTP/1.1 or HTTP/2."""

    def received(self, data: bytes) -> None:
        """Bytes have come."""

    def lost(self) -> None:
        """The client has left, by FIN or reset, or the connection was closed here."""


class Wire(asyncio.Protocol):
    """A connection. Everything that comes is read at once, so that the client's going is always seen."""

    def __init__(self, begin: Callable[[Wire], Speaker]) -> None:
        """`begin` is called when the connection, TLS included, is made."""
        self._begin = begin
        self._speaker: Speaker | None = None
        self._transport: asyncio.Transport | None = None
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._written_bytes = 0
        self._is_over = False

    # ---- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is made."""
        self._transport = cast("asyncio.Transport", transport)
        # Not 0: asyncio's TLS would pause for good.
        self._transport.set_write_buffer_limits(high=1, low=0)
        found: socket.socket = self._transport.get_extra_info("socket")
        if found.family != socket.AF_UNIX:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._speaker = self._begin(self)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._speaker is not None and not self._is_over:
            self._speaker.received(data)

    def eof_received(self) -> bool:
        """FIN: nobody half-closes here, so the client has left."""
        self._over()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        del exc
        self._over()
        # Python 3.10 warns of a TLS transport that the other side alone has closed.
        self.transport.abort()

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self._flushed.clear()

    def resume_writing(self) -> None:
        """It has taken everything."""
        self._flushed.set()

    def _over(self) -> None:
        self._flushed.set()
        if not self._is_over:
            self._is_over = True
            if self._speaker is not None:
                self._speaker.lost()

    # ---- the speaker's

    @property
    def transport(self) -> asyncio.Transport:
        """The connection; it must be made."""
        assert self._transport is not None
        return self._transport

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be said."""
        return self._is_over

    @property
    def protocol(self) -> str:
        """What ALPN chose; empty where there was none."""
        found: Any = self.transport.get_extra_info("ssl_object")
        return "" if found is None else found.selected_alpn_protocol() or ""

    @property
    def sent_bytes(self) -> int:
        """What the kernel has taken."""
        return self._written_bytes - self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send, or queue."""
        if data and not self._is_over:
            self._written_bytes += len(data)
            self.transport.write(data)

    async def send(self, data: bytes) -> None:
        """Send, and wait until the kernel has taken all of it."""
        self.write(data)
        await self._flushed.wait()

    def close(self) -> None:
        """FIN after what was sent; over TLS with its goodbye."""
        self.transport.close()

    def cut(self) -> None:
        """FIN without a goodbye. What was sent must have been taken."""
        self.transport.abort()

    def reset(self) -> None:
        """RST; on a Unix socket, which has none, the same as a cut."""
        found: socket.socket = self.transport.get_extra_info("socket")
        if found.family != socket.AF_UNIX:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.transport.abort()
