"""Taking a request's socket out of uvicorn: an ASGI extension for this daemon and for any application.

`TakingProtocol` is given to uvicorn as `http=`. An application finds `scope["extensions"]["streaming_daemon.take"]`:

- `take`: a coroutine function without arguments. It returns a `Taken`: a descriptor of the connection that is the
  caller's from then on, and what has been read of the request's body. uvicorn forgets the connection; nothing may be
  sent through ASGI any more. It must come before the response begins, and raises `ClientGone` where nobody is left.

A body is read no further than its head until the application calls `receive`, so whoever takes the socket without
calling it gets every byte of it, either in `Taken.unread` or from the descriptor. After `receive` has been called, the
body must be read to its end first. The extension is absent under TLS, where a descriptor is of no use.

Nothing here knows the daemon: docs/http.md has an application that hands its sockets over.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from daemon.control.http.uvicorn.lingering import WRITE_TIMEOUT_S, LingeringTransport, WatchedTransport
from daemon.control.http.uvicorn.request_head import (
    BodyListener,
    body_head,
    fault_of,
    fault_of_websocket,
    has_body,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

EXTENSION = "streaming_daemon.take"
ABORT = "streaming_daemon.abort"  # `abort()` ends the connection without a response's true end; also under TLS
# With this key `http.response.start` is not sent: it has been through all middleware, and its sender reads its headers.
HEADERS_KEY = "streaming_daemon.headers"
HEAD_BYTES_MAX = 16_384
HEAD_TIMEOUT_S = 10.0
# What one read takes while a head, or a body that nobody has asked for, is coming: so much is unread at most.
HELD_BYTES_MAX = 3584
BODY_READ_BYTES = 65_536
WEBSOCKET_READ_BYTES = 8192  # a message can be as short as 6 bytes, and each costs as much as a long one
REFUSED_MAX = 32  # connections beyond those allowed that are told so; any more are closed without a word
DRAIN_POLL_S = 0.001
DRAIN_S = 10.0
_HEAD_END = b"\r\n\r\n"


class ClientGone(OSError):  # noqa: N818  (the condition's name)
    """The client has left, so there is no socket to take."""


class Bounds(NamedTuple):
    """What clients may take up."""

    head_bytes_max: int = HEAD_BYTES_MAX
    head_timeout_s: float = HEAD_TIMEOUT_S
    connections_max: int = 0  # 0: no limit
    write_timeout_s: float = WRITE_TIMEOUT_S  # for which a client may take nothing of what waits for it


class Taken(NamedTuple):
    """A connection that was taken."""

    fd: int  # the caller's to close
    unread: bytes  # what has been read behind the head, as it came: framing of chunks included
    expects_100: bool  # the client waits for `100 Continue`, which has not been sent
    client_address: str


class Exchange:
    """One request and its response, as far as taking is concerned."""

    __slots__ = ("cycle", "is_held", "is_to_the_end", "protocol")

    def __init__(self, protocol: RequestProtocol, cycle: RequestResponseCycle) -> None:
        """The head has been parsed."""
        self.protocol = protocol
        self.cycle = cycle
        self.is_held = True  # what is behind the head has not been parsed
        self.is_to_the_end = False  # the response has no length, and ends with the connection

    def cut(self) -> None:
        """End the connection without the response's true end."""
        transport = cast("LingeringTransport", self.protocol.transport)
        if self.is_to_the_end or not self.cycle.response_started:
            transport.cut()
        else:
            transport.close()  # the framing says that something is missing, and what was said still arrives

    async def take(self) -> Taken:
        """See the module. Raises ClientGone, or OSError where no descriptor is left: then nothing has changed."""
        return await self.protocol.take(self)


class RequestProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which reads a body only when the application asks for it, and lets go of its socket."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008  (immutable)
        answered: Callable[[dict[str, Any] | None, int], None] | None = None,
    ) -> None:
        """As uvicorn makes it, which leaves the rest as it is.

        `answered` is told each response's status, with the request's scope where it could be parsed.
        """
        super().__init__(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        self._application = self.app
        self.app = cast("Any", self._serve)
        self._bounds = bounds
        self._answered = answered
        self._exchange: Exchange | None = None
        self.held = b""
        self._head_tail = b""  # the last bytes of a head that is not complete, in which its end may begin
        self._head_bytes = 0
        self._is_head_complete = False
        self._head_deadline: asyncio.TimerHandle | None = None
        self._is_skipping = False
        self._is_body_missed = False  # the parser thinks that what follows the head is another protocol's
        self._body_left: int | None = None  # of the body's bytes, where its head gave their number
        self.successor: asyncio.Protocol | None = None  # a WebSocket's protocol, once it has taken over

    # ---- what comes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected, and must have sent a head in time."""
        super().connection_made(cast("Any", LingeringTransport(transport, self._bounds.write_timeout_s)))
        self._await_head()
        excess = len(self.connections) - self._bounds.connections_max
        if self._bounds.connections_max > 0 and excess > REFUSED_MAX:
            self.transport.abort()  # those that are being refused take descriptors, too
        elif self._bounds.connections_max > 0 and excess > 0:
            self.refuse(503, "as many connections as are allowed are open")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or its socket was taken."""
        self._head_arrived()
        cast("LingeringTransport", self.transport).lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser no further than to the end of a head; what is behind it waits for the application."""
        if self.transport.is_closing():
            cast("LingeringTransport", self.transport).discard(len(data))
            return
        exchange = self._exchange
        if exchange is None:
            self._head_received(data)
        elif exchange.is_held or not exchange.cycle.more_body:
            self.held += data
            self.flow.pause_reading()
        else:
            self._body_received(data)

    def _body_received(self, data: bytes) -> None:
        """Feed the parser the body, and no further where its length is known."""
        if self._body_left is None:
            super().data_received(data)
            return
        piece, rest = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(piece)
        if rest:
            self.held = rest
            self.flow.pause_reading()
        super().data_received(piece)

    def _head_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._head_deadline is None:
            self._await_head()
        rest = data
        while rest:
            known = len(self._head_tail)
            found = (self._head_tail + rest).find(_HEAD_END)
            if found < 0:
                self._head_tail, piece, rest = (self._head_tail + rest)[-3:], rest, b""
            else:
                end = found + len(_HEAD_END) - known
                piece, rest = rest[:end], rest[end:]
                self._head_tail = b""
            self._head_bytes += len(piece)
            if self._head_bytes > self._bounds.head_bytes_max:
                self.refuse(431, f"the request's head is larger than {self._bounds.head_bytes_max} bytes")
                return
            self._is_head_complete = False
            super().data_received(piece)
            if self._is_head_complete or self.transport.is_closing():
                self._hold(rest)
                return

    def _hold(self, rest: bytes) -> None:
        """A head has been parsed, and `rest` came behind it."""
        self._head_arrived()
        self._head_bytes = 0
        if self.successor is not None:
            if rest and not self.transport.is_closing():
                self.successor.data_received(rest)
            return
        if self._exchange is None:
            return
        if self._is_body_missed:
            self._find_body()
        self.held = rest
        if rest or self.cycle.more_body:
            self.flow.pause_reading()

    def on_headers_complete(self) -> None:
        """The application is started; it finds the extension in its scope."""
        self._is_head_complete = True
        if self._exchange is not None:
            self._skip()
            return
        version = self.parser.get_http_version()
        fault = fault_of(version, self.headers)
        if fault is None and self.parser.should_upgrade() and self._should_upgrade():
            fault = fault_of_websocket(self.parser.get_method(), version, self.headers)
        if fault is not None:
            self._is_skipping = True
            self.refuse(*fault, self.headers)
            return
        self.begin()

    def begin(self) -> None:
        """Start the application on the head that has been parsed."""
        earlier = self.cycle
        super().on_headers_complete()
        if self.cycle is earlier:
            return  # a WebSocket
        exchange = Exchange(self, self.cycle)
        scope = cast("dict[str, Any]", self.scope)
        scope["streaming_daemon.exchange"] = exchange
        extensions: dict[str, Any] = {ABORT: {"abort": exchange.cut}}
        if self.scheme == "http":
            extensions[EXTENSION] = {"take": exchange.take}
        scope["extensions"] = extensions
        self._exchange = exchange
        length = next((value for name, value in self.headers if name == b"content-length"), None)
        self._body_left = None if length is None else int(length)
        self._is_body_missed = bool(self.parser.should_upgrade()) and has_body(self.headers)

    def _find_body(self) -> None:
        """The client offered another protocol, which is not taken up, and sent a body: one of HTTP, as it is told.

        The parser would read it as the next request, so another takes its place; the connection ends with the response.
        """
        self._is_body_missed = False
        self.cycle.keep_alive = False
        self.parser = httptools.HttpRequestParser(BodyListener(self.on_body, self.on_message_complete))
        self.parser.feed_data(body_head(self.headers))

    def _skip(self) -> None:
        """A request came in one piece with the chunked body before it, so that it was parsed before its turn.

        It could not be held as others are, and is not answered: the connection ends with the response before it, which
        tells its client to send it again.
        """
        self._is_skipping = True
        self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._is_skipping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if not self._is_skipping and not self._is_body_missed:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is over; the next one may have come already."""
        super().on_response_complete()
        if self._is_skipping:
            self.transport.close()
        if self.transport.is_closing():
            return
        self._exchange = None
        held, self.held = self.held, b""
        if held:
            self.data_received(held)

    def _release(self, exchange: Exchange) -> None:
        """Feed the parser what waits: the application wants it, or has answered."""
        if not exchange.cycle.more_body or self.transport.is_closing():
            return  # what waits is the next request
        exchange.is_held = False
        held, self.held = self.held, b""
        self.flow.resume_reading()
        if held:
            self._body_received(held)

    # ---- the application

    async def _serve(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[..., Any]) -> None:
        exchange: Exchange = scope.pop("streaming_daemon.exchange")

        async def receive_body() -> Any:  # noqa: ANN401  (ASGI's)
            if exchange.is_held:
                self._release(exchange)
            return await receive()

        async def send_response(message: Any) -> None:  # noqa: ANN401  (ASGI's)
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
            if HEADERS_KEY in message:
                return  # it was only to learn what middleware adds to it
            if scope["http_version"] == "1.0":
                _frame_for_http_10(exchange, message)
            if exchange.is_held:
                self._release(exchange)
            if exchange.cycle.more_body:
                # The rest of the body is not wanted, and may be long: it is not waited for.
                exchange.cycle.keep_alive = False
            await send(message)

        await self._application(scope, receive_body, send_response)

    async def take(self, exchange: Exchange) -> Taken:
        """Let go of the socket: `Exchange.take`."""
        cycle, transport = exchange.cycle, self.transport
        assert self.scheme == "http", "the extension is absent under TLS"
        if cycle.response_started or (not exchange.is_held and cycle.more_body):
            raise RuntimeError("take comes before the response begins, and before the body is read or after its end")
        deadline_s = self.loop.time() + DRAIN_S
        # The end of an earlier response, of which asyncio tells nobody but its own flow control.
        while transport.get_write_buffer_size() > 0 and not cycle.disconnected:
            if self.loop.time() > deadline_s:
                cycle.disconnected = True
                transport.abort()
                raise ClientGone("the client does not read what it was sent before")
            await asyncio.sleep(DRAIN_POLL_S)
        if cycle.disconnected or transport.is_closing():
            raise ClientGone("the client has left")
        held, fd = self.held, self.let_go()
        cycle.disconnected = True  # so that uvicorn does not miss a response
        address = "" if self.client is None else self.client[0]
        return Taken(fd, held if cycle.more_body else b"", cycle.waiting_for_100_continue, address)

    def let_go(self) -> int:
        """A descriptor of the connection, which uvicorn forgets. Raises OSError: then nothing has changed."""
        transport = self.transport
        fd = os.dup(transport.get_extra_info("socket").fileno())
        self.flow.pause_reading()
        self.held = b""
        transport.abort()  # the duplicate keeps the connection open
        return fd

    # ---- refusals and deadlines

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self.refuse(400, msg)

    def refuse(self, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer a request that cannot be parsed, and close. `headers` are its own, where they are known."""
        if not self.transport.is_closing():
            self._count(None, status)
            self.transport.write(refusal(status, message, headers))
            self.transport.close()

    def _count(self, scope: dict[str, Any] | None, status: int) -> None:
        if self._answered is not None:
            self._answered(scope, status)

    def handle_websocket_upgrade(self) -> None:
        """The connection becomes a WebSocket's, which closes it in its own way."""
        if self._is_skipping:
            return  # it was refused
        self._head_arrived()
        inner = cast("LingeringTransport", self.transport).inner
        # It answers pings by itself, so a client that reads no answer must not go on asking.
        self.transport = cast("Any", WatchedTransport(inner, self._bounds.write_timeout_s, pairs_reading=True))
        self.connections.discard(self)
        make = cast("Any", self.ws_protocol_class)
        successor = make(config=self.config, server_state=self.server_state, app_state=self.app_state)
        self.successor = successor  # which hears of the connection's end also where its handshake fails
        successor.connection_made(self.transport)
        fields = b"".join([b"%b: %b\r\n" % field for field in self.headers])
        successor.data_received(b"GET %b HTTP/1.1\r\n%b\r\n" % (self.url, fields))

    def _await_head(self) -> None:
        self._head_deadline = self.loop.call_later(self._bounds.head_timeout_s, self._head_late)

    def _head_arrived(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_late(self) -> None:
        self._head_deadline = None
        if self._head_bytes > 0:
            self.refuse(408, "the request's head did not come in time")
        else:
            self.transport.abort()

    @property
    def read_bytes_max(self) -> int:
        """How much may be read at once."""
        if self.successor is not None:
            return WEBSOCKET_READ_BYTES
        exchange = self._exchange
        if exchange is None or exchange.is_held or not exchange.cycle.more_body:
            return HELD_BYTES_MAX
        # What comes behind a body is the next request, of which no more is to be read than of the first.
        return BODY_READ_BYTES if self._body_left is None else min(BODY_READ_BYTES, self._body_left)


class TakingProtocol(asyncio.BufferedProtocol):
    """What uvicorn is given as `http=`: it bounds what one read takes, and leaves the rest to RequestProtocol."""

    request_protocol = RequestProtocol

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (uvicorn's)
        """As uvicorn makes a protocol."""
        self._inner = self.request_protocol(*arguments, **options)
        self._buffer = _buffer_of_thread()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's)
        """Where the next read goes. It is taken out of there before anybody else reads on this thread."""
        return self._buffer[: max(1, self._inner.read_bytes_max - len(self._inner.held))]

    def buffer_updated(self, nbytes: int) -> None:
        """So much has been read."""
        data = bytes(self._buffer[:nbytes])
        if self._inner.successor is None:
            self._inner.data_received(data)
            return
        self._inner.successor.data_received(data)
        if nbytes == WEBSOCKET_READ_BYTES:  # there may be much more, which the event loop would read at once
            self._transport.yield_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        try:
            self._inner.connection_made(cast("asyncio.Transport", transport))
        except Exception:
            cast("asyncio.Transport", transport).abort()  # the event loop does not, and no deadline has been set
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        if self._inner.successor is not None:
            self._transport.lost()
            self._inner.successor.connection_lost(exc)
        else:
            self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """It sends no more: the connection is closed."""
        return (self._inner.successor or self._inner).eof_received()

    def pause_writing(self) -> None:
        """It reads too slowly."""
        (self._inner.successor or self._inner).pause_writing()
        self._transport.writing_paused()

    def resume_writing(self) -> None:
        """It reads again."""
        (self._inner.successor or self._inner).resume_writing()
        self._transport.writing_resumed()

    @property
    def _transport(self) -> WatchedTransport:
        return cast("WatchedTransport", self._inner.transport)


def _frame_for_http_10(exchange: Exchange, message: Any) -> None:  # noqa: ANN401  (ASGI's)
    """A response without a length ends with its connection: uvicorn would send chunks, which HTTP/1.0 does not have."""
    if message["type"] == "http.response.start":
        if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
            exchange.is_to_the_end = True
            exchange.cycle.chunked_encoding = False
            exchange.cycle.keep_alive = False
    elif exchange.is_to_the_end:
        exchange.cycle.expected_content_length = len(message.get("body", b""))


_buffers = threading.local()


def _buffer_of_thread() -> memoryview:
    buffer: memoryview | None = getattr(_buffers, "buffer", None)
    if buffer is None:
        buffer = _buffers.buffer = memoryview(bytearray(BODY_READ_BYTES))
    return buffer
