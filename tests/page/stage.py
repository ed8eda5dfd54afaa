"""The front's own application with scripted streams behind it, so that they can misbehave as no daemon does.

The questions of the chat are its stage directions: `cut`, `status 429`, ... (see `SCRIPTS`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.responses import Response, StreamingResponse

from backends.interface import Request
from daemon.control.http.api.errors import ApiError
from daemon.control.http.api.model_routing import Router, Served, UpstreamModels
from daemon.control.http.uvicorn.application import Options, build
from daemon.control.telemetry.server import PageResponse, json_response
from tests.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator, Mapping

    from fastapi import FastAPI

    from daemon.control.http.uvicorn.interface import Ticket
    from daemon.control.stream.client_outcome import Told
    from daemon.control.telemetry.server import Page

MODEL = "stage-1"
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0
PACE_S = 0.005


@dataclass
class Stage:
    """What the server is to do, and what it was asked. Tests change it; a field is written as a whole."""

    port: int = 0
    is_ready: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


# ---- the chat


def event(data: str, *, type_: str = "", end: str = "\n") -> bytes:
    head = f"event: {type_}{end}" if type_ else ""
    return f"{head}data: {data}{end}{end}".encode()


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]})


def tokens(texts: list[str]) -> Iterator[bytes]:
    yield event(chunk({"role": "assistant", "content": ""}))
    for text in texts:
        yield event(chunk({"content": text}))


def ending(count: int, finish: str = "stop") -> bytes:
    usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": count + 7}
    last = json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return event(chunk({}, finish)) + event(last) + b"data: [DONE]\n\n"


class CutOff(Exception):  # noqa: N818  (it ends an answer in the midst of its chunked body)
    """Raised below uvicorn, which closes the connection then."""


async def answered(question: str) -> AsyncIterator[bytes]:
    texts = [f"{word} " for word in f"You said: {question} That is all.".split()]
    for piece in tokens(texts):
        yield piece
        await asyncio.sleep(PACE_S)
    yield ending(len(texts))


async def slow(question: str) -> AsyncIterator[bytes]:
    del question
    for number in range(2000):
        yield event(chunk({"content": f"{number} "}))
        await asyncio.sleep(0.05)


async def silent(question: str) -> AsyncIterator[bytes]:
    del question
    yield b": nothing yet\n\n"
    await asyncio.sleep(60)


async def error_event(question: str) -> AsyncIterator[bytes]:
    del question
    for piece in tokens(["Half ", "an "]):
        yield piece
    yield event(json.dumps({"error": {"message": "the model went away", "code": "gone"}}), type_="error")


async def cut(question: str) -> AsyncIterator[bytes]:
    del question
    for piece in tokens(["Half ", "an "]):
        yield piece
    await asyncio.sleep(0.2)
    raise CutOff


async def ended(question: str) -> AsyncIterator[bytes]:
    del question
    for piece in tokens(["Half ", "an "]):
        yield piece


async def in_pieces(question: str) -> AsyncIterator[bytes]:
    """Every way to end a line, a comment, an event of two data lines, and letters of several bytes, byte by byte."""
    del question
    whole = (
        event(chunk({"content": "grüße, "}), end="\r\n")
        + b": a comment\r\n\r\n"
        + event(chunk({"content": "😀 "}), end="\r")
    )
    whole += b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"all"}}]}\n\n' + ending(3)
    for index in range(len(whole)):
        yield whole[index : index + 1]
        await asyncio.sleep(0)


async def markup(question: str) -> AsyncIterator[bytes]:
    del question
    yield event(chunk({"content": "<img src=x onerror=\"document.title='taken'\"><b>bold</b> & so on"}))
    yield ending(1, "length")


EXPLANATION = """\
Because a connection is not tied to the process that accepted it. A socket is an open file description in the kernel, \
and any number of descriptors, in any number of processes, can refer to it.

Apache accepts the browser's connection, checks who is asking, and then sends the descriptor itself over a socket, \
as an SCM_RIGHTS message. The kernel gives the daemon a descriptor of its own for the same connection. Apache closes \
its own and is free again; the browser has noticed nothing, and from then on the daemon writes to it directly."""


async def explained(question: str) -> AsyncIterator[bytes]:
    """An answer that reads like one, at the speed of a model."""
    del question
    words = re.findall(r"\S+\s*", EXPLANATION)
    for piece in tokens(words):
        yield piece
        await asyncio.sleep(0.02)
    yield ending(len(words))


async def reasoned(question: str) -> AsyncIterator[bytes]:
    del question
    yield event(chunk({"reasoning_content": "Let me think."}))
    yield event(chunk({"content": "Forty-two."}))
    yield ending(2)


SCRIPTS = {
    "slow": slow,
    "silent": silent,
    "error event": error_event,
    "cut": cut,
    "ended": ended,
    "pieces": in_pieces,
    "markup": markup,
    "reason": reasoned,
    "Why can a daemon": explained,
}


class Played:
    """A stream that was let in."""

    backend = "openai"

    def __init__(self, question: str) -> None:
        self.question = question


class StageFront:
    """The front's way to the planes, with nobody behind it but the scripts."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def admit(self, backend: str, request: Request, *, user: str = "", has_upload: bool = False) -> Played:
        del backend, user, has_upload
        self._stage.asked.append(request.options)
        if found := re.fullmatch(r"status (\d+)", request.prompt):
            status = int(found[1])
            headers = {"Retry-After": "7"} if status == 429 else {}
            raise ApiError(status, "test", f"refused for the test with {status}", headers=headers)
        return Played(request.prompt)

    def respond(self, ticket: Ticket, headers: Mapping[str, str], content_type: str = "text/event-stream") -> Response:
        return StreamingResponse(self._played(ticket), headers=dict(headers), media_type=content_type)

    def read(self, ticket: Ticket, told: Told) -> AsyncIterator[bytes]:
        del told
        return self._played(ticket)

    async def _played(self, ticket: Ticket) -> AsyncIterator[bytes]:
        assert isinstance(ticket, Played)
        question = ticket.question
        script = next((play for name, play in SCRIPTS.items() if re.match(rf"{name}\b", question)), answered)
        async for piece in script(question):
            yield piece


# ---- the rest


def ready(stage: Stage) -> PageResponse:
    if stage.is_ready:
        return json_response(HTTPStatus.OK, {"status": "ready"})
    return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "not ready", "reason": "draining"})


def application(stage: Stage) -> FastAPI:
    """The front's own application, before a front of ours."""
    models = UpstreamModels("stage", (MODEL, "stage-2-large"))
    pages: dict[str, Page] = {"/ready": lambda _accept: ready(stage)}
    return build(StageFront(stage), Options(router=Router(Served(frozenset({"openai"}), (models,))), pages=pages))


@contextmanager
def running_stage() -> Generator[Stage]:
    """The server on a thread of its own, on a free port of loopback."""
    stage = Stage(unused_port())
    server = uvicorn.Server(
        uvicorn.Config(
            application(stage), port=stage.port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, name="stage")
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not server.started:
            assert time.monotonic() < deadline, "the stage did not start"
            assert thread.is_alive(), "the stage ended at once"
            time.sleep(0.01)
        yield stage
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS_MAX)
        assert not thread.is_alive(), "the stage did not end"


if __name__ == "__main__":  # by hand: python -m tests.page.stage
    with running_stage() as shown:
        print(shown.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
