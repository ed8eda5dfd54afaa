"""Closing a connection whose client may still be sending, so that what was said to it is not destroyed.

Closing a socket with unread input sends a reset, and a reset can overtake the response. So our side is shut down, what
comes is thrown away for a while, and then the socket is closed. Nothing here knows the daemon.
"""

from __future__ import annotations

import asyncio
from typing import Any

LINGER_S = 2.0
DISCARDED_BYTES_MAX = 1 << 20


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` lingers. The rest is the inner transport's."""

    def __init__(self, inner: asyncio.Transport) -> None:
        """Its protocol calls `discard` with what comes after `close`, and `lost` in its `connection_lost`."""
        super().__init__()
        self.inner = inner
        self._is_closing = False
        self._discarded_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Say that nothing more is sent, and close soon."""
        if self._is_closing:
            return
        self._is_closing = True
        if self.inner.is_closing() or not self.inner.can_write_eof():  # TLS has no half-closed connections
            self.inner.close()
            return
        try:
            self.inner.write_eof()
            self.inner.resume_reading()
        except (OSError, RuntimeError):  # it was reset meanwhile
            self.inner.close()
            return
        self._deadline = asyncio.get_running_loop().call_later(LINGER_S, self.inner.abort)

    def discard(self, byte_count: int) -> None:
        """So much has come after `close`."""
        self._discarded_bytes += byte_count
        if self._discarded_bytes > DISCARDED_BYTES_MAX:
            self.inner.abort()

    def lost(self) -> None:
        """The connection is gone."""
        self._is_closing = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def is_closing(self) -> bool:
        """Whether `close` or `abort` has been called."""
        return self._is_closing or self.inner.is_closing()

    def abort(self) -> None:
        """Close at once; what has not been sent is lost."""
        self._is_closing = True
        self.inner.abort()

    def write(self, data: Any) -> None:  # noqa: ANN401  (asyncio's)
        """Send, or keep until it can be sent."""
        if not self._is_closing:
            self.inner.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  (asyncio's)
        """The inner transport's."""
        return self.inner.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Bytes that have not been sent."""
        return self.inner.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Read no more for now."""
        if not self._is_closing:
            self.inner.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self.inner.is_closing():
            self.inner.resume_reading()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The inner transport's."""
        return self.inner.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol hear of the connection."""
        self.inner.set_protocol(protocol)
