"""Transports that end: with a client that does not read, and with one that may still be sending.

What a client does not read is kept for it, in the kernel and here. So whoever takes nothing of it for a while is cut
off, and whoever takes it slowly is not, also where all has been said and the connection only waits to be closed.

Closing a socket with unread input sends a reset, and a reset can overtake the response. So our side is shut down, what
comes is thrown away for a while, and then the socket is closed. Nothing here knows the daemon.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any

LINGER_S = 2.0
DISCARDED_BYTES_MAX = 1 << 20
WRITE_TIMEOUT_S = 30.0
LOOK_S_MIN, LOOK_S_MAX = 0.001, 0.5  # how soon it is looked for the first time whether a client reads, and how often


class WatchedTransport(asyncio.Transport):
    """A transport whose client must read: `writing_paused` and `close` begin to watch it. The rest is the inner one's.

    Reading stops while writing does, where `pairs_reading` is set: for protocols that answer what comes by themselves.
    """

    def __init__(
        self, inner: asyncio.Transport, write_timeout_s: float = WRITE_TIMEOUT_S, *, pairs_reading: bool = False
    ) -> None:
        """A client that takes nothing for `write_timeout_s` is cut off. Its protocol calls `lost` in the end."""
        super().__init__()
        self.inner = inner
        self._write_timeout_s = write_timeout_s
        self._pairs_reading = pairs_reading
        self._is_closing = False
        self._is_lost = False
        self._is_reading_paused = False  # by the protocol
        self._is_reading_held = False  # because nothing can be written
        self._look_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._progress_s = 0.0

    # ---- who does not read

    def writing_paused(self) -> None:
        """More waits to be sent than should."""
        self._watch()
        if self._pairs_reading:
            self._is_reading_held = True
            self.inner.pause_reading()

    def writing_resumed(self) -> None:
        """It has been sent."""
        if self._is_reading_held:
            self._is_reading_held = False
            if not self._is_reading_paused:
                self.resume_reading()

    def _watch(self) -> None:
        if self._look_timer is None and not self._is_lost:
            self._unsent_bytes = self._count_unsent()
            loop = asyncio.get_running_loop()
            self._progress_s = loop.time()
            # uvloop sends at the end of its turn, and then there may be nothing left to wait for.
            self._look_timer = loop.call_later(LOOK_S_MIN, self._look)

    def _look(self) -> None:
        self._look_timer = None
        loop = asyncio.get_running_loop()
        unsent_bytes, now_s = self._count_unsent(), loop.time()
        if unsent_bytes < self._unsent_bytes:
            self._progress_s = now_s
        self._unsent_bytes = unsent_bytes
        if self.inner.get_write_buffer_size() == 0:
            if self._is_closing:
                self.flushed()
        elif now_s - self._progress_s >= self._write_timeout_s:
            self.abort()
        else:
            self._look_timer = loop.call_later(min(LOOK_S_MAX, self._write_timeout_s / 4), self._look)

    def _count_unsent(self) -> int:
        """Bytes that the client has not acknowledged: those that wait here, and those in the kernel."""
        kept = self.inner.get_write_buffer_size()
        found = self.inner.get_extra_info("socket")
        if found is None or found.fileno() < 0:
            return kept
        try:
            (in_kernel,) = struct.unpack("i", fcntl.ioctl(found.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
        except OSError:  # it was reset meanwhile
            return kept
        return kept + int(in_kernel)

    # ---- the end

    def close(self) -> None:
        """Close when all has been sent."""
        if self._is_closing:
            return
        self._is_closing = True
        if self.inner.get_write_buffer_size() > 0:
            self._watch()
        self.inner.close()

    def flushed(self) -> None:
        """All has been sent that was to be sent before the end."""

    def lost(self) -> None:
        """The connection is gone."""
        self._is_closing = self._is_lost = True
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None

    def is_closing(self) -> bool:
        """Whether `close` or `abort` has been called."""
        return self._is_closing or self.inner.is_closing()

    def abort(self) -> None:
        """Close at once; what has not been sent is lost."""
        self._is_closing = True
        self.inner.abort()

    # ---- the inner one's

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
        self._is_reading_paused = True
        if not self._is_closing:
            self.inner.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._is_reading_paused = False
        if not self._is_reading_held and not self.inner.is_closing():
            self.inner.resume_reading()

    def yield_reading(self) -> None:
        """Let others have their turn before more is read."""
        if not self._is_reading_paused and not self._is_reading_held and not self.inner.is_closing():
            self.inner.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._is_reading_paused and not self._is_lost:
            self.resume_reading()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The inner transport's."""
        return self.inner.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol hear of the connection."""
        self.inner.set_protocol(protocol)


class LingeringTransport(WatchedTransport):
    """A transport whose `close` lingers: its protocol calls `discard` with what comes after it."""

    def __init__(self, inner: asyncio.Transport, write_timeout_s: float = WRITE_TIMEOUT_S) -> None:
        """As for WatchedTransport."""
        super().__init__(inner, write_timeout_s)
        self._discarded_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._is_cut = False

    def close(self) -> None:
        """Say that nothing more is sent, and close soon."""
        if self._is_closing:
            return
        self._is_closing = True
        if self.inner.is_closing():
            return
        has_unsent = self.inner.get_write_buffer_size() > 0
        try:
            if self.inner.can_write_eof():
                self.inner.write_eof()
            self.inner.resume_reading()
        except (OSError, RuntimeError):  # it was reset meanwhile
            self.inner.close()
            return
        if has_unsent:
            self._watch()
        else:
            self.flushed()

    def cut(self) -> None:
        """Send what waits, and close without the end that TLS has: what was said is not all that was to be said."""
        if self._is_closing:
            return
        self._is_closing = self._is_cut = True
        if self.inner.get_write_buffer_size() > 0:
            self._watch()
        else:
            self.inner.abort()

    def flushed(self) -> None:
        """The client has some more time to read it."""
        if self._is_cut:
            self.inner.abort()
        elif not self.inner.can_write_eof():  # TLS has no half-closed connections
            self.inner.close()
        elif self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(LINGER_S, self.inner.abort)

    def discard(self, byte_count: int) -> None:
        """So much has come after `close`."""
        self._discarded_bytes += byte_count
        if self._discarded_bytes > DISCARDED_BYTES_MAX:
            self.inner.abort()

    def lost(self) -> None:
        """The connection is gone."""
        super().lost()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
