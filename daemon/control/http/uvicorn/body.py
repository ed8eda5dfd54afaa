"""A request's body, whole: bounded in bytes and in time."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
from starlette.requests import ClientDisconnect

from daemon.control.http.api.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from starlette.requests import Request

# The rest of such a request is not read, so nothing else can come on its connection.
_CLOSE = {"Connection": "close"}
_LOOKED_AT = frozenset({b"content-type", b"content-encoding", b"origin"})
_USUAL = {b"content-type": b"application/json"}


async def read_json_body(request: Request, bytes_max: int, seconds_max: float) -> bytes:
    """The bytes of a body that says it is JSON, or says nothing.

    Raises ApiError: 415 for another type, 413 for more than `bytes_max`, 408 when it takes longer than `seconds_max`.
    ClientDisconnect when the client leaves.
    """
    check_type(request.scope["headers"])
    announced = request.headers.get("content-length")
    if announced is not None and announced.isdecimal() and int(announced[:19]) > bytes_max:
        raise _too_large(bytes_max)
    with anyio.move_on_after(seconds_max):
        return await _read(request, bytes_max)
    message = f"the request's body did not come in {seconds_max:g} s"
    raise ApiError(408, "request_timeout", message, headers=_CLOSE)


@contextmanager
def collector_paused() -> Generator[None]:
    """Have the cyclic collector wait, on the main thread and with nothing awaited inside.

    A body of a million small values has no cycles, but makes the collector look at all of them again and again: it took
    up to five sixths of the time for which such a body keeps everybody else waiting.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def check_type(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises ApiError 415 where the body says that it is no JSON, or not plain. Names are in lower case."""
    said: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _LOOKED_AT:
            said.setdefault(name, value)
    if said == _USUAL:
        return
    kind, _, parameters = said.get(b"content-type", b"").decode("latin-1").partition(";")
    # A page of another site can send a body without a type and without being asked whether it may.
    if kind.strip().lower() != "application/json" and (kind or b"origin" in said):
        raise _unsupported("the body must be JSON: Content-Type: application/json", "content-type")
    charset = parameters.lower().partition("charset=")[2].partition(";")[0].strip(' "')
    if charset not in {"", "utf-8", "utf8"}:
        raise _unsupported("the body must be UTF-8: Content-Type: application/json", "content-type")
    if said.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise _unsupported("the body must not be compressed: leave Content-Encoding out", "content-encoding")


async def _read(request: Request, bytes_max: int) -> bytes:
    pieces: list[bytes] = []
    length = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        length += len(piece)
        if length > bytes_max:
            raise _too_large(bytes_max)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(bytes_max: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the request's body is larger than {bytes_max} bytes", headers=_CLOSE)


def _unsupported(message: str, header: str) -> ApiError:
    return ApiError(415, "unsupported_media_type", message, param=header, headers=_CLOSE)
