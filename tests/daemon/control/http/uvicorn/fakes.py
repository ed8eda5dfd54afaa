"""A front without planes: it says the events that a test gives it. And a server to try the application on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import httpx2 as httpx
import msgspec
import uvicorn
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from backends.sse import DONE
from daemon.control.http.api.model_routing import Router, Served
from daemon.control.http.uvicorn.application import Options, build
from daemon.control.http.uvicorn.interface import StreamCut
from daemon.control.telemetry.server import PageResponse, json_response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Mapping
    from http import HTTPStatus

    from starlette.responses import Response

    from backends.interface import Request
    from daemon.control.http.api.errors import ApiError
    from daemon.control.http.uvicorn.interface import Ticket
    from daemon.control.stream.client_outcome import Told

STREAM_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
TEST_ONLY = Served(frozenset({"mock", "test_model"}))


def event(fields: Mapping[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def chunk(delta: Mapping[str, object] | None = None, *, finish: str | None = None, **more: object) -> dict[str, object]:
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "test-model"}
    return {**head, "choices": [choice], **more}


def text_chunk(text: str, finish: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "test-model", "choices": [choice]}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CHAT_EVENTS = (
    *(event(chunk(delta)) for delta in ({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"})),
    event(chunk(finish="stop")),
    event({**chunk(), "choices": [], "usage": USAGE}),
    DONE,
)
TEXT_EVENTS = (
    event(text_chunk("Hel")),
    event(text_chunk("lo", "length")),
    event({"choices": [], "usage": USAGE}),
    DONE,
)


class FakeTicket:
    def __init__(self, backend: str, request: Request, user: str) -> None:
        self._backend = backend
        self.request = request
        self.user = user
        self.use_count = 0

    @property
    def backend(self) -> str:
        return self._backend


class FakeFront:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.chat: tuple[bytes, ...] = CHAT_EVENTS
        self.text: tuple[bytes, ...] = TEXT_EVENTS
        self.refusal: ApiError | None = None
        self.failure: Exception | None = None  # after all that it says
        self.pause_s = 0.0  # before the last thing it says
        self.tickets: list[FakeTicket] = []
        self.told: list[Told] = []
        self.decoded: list[object] = []  # of the requests, as they are admitted
        self.closed_count = 0

    def admit(self, backend: str, request: Request, *, user: str = "", has_upload: bool = False) -> FakeTicket:
        assert not has_upload
        if self.refusal is not None:
            raise self.refusal
        self.tickets.append(FakeTicket(backend, request, user))
        self.decoded.append(request.decoded)
        return self.tickets[-1]

    def respond(self, ticket: Ticket, headers: Mapping[str, str], content_type: str = "text/event-stream") -> Response:
        return StreamingResponse(
            self._said(self._used(ticket)), headers={**STREAM_HEADERS, **headers}, media_type=content_type
        )

    async def read(self, ticket: Ticket, told: Told) -> AsyncIterator[bytes]:
        used = self._used(ticket)
        self.told.append(told)
        try:
            async for piece in self._said(used):
                yield piece
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed_count += 1

    def _used(self, ticket: Ticket) -> FakeTicket:
        assert isinstance(ticket, FakeTicket)
        ticket.use_count += 1
        return ticket

    async def _said(self, ticket: FakeTicket) -> AsyncIterator[bytes]:
        said = self.chat if ticket.request.endpoint == "chat" else self.text
        for piece in said[:-1]:
            yield piece
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        for piece in said[-1:]:
            yield piece


CUT = StreamCut("cut")


def page(code: HTTPStatus, **fields: object) -> Callable[[str], PageResponse]:
    return lambda _accept: json_response(code, fields)


def options(**more: object) -> Options:
    given: dict[str, object] = {"router": Router(TEST_ONLY, created_s=7), **more}
    return Options(**given)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def served(front: FakeFront, given: Options | FastAPI | None = None) -> Generator[str]:
    """The application on a socket of the loopback; its base."""
    listener = socket.create_server(("127.0.0.1", 0))
    application = given if isinstance(given, FastAPI) else build(front, given or options())
    config = uvicorn.Config(application, log_config=None, lifespan="off", loop="uvloop", http="httptools")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        deadline_s = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline_s, "the server does not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def client_at(base: str) -> httpx.Client:
    return httpx.Client(base_url=base, timeout=10)


@contextlib.contextmanager
def client_of(front: FakeFront, given: Options | None = None) -> Generator[httpx.Client]:
    with served(front, given) as base, client_at(base) as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, object]:
    """The error of a response that has all that one must have."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    body: dict[str, dict[str, object]] = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]
