"""Streams for HTTP requests: let in by admission, then opened on the client's socket, or read here and forwarded."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec
from starlette.responses import Response

from daemon.control.admission.refusal import Refusal
from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn.inner import InnerStream
from daemon.control.http.uvicorn.interface import StreamCut
from daemon.control.http.uvicorn.taking import ABORT, EXTENSION, HEADERS_KEY, ClientGone
from daemon.control.stream.adoption import Adoption

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from starlette.types import Receive, Scope, Send

    from backends.interface import Request
    from daemon.control.admission.admission import Admission
    from daemon.control.http.uvicorn.interface import Ticket
    from daemon.control.http.uvicorn.taking import Taken
    from daemon.control.stream.adoption import Entry
    from daemon.control.stream.client_outcome import Told

    Headers = Sequence[tuple[bytes, bytes]]

ERROR_BYTES_MAX = 65_536
_STREAM_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
_OF_STREAMS = frozenset({b"content-type", *(name.encode() for name in _STREAM_HEADERS)})

logger = logging.getLogger(__name__)


class HttpTicket:
    """A stream that has been let in. Used once."""

    __slots__ = ("entry", "is_used")

    def __init__(self, entry: Entry) -> None:
        """As admission made it."""
        self.entry = entry
        self.is_used = False

    @property
    def backend(self) -> str:
        """Which backend makes it."""
        return self.entry.name

    def use(self) -> Entry:
        """Take the entry out."""
        assert not self.is_used, "a ticket is used once"
        self.is_used = True
        return self.entry


class HttpFront:
    """The routes' way to the planes; `daemon.control.http.uvicorn.interface.Front`."""

    def __init__(self, admission: Admission) -> None:
        """Streams are opened by `admission`."""
        self.admission = admission

    def admit(self, backend: str, request: Request, *, user: str = "", has_upload: bool = False) -> HttpTicket:
        """See the interface."""
        try:
            return HttpTicket(self.admission.admit(backend, request, user=user, has_body=has_upload))
        except Refusal as refusal:
            raise _error(refusal) from None

    def abandon(self, ticket: HttpTicket) -> None:
        """A ticket that nobody uses after all."""
        self.admission.abandon(ticket.use())

    def respond(self, ticket: Ticket, headers: Mapping[str, str], content_type: str = "") -> StreamResponse:
        """See the interface. `content_type` is the backend's own where it is empty."""
        assert isinstance(ticket, HttpTicket), "it was let in here"
        return StreamResponse(self, ticket, headers, content_type or ticket.entry.content_type)

    def stream(self, ticket: HttpTicket, taken: Taken, framing: Framing) -> None:
        """Stream on a client's socket, whose descriptor is the data plane's from now."""
        try:
            of_stream, lines, chunked, upload = framing
            length = b"Transfer-Encoding: chunked\r\n" if chunked else b""
            head = b"HTTP/1.1 200 OK\r\n%b%bConnection: close\r\n%b\r\n" % (of_stream, lines, length)
            adoption = Adoption(ticket.entry, head, chunked=chunked, lines=lines)
            if upload is not None:
                (body_bytes,) = upload
                adoption.expect_body(body_bytes, taken.unread[:body_bytes], expects_100=taken.expects_100)
        except BaseException:
            os.close(taken.fd)
            raise
        ticket.use()
        self.admission.adopt(taken.fd, adoption)

    async def read(self, ticket: Ticket, told: Told) -> AsyncGenerator[bytes]:
        """See the interface."""
        assert isinstance(ticket, HttpTicket), "it was let in here"
        if ticket.entry.relayed is not None:
            ticket.entry.relayed.told = told
        stream = self.open(ticket)
        try:
            await stream.open()
            if stream.status >= 400:
                raise await error_of(stream)
            async for piece in stream:
                yield piece
        finally:
            stream.close()

    def open(self, ticket: Ticket) -> InnerStream:
        """The stream, to be read here. Raises ApiError where there are no descriptors for it."""
        assert isinstance(ticket, HttpTicket), "it was let in here"
        entry = ticket.use()
        try:
            return InnerStream(self.admission, entry)
        except OSError as error:
            self.admission.abandon(entry)
            raise no_descriptors(error) from error


class Framing(NamedTuple):
    """What stands around a stream."""

    of_stream: bytes  # header lines of streams alone, each ended by CR LF
    lines: bytes  # those that belong to an error in the stream's place, too
    chunked: bool
    upload: tuple[int | None] | None = None  # the request's body: so many bytes, or None where it comes in chunks


def framing_of(headers: Headers, *, chunked: bool, upload: tuple[int | None] | None = None) -> Framing:
    """Of a response's headers, to which the date is added."""
    of_stream = b"".join([b"%b: %b\r\n" % header for header in headers if header[0] in _OF_STREAMS])
    lines = b"".join([b"%b: %b\r\n" % header for header in headers if header[0] not in _OF_STREAMS])
    return Framing(of_stream, b"%bdate: %b\r\n" % (lines, _date_of(int(time.time()))), chunked, upload)


