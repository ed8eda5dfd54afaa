"""What happens to every request of the HTTP front, as plain ASGI: ids, headers of answers, keys, what goes wrong.

From the outside in: `Requests`, CORS where it is wanted, `Guard`, the application. Main thread.
"""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING, NamedTuple

from backends.identities import identity
from daemon.control.http.api.errors import ApiError, response_of
from daemon.control.http.uvicorn.request_head import is_request_id

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from daemon.control.http.api.keys import Keys

CALLER = "streaming_daemon.caller"  # where a scope has it
FAILED = "the server failed; its log says why, under the request's id"
PROTOCOL = "streaming-daemon"  # of a WebSocket that brings its key with the names of its protocols
KEY_PROTOCOL = "bearer."
_POLICY_VIOLATION = 1008  # of a WebSocket's close
_NOSNIFF = (b"x-content-type-options", b"nosniff")

logger = logging.getLogger(__name__)


class Caller(NamedTuple):
    """Who asks."""

    request_id: str
    user: str  # a key's name; empty where no keys are wanted
    address: str  # empty on a Unix socket

    @property
    def limited_as(self) -> str:
        """Whom limits are counted for."""
        return self.user or self.address


def caller_of(scope: Scope) -> Caller:
    """Who asks, as `Requests` and `Guard` found out."""
    found = scope[CALLER]
    assert isinstance(found, Caller), "the middleware has seen the request"
    return found


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """A request's header, by its name in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def own_headers(scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
    """Find out whose request it is, unless that has been done; the headers that every answer to it has."""
    caller = scope.get(CALLER)
    if caller is None:
        given = header_of(scope, b"x-request-id")
        request_id = given if given is not None and is_request_id(given) else identity().encode()
        client = scope.get("client")
        scope[CALLER] = Caller(request_id.decode("ascii"), "", str(client[0]) if client else "")
    else:
        request_id = caller.request_id.encode("ascii")
    return (b"x-request-id", request_id), _NOSNIFF


def check_key(scope: Scope, keys: Keys) -> None:
    """Find out whose key it is. Raises ApiError 401."""
    user = keys.user(authorization_of(scope))
    scope[CALLER] = caller_of(scope)._replace(user=user)


class Requests:
    """Gives each request an id, its own where that can be used, and puts it on the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        own = own_headers(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                names = {name for name, _ in headers}
                for header in own:
                    if header[0] not in names:
                        headers.append(header)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Guard:
    """Asks for a key, and turns what nobody expected into an answer that says nothing of it."""

    def __init__(
        self, app: ASGIApp, keys: Keys | None, exempt: Collection[str], exempt_prefixes: tuple[str, ...]
    ) -> None:
        """Without keys everybody may ask. `exempt` paths need none, nor do those that begin with a prefix."""
        self._app = app
        self._keys = keys
        self._exempt = frozenset(exempt)
        self._exempt_prefixes = exempt_prefixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        has_started = False

        async def noticing_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, noticing_send)
        except Exception:
            extra = {"request_id": caller_of(scope).request_id, "path": scope["path"]}
            logger.exception("a request failed", extra=extra)
            if has_started or scope["type"] == "websocket":
                raise  # the server cuts the connection: an answer that is not whole must not look as if it were
            await _refuse(ApiError(500, "internal_error", FAILED), scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises ApiError 401."""
        path = scope["path"]
        if self._keys is None or path in self._exempt or path.startswith(self._exempt_prefixes):
            return
        check_key(scope, self._keys)


def authorization_of(scope: Scope) -> str | None:
    """The header; of a WebSocket without one, what its protocols say.

    A browser can send no header with a WebSocket, but names of protocols: `bearer.` and the key in base64url is one.
    The other, which the route accepts, is `streaming-daemon`.
    """
    header = header_of(scope, b"authorization")
    if header is not None:
        return header.decode("latin-1")
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            encoded = protocol.removeprefix(KEY_PROTOCOL)
            try:
                key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
            except ValueError:
                return "Bearer ?"  # a key that nobody has
            return f"Bearer {key.decode('latin-1')}"
    return None


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connect, which a close before any accept refuses
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": error.message})
        return
    await response_of(error)(scope, receive, send)
