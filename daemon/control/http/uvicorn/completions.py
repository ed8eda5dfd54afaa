"""POST /v1/completions and /v1/chat/completions: streamed by the daemon's planes, or put together here. Main thread.

A streamed answer never passes through this code: the front takes the client's socket, and what is returned here only
says so. One that is not streamed is read, event by event, and ends as soon as its client leaves.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import msgspec
from starlette.requests import ClientDisconnect, Request  # FastAPI reads the annotations of routes
from starlette.responses import Response

from backends.interface import Fields, Message
from backends.interface import Request as BackendRequest
from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn.aggregation import Assembly, SseReader
from daemon.control.http.uvicorn.body import collector_paused, read_json_body
from daemon.control.http.uvicorn.interface import StreamCut
from daemon.control.http.uvicorn.middleware import FAILED, caller_of
from daemon.control.http.uvicorn.requests import ChatCompletionRequest, CompletionRequest
from daemon.control.http.uvicorn.validation import parse
from daemon.control.stream.client_outcome import Told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from starlette.types import Scope

    from backends.interface import Endpoint
    from daemon.control.http.api.model_routing import Router
    from daemon.control.http.uvicorn.interface import Front, Ticket
    from daemon.control.http.uvicorn.middleware import Caller

# Where a scope has what the shortcut was told when it asked for a stream: it is said here, as nobody asks twice.
REFUSED = "streaming_daemon.refused"
T = TypeVar("T")


class RequestBounds(NamedTuple):
    """What one request may take."""

    body_bytes_max: int
    body_seconds_max: float
    answer_bytes_max: int  # of the events of an answer that is not streamed
    answer_seconds_max: float


class Completions:
    """Both endpoints."""

    def __init__(self, front: Front, router: Router, bounds: RequestBounds, *, has_keys: bool) -> None:
        """With keys of its own the daemon keeps the Authorization header to itself."""
        self._front = front
        self._router = router
        self._bounds = bounds
        self._hidden = frozenset({"authorization"} if has_keys else ())

    async def completions(self, request: Request) -> Response:
        """An answer to a prompt."""
        return await self._answer(request, CompletionRequest, "completions")

    async def chat_completions(self, request: Request) -> Response:
        """An answer to a conversation."""
        return await self._answer(request, ChatCompletionRequest, "chat")

    async def _answer(
        self, request: Request, model: type[CompletionRequest | ChatCompletionRequest], endpoint: Endpoint
    ) -> Response:
        bounds = self._bounds
        try:
            raw = await read_json_body(request, bounds.body_bytes_max, bounds.body_seconds_max)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        refused: Exception | None = request.scope.pop(REFUSED, None)
        if refused is not None:
            raise refused
        with collector_paused():
            ticket, assembly = self._let_in(request.scope, model, endpoint, raw)
        if assembly is None:
            return self._front.respond(ticket, {})  # what every stream has is the front's, and the middleware's
        return await self._whole(request, ticket, assembly)

    def open(self, scope: Scope, endpoint: Endpoint, raw: bytes) -> Ticket | None:
        """A ticket for the stream that a whole body asks for; None where it asks for an answer in one piece.

        Raises ApiError.
        """
        model: type[CompletionRequest | ChatCompletionRequest]
        model = ChatCompletionRequest if endpoint == "chat" else CompletionRequest
        fields, said = parse(model, raw)
        return self._admit(scope, endpoint, fields, said, raw) if fields.stream else None

    def _let_in(
        self, scope: Scope, model: type[CompletionRequest | ChatCompletionRequest], endpoint: Endpoint, raw: bytes
    ) -> tuple[Ticket, Assembly | None]:
        """A ticket, with what puts the answer together where it is not streamed. Nothing else of the body is kept."""
        fields, said = parse(model, raw)
        if fields.stream:
            return self._admit(scope, endpoint, fields, said, raw), None
        said = _asking_for_usage(said)
        ticket = self._admit(scope, endpoint, fields, said, _encoded(said))
        served_model = self._router.route(fields.model).model
        return ticket, Assembly(is_chat=endpoint == "chat", model=served_model or "", choice_count=fields.n or 1)

    def _admit(
        self,
        scope: Scope,
        endpoint: Endpoint,
        fields: CompletionRequest | ChatCompletionRequest,
        said: dict[str, Any],
        raw: bytes,
    ) -> Ticket:
        """Let a body in that has been looked at. Raises ApiError."""
        backend, served_model = self._router.route(fields.model)
        caller = caller_of(scope)
        understood = Fields(
            user_id=caller.user or None,
            model=served_model,
            max_tokens=fields.tokens_max,
            temperature=fields.temperature,
            request_id=caller.request_id,
        )
        if isinstance(fields, CompletionRequest):
            understood.prompt = _prompt_of(fields.prompt)
        else:
            understood.messages = [Message(one["role"], one.get("content")) for one in said["messages"]]
        wanted = BackendRequest(understood, raw, self._headers(scope, caller), endpoint)
        wanted.decoded = said  # to decode it again would take as long as all the rest
        ticket = self._front.admit(backend, wanted, user=caller.limited_as)
        wanted.decoded = None
        return ticket

    def _headers(self, scope: Scope, caller: Caller) -> dict[str, str]:
        """A request's headers as backends see them: with the id that it has here."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        for name in self._hidden:
            headers.pop(name, None)
        headers["x-request-id"] = caller.request_id
        return headers

    async def _whole(self, request: Request, ticket: Ticket, assembly: Assembly) -> Response:
        told = Told()
        status, error = 0, ""  # the client leaves, or the daemon ends
        try:
            whole = await _unless_left(request, self._collect(ticket, assembly, told))
            if whole is None:
                return Response(status_code=400)  # which nobody reads
            body = msgspec.json.encode(whole)
            status = 200
        except ApiError as failed:
            status, error = failed.status, f"{failed.code or 'error'}: {failed.message}"
            raise
        except Exception:
            status, error = 500, f"internal_error: {FAILED}"  # as the middleware says it
            raise
        finally:
            told.tell(status, error)
        return Response(body, headers={"Cache-Control": "no-store"}, media_type="application/json")

    async def _collect(self, ticket: Ticket, assembly: Assembly, told: Told) -> dict[str, Any]:
        """The whole answer. Raises ApiError."""
        bounds = self._bounds
        try:
            await asyncio.wait_for(self._read(ticket, assembly, told), bounds.answer_seconds_max)
        except (asyncio.TimeoutError, TimeoutError):  # before Python 3.11 they are two
            message = f"the answer took longer than {bounds.answer_seconds_max:g} s: ask for it as a stream"
            raise ApiError(504, "timeout", message) from None
        except StreamCut:
            raise ApiError(502, "stream_cut", "the answer was cut off before its end") from None
        return assembly.result()

    async def _read(self, ticket: Ticket, assembly: Assembly, told: Told) -> None:
        reader = SseReader()
        length, limit = 0, self._bounds.answer_bytes_max
        # Closing it ends the stream, whatever else happens here.
        async with aclosing(cast("AsyncGenerator[bytes, None]", self._front.read(ticket, told))) as chunks:
            async for chunk in chunks:
                length += len(chunk)
                if length > limit:
                    message = f"the answer is larger than {limit} bytes: ask for it as a stream"
                    raise ApiError(502, "answer_too_large", message)
                for event in reader.feed(chunk):
                    assembly.add(event)
        for event in reader.end():
            assembly.add(event)


def _prompt_of(prompt: object) -> str:
    """The prompt of which one string is made: of several the first, of numbers of tokens none."""
    if isinstance(prompt, list) and prompt:
        prompt = cast("list[object]", prompt)[0]
    return prompt if isinstance(prompt, str) else ""


def _asking_for_usage(said: dict[str, Any]) -> dict[str, Any]:
    """The body as backends get it, which make streams and nothing else; the whole answer tells what it cost."""
    given: dict[str, Any] = said.get("stream_options") or {}
    return {**said, "stream": True, "stream_options": {**given, "include_usage": True}}


def _encoded(said: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(said)
    except RecursionError:
        raise ApiError(
            400, "malformed_json", "the body is not JSON that can be read: it is nested too deeply"
        ) from None


async def _unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What comes of the work; None when the client leaves before: then it is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()
        # A cancelled stream is let go of before the request is over.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