@functools.lru_cache(maxsize=16)
def stream_headers(content_type: str) -> tuple[tuple[bytes, bytes], ...]:
    """What every stream's response says, whoever asks."""
    own = {"content-type": content_type, **_STREAM_HEADERS}
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in own.items())


class StreamResponse(Response):
    """Streams on the client's own socket, or forwards where that cannot be taken."""

    def __init__(self, front: HttpFront, ticket: HttpTicket, headers: Mapping[str, str], content_type: str) -> None:
        """`headers` are the response's, beside those of every stream."""
        super().__init__(status_code=200, media_type=None)
        self._front = front
        self._ticket = ticket
        own = {name.lower().encode("latin-1"): headers[name].encode("latin-1") for name in headers}
        self.raw_headers = list({**dict(stream_headers(content_type)), **own}.items())
        self._upload: tuple[int | None] | None = None

    def expect_upload(self, body_bytes: int | None) -> None:
        """The request's body goes to the backend: so many bytes, or None where it comes in chunks."""
        self._upload = (body_bytes,)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        extensions = cast("dict[str, Any]", scope.get("extensions") or {})
        taking = extensions.get(EXTENSION)
        try:
            if taking is None:
                await self._forward(receive, send, extensions[ABORT]["abort"])
            else:
                try:
                    taken = await taking["take"]()
                except ClientGone:
                    logger.debug("a client left before its stream was opened")
                    return
                except OSError as error:
                    raise no_descriptors(error) from error
                await self._hand_over(scope, taken, send)
        finally:
            if not self._ticket.is_used:
                self._front.abandon(self._ticket)

    async def _hand_over(self, scope: Scope, taken: Taken, send: Send) -> None:
        try:
            headers = await _final_headers(self.raw_headers, send)
        except BaseException:
            os.close(taken.fd)
            raise
        framing = framing_of(headers, chunked=scope["http_version"] == "1.1", upload=self._upload)
        self._front.stream(self._ticket, taken, framing)

    async def _forward(self, receive: Receive, send: Send, abort: Callable[[], None]) -> None:
        """Under TLS: read the stream here and pass it on."""
        stream = self._front.open(self._ticket)
        feed = asyncio.ensure_future(self._feed(stream, receive))
        try:
            await self._pump(stream, send)
        except StreamCut:
            abort()  # without the last chunk, so that the client sees it, too
        finally:
            feed.cancel()
            with contextlib.suppress(asyncio.CancelledError, StreamCut):
                await feed
            stream.close()

    async def _feed(self, stream: InnerStream, receive: Receive) -> None:
        """The upload, if there is one, and then the client's leaving, which ends the stream."""
        has_more = self._upload is not None
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                stream.leave()
                return
            if has_more:
                await stream.send(message.get("body", b""))
                has_more = message.get("more_body", False)
                if not has_more:
                    await stream.finish()

    async def _pump(self, stream: InnerStream, send: Send) -> None:
        try:
            await stream.open()
        except StreamCut:
            raise ApiError(502, "stream_cut", "the stream ended before it began") from None
        headers = self.raw_headers
        if stream.status != 200:
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in stream.headers.items()]
            headers = [(name, value) for name, value in headers if name not in {b"connection", b"transfer-encoding"}]
        await send({"type": "http.response.start", "status": stream.status, "headers": headers})
        async for piece in stream:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@functools.lru_cache(maxsize=2)
def _date_of(now_s: int) -> bytes:
    return formatdate(now_s, usegmt=True).encode()


async def _final_headers(headers: list[tuple[bytes, bytes]], send: Send) -> list[tuple[bytes, bytes]]:
    """The headers with what middleware adds to them: they pass through it, and come back from our protocol."""
    message: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": headers, HEADERS_KEY: None}
    await send(message)
    return cast("list[tuple[bytes, bytes]]", message["headers"])


async def error_of(stream: InnerStream) -> ApiError:
    """A refusal that came as the stream's response, as an error of the front's."""
    try:
        body = await stream.body(ERROR_BYTES_MAX)
    except StreamCut:
        body = b""
    headers = {name.title(): value for name, value in stream.headers.items() if name == "retry-after"}
    content_type = stream.headers.get("content-type", "application/json")
    code, message = None, "the stream could not be opened"
    with contextlib.suppress(msgspec.DecodeError, AttributeError):
        error = msgspec.json.decode(body).get("error", {})
        code, message = error.get("code"), str(error.get("message", message))
    return ApiError(stream.status, code, message, headers=headers, body=body, content_type=content_type)


def no_descriptors(error: OSError) -> ApiError:
    """What a client is told that cannot have its stream for want of descriptors."""
    return ApiError(
        503, "descriptor_limit", f"no descriptors are left for the stream: {os.strerror(error.errno or 0)}",
        headers={"Retry-After": "1"},
    )  # fmt: skip


def _error(refusal: Refusal) -> ApiError:
    headers: dict[str, str] = {}
    if refusal.retry_after_s > 0:
        headers["Retry-After"] = str(refusal.retry_after_s)
    return ApiError(
        refusal.status,
        refusal.code,
        refusal.detail,
        param=refusal.param,
        headers=headers,
        body=refusal.body,
        content_type=refusal.content_type,
    )
