"""POST /audio/stream and the WebSocket /audio/ws: mel features of audio that is still arriving. Main thread.

A POST's body and the features never pass through this code: the front takes the client's socket with what of the body
is unread, and the planes do the rest. A WebSocket's messages are carried here between the client and such a stream. In
both directions a piece is fetched only when the one before it has been taken, so nothing gathers.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request  # FastAPI reads the annotations of routes
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from backends.interface import Fields
from backends.interface import Request as BackendRequest
from daemon.control.channel.responses import envelope
from daemon.control.http.api.audio_blocks import BlockError, Blocks
from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn import documentation
from daemon.control.http.uvicorn.front import HttpFront, error_of
from daemon.control.http.uvicorn.interface import StreamCut
from daemon.control.http.uvicorn.middleware import PROTOCOL, authorization_of, caller_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Scope

    from daemon.control.http.api.keys import Keys
    from daemon.control.http.uvicorn.inner import InnerStream
    from daemon.control.http.uvicorn.middleware import Caller

BACKEND = "mel"
STREAM_PATH = "/audio/stream"
SOCKET_PATH = "/audio/ws"  # asks for its key itself: browsers cannot send one with a handshake
NUMBERS = frozenset({"bins", "sample_rate", "channels", "beam_size"})
SWITCHES = {"true": True, "false": False}
FIRST_MESSAGE_S = 10.0
FIRST_MESSAGE_CHARACTERS_MAX = 8192
BODY_BYTES_MAX = (1 << 63) - 1
# Types that a page of another site may send without being asked whether it may.
_SIMPLE_TYPES = frozenset({"", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"})
# Of a WebSocket's close.
_NORMAL, _POLICY_VIOLATION, _INTERNAL_ERROR = 1000, 1008, 1011


class Audio:
    """Both endpoints."""

    def __init__(self, front: HttpFront, keys: Keys | None, origins: tuple[str, ...], *, is_enabled: bool) -> None:
        """`origins` are those whose pages may ask, `*` is all; `is_enabled`: whether there is the backend `mel`."""
        self._front = front
        self._keys = keys
        self._origins = frozenset(origins)
        self._is_enabled = is_enabled

    # ---- POST

    async def stream(self, request: Request) -> Response:
        """Features of the request's body."""
        self._check_enabled()
        headers = _headers(request.scope, self._hidden)
        _check_body(headers)
        options = options_of(request.query_params.multi_items())
        caller = caller_of(request.scope)
        wanted = _request(options, headers, caller)
        body_bytes = _body_bytes(headers)
        ticket = self._front.admit(BACKEND, wanted, user=caller.limited_as, has_upload=True)
        response = self._front.respond(ticket, {})
        response.expect_upload(body_bytes)
        return response

    @property
    def _hidden(self) -> frozenset[str]:
        return frozenset({"authorization"} if self._keys is not None else ())

    def _check_enabled(self) -> None:
        if not self._is_enabled:
            raise ApiError(501, "mel_disabled", "mel features are not enabled here: backend.mel.enabled = true does it")

    # ---- WebSocket

    async def socket(self, socket: WebSocket) -> None:
        """Features of a WebSocket's binary messages. Whatever goes wrong is a text message, and a close."""
        offered = socket.scope.get("subprotocols", ())
        await socket.accept(PROTOCOL if PROTOCOL in offered else None)
        try:
            try:
                stream = await self._open(socket)
            except (ApiError, StreamCut) as error:
                await _refuse(socket, error)
                return
            try:
                await _carry(socket, stream)
            finally:
                stream.close()
        except (WebSocketDisconnect, asyncio.CancelledError):
            return  # the client has left, or the daemon does; the stream has been ended with it

    async def _open(self, socket: WebSocket) -> InnerStream:
        """The stream that the first message asks for. Raises ApiError, WebSocketDisconnect."""
        self._check_enabled()
        self._check_origin(_headers(socket.scope, frozenset()))
        said = await _first_message(socket)
        caller = self._caller(socket.scope, said.pop("key", None))
        if said.pop("transcribe", False) is not False:
            raise ApiError(400, None, "parameter `transcribe`: text comes by POST /audio/stream", param="transcribe")
        is_renamed = "format" in said
        if is_renamed:
            said["sample_format"] = said.pop("format")  # what is sent; what comes back are blocks
        wanted = _request({**said, "format": "binary"}, _headers(socket.scope, self._hidden), caller)
        try:
            ticket = self._front.admit(BACKEND, wanted, user=caller.limited_as, has_upload=True)
        except ApiError as error:
            if not is_renamed or error.param != "sample_format":
                raise
            message = error.message.replace("`sample_format`", "`format`")  # as the client wrote it
            raise ApiError(error.status, error.code, message, param="format") from None
        return self._front.open(ticket)

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Raises ApiError 403 for a page of another site: browsers ask nobody before they open a WebSocket."""
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise ApiError(403, "origin_refused", "pages of this origin may not ask: http.cors_origins names those")

    def _caller(self, scope: Scope, key: object) -> Caller:
        """Who asks: by the handshake, or by a key in the first message. Raises ApiError 401."""
        caller = caller_of(scope)
        if self._keys is None:
            return caller
        header = authorization_of(scope)
        if header is None and isinstance(key, str):
            header = f"Bearer {key}"
        return caller._replace(user=self._keys.user(header))


def add_routes(app: FastAPI, audio: Audio, *, has_keys: bool) -> None:
    """Both, the first with its description."""
    failing = documentation.errors((400, 413, 415, 429, 500, 501, 503, 504), has_keys=has_keys)
    kinds = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("audio/wav", "audio/pcm")}
    forms = ("text/event-stream", "application/x-ndjson", "application/octet-stream")
    app.add_api_route(
        STREAM_PATH,
        audio.stream,
        methods=["POST"],
        tags=["Audio"],
        summary="Stream mel features of audio while it is sent",
        response_class=Response,
        response_model=None,
        responses={
            200: {"description": "The features.", "content": {form: {"schema": {"type": "string"}} for form in forms}},
            **failing,
        },
        openapi_extra={"requestBody": {"required": True, "content": kinds}, "parameters": _parameters()},
    )
    app.router.routes.append(WebSocketRoute(SOCKET_PATH, audio.socket))


def _parameters() -> list[dict[str, Any]]:
    integer, text = {"type": "integer", "minimum": 1}, {"type": "string"}
    schemas: dict[str, dict[str, Any]] = {
        "format": {**text, "enum": ["sse", "ndjson", "binary"]},
        "bins": {"type": "integer", "enum": [80, 128]},
        "normalisation": {**text, "enum": ["none", "running", "whisper"]},
        "dtype": {**text, "enum": ["float32", "float16"]},
        "sample_format": {**text, "enum": ["auto", "wav", "s16le", "f32le"]},
        "sample_rate": integer,
        "channels": integer,
        "transcribe": {"type": "boolean"},
        "language": text,
        "beam_size": integer,
    }
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in schemas.items()]


# ---- what a request says


def options_of(parameters: list[tuple[str, str]]) -> dict[str, Any]:
    """A query as the backend's options: numbers and switches as such, all else as it stands. Raises ApiError."""
    options: dict[str, Any] = {}
    for name, value in parameters:
        if name in options:
            raise ApiError(400, None, f"parameter `{name}`: it is there twice", param=name)
        if name in NUMBERS and value.isascii() and value.isdecimal() and len(value) < 10:
            options[name] = int(value)
        else:
            options[name] = SWITCHES.get(value, value) if name == "transcribe" else value
    return options


def _request(options: dict[str, Any], headers: dict[str, str], caller: Caller) -> BackendRequest:
    fields = Fields(user_id=caller.user or None, request_id=caller.request_id)
    headers["x-request-id"] = caller.request_id
    return BackendRequest(fields, msgspec.json.encode({"options": options}), headers, "audio")


def _headers(scope: Scope, hidden: frozenset[str]) -> dict[str, str]:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return {name: value for name, value in headers.items() if name not in hidden}


def _check_body(headers: dict[str, str]) -> None:
    """Raises ApiError 415 for a body that is compressed, or that a page of another site may have sent unasked."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        message = "the audio must not be compressed by HTTP: leave Content-Encoding out"
        raise ApiError(415, "unsupported_media_type", message, param="content-encoding")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in headers and kind in _SIMPLE_TYPES:
        message = "a page must say what it sends: Content-Type: audio/wav or audio/pcm"
        raise ApiError(415, "unsupported_media_type", message, param="content-type")


def _body_bytes(headers: dict[str, str]) -> int | None:
    """How long the body is; None where it comes in chunks. Raises ApiError."""
    if "transfer-encoding" in headers:
        return None
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > BODY_BYTES_MAX:
        raise ApiError(400, None, "header `content-length`: it is no length", param="content-length")
    return int(length)


# ---- a WebSocket's messages


async def _first_message(socket: WebSocket) -> dict[str, Any]:
    """The parameters. Raises ApiError."""
    try:
        message = await asyncio.wait_for(socket.receive(), FIRST_MESSAGE_S)
    except (asyncio.TimeoutError, TimeoutError):  # before Python 3.11 they are two
        raise ApiError(408, "request_timeout", f"no parameters came in {FIRST_MESSAGE_S:g} s") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    said = _object(message.get("text"))
    if said is None:
        expected = '{"format":"s16le","sample_rate":16000}'
        raise ApiError(400, None, f"the first message says what follows, as JSON: {expected}")
    return said


def _object(text: object) -> dict[str, Any] | None:
    if not isinstance(text, str) or len(text) > FIRST_MESSAGE_CHARACTERS_MAX:
        return None
    try:
        said = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return cast("dict[str, Any]", said) if isinstance(said, dict) else None


async def _carry(socket: WebSocket, stream: InnerStream) -> None:
    """Audio one way and features the other, until either ends. Raises WebSocketDisconnect."""
    up = asyncio.ensure_future(_upload(socket, stream))
    down = asyncio.ensure_future(_download(socket, stream))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if up.done():
            up.result()  # never returns: the client left, or sent what it must not
        down.result()
    except ApiError as error:
        down.cancel()
        if socket.application_state is WebSocketState.CONNECTED:  # it crossed with the stream's end, otherwise
            await _refuse(socket, error)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _upload(socket: WebSocket, stream: InnerStream) -> None:
    """Pass on what comes, until the client leaves: WebSocketDisconnect. ApiError for what is not understood."""
    has_ended = False
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            stream.leave()
            raise WebSocketDisconnect(message["code"])
        data = message.get("bytes")
        if has_ended:
            raise ApiError(400, None, "a message after the end")
        with contextlib.suppress(StreamCut):  # why it takes no more, it says the other way
            if data is not None:
                await stream.send(data)
                continue
            said = _object(message.get("text"))
            if said is None or said.get("type") != "end":
                raise ApiError(400, None, 'a text message is {"type":"end"}, where the audio ends')
            has_ended = True
            await stream.finish()


async def _download(socket: WebSocket, stream: InnerStream) -> None:
    """Pass on what is made of it, a block in a message, and close."""
    blocks = Blocks()
    try:
        await stream.open()
        if stream.status >= 400:
            raise await error_of(stream)
        async for piece in stream:
            for block in blocks.take(piece):
                await socket.send_bytes(block)
        await socket.close(_NORMAL)
    except BlockError as error:
        await _refuse(socket, ApiError(error.status, None, error.message))
    except (ApiError, StreamCut) as error:
        await _refuse(socket, error)


async def _refuse(socket: WebSocket, error: ApiError | StreamCut) -> None:
    """Say why, and close. Raises WebSocketDisconnect."""
    if isinstance(error, ApiError):
        status, said = error.status, envelope(error.status, error.message, error.code, error.param)
    else:
        status, said = 500, envelope(502, "the stream was cut off before its end", "stream_cut")
    await socket.send_text(said.decode())
    await socket.close(_POLICY_VIOLATION if status < 500 else _INTERNAL_ERROR)
