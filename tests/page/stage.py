"""The front's own application with scripted streams behind it, so that they can misbehave as no daemon does.

The questions of the chat are its stage directions: `many 500`, `cut`, `status 429`, ... (see `SCRIPTS`). The audio goes
through the real backend of mel features.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import re
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from backends.interface import BackendError, Fields, Request
from backends.mel.backend import Mel
from daemon.control.http.application import Options, build
from daemon.control.http.errors import ApiError
from daemon.control.http.keys import Keys
from daemon.control.http.middleware import PROTOCOL
from daemon.control.http.routing import Router, Served, UpstreamModels
from daemon.control.monitoring import Answer, json_answer
from tests.apache.environment import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator, Mapping

    from fastapi import FastAPI
    from starlette.requests import Request as HttpRequest
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket

    from daemon.control.http.interface import Ticket

MODEL = "stage-1"
START_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 10.0
PACE_S = 0.005
KEY = "open-sesame"


@dataclass
class Stage:
    """What the server is to do, and what it was asked. Tests change it; a field is written as a whole."""

    port: int = 0
    wants_key: bool = False
    has_mel: bool = True
    is_ready: bool = True
    streams_active: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    audio_asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    cancelled_count: int = 0
    metrics_count: int = 0

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


async def many(question: str) -> AsyncIterator[bytes]:
    count = int(question.split()[1])
    for start in range(0, count, 100):
        texts = [f"t{number} " + "\n" * (number % 40 == 39) for number in range(start, min(start + 100, count))]
        yield b"".join(event(chunk({"content": text})) for text in texts)
    yield ending(count)


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
    "many": many,
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
        return StreamingResponse(self.read(ticket), headers=dict(headers), media_type=content_type)

    async def read(self, ticket: Ticket) -> AsyncIterator[bytes]:
        assert isinstance(ticket, Played)
        question = ticket.question
        script = next((play for name, play in SCRIPTS.items() if re.match(rf"{name}\b", question)), answered)
        try:
            async for piece in script(question):
                yield piece
        except asyncio.CancelledError:
            self._stage.cancelled_count += 1
            raise


# ---- the audio


def mel_request(options: dict[str, Any], body: Iterator[bytes], headers: Mapping[str, str]) -> Request:
    request = Request(Fields(), json.dumps({"options": options}).encode(), headers)
    request.body = body
    return request


def options_of(query: Mapping[str, str]) -> dict[str, Any]:
    numbers = {"bins", "sample_rate", "channels"}
    return {name: int(value) if name in numbers else value for name, value in query.items()}


async def audio_stream(request: HttpRequest) -> Response:
    stage: Stage = request.app.state.stage
    if not stage.has_mel:
        raise ApiError(501, "mel_disabled", "the backend mel is not enabled here")
    options = options_of(request.query_params)
    body = await request.body()
    stage.audio_asked.append({"way": "body", "bytes": len(body), **options})
    mel: Mel = request.app.state.mel
    pieces = mel.chunks(mel_request(options, iter([body] if body else []), dict(request.headers)))
    try:
        first = next(pieces)
    except BackendError as problem:
        raise ApiError(problem.status, None, str(problem)) from problem
    return StreamingResponse(with_first(first, pieces), media_type="application/octet-stream")


async def with_first(first: bytes, rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in iterate_in_threadpool(rest):
        yield piece
        await asyncio.sleep(PACE_S)


async def audio_socket(socket: WebSocket) -> None:
    stage: Stage = socket.app.state.stage
    if not stage.has_mel:
        await socket.close()
        return
    await socket.accept(PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
    options: dict[str, Any] = json.loads(await socket.receive_text())
    stage.audio_asked.append({"way": "socket", **options})
    options["sample_format"] = options.pop("format")
    arrived: queue.Queue[bytes] = queue.Queue(64)
    request = mel_request({**options, "format": "binary"}, iter(arrived.get, b""), {})
    mel: Mel = socket.app.state.mel

    async def send() -> None:
        try:
            async for piece in iterate_in_threadpool(mel.chunks(request)):
                await socket.send_bytes(piece)
        except BackendError as problem:
            await socket.send_json({"error": {"message": str(problem), "code": None}})

    sending = asyncio.create_task(send())
    try:
        message: dict[str, Any] = dict(await socket.receive())
        while message.get("bytes") is not None:
            await asyncio.to_thread(arrived.put, message["bytes"])
            message = dict(await socket.receive())
    except WebSocketDisconnect:
        message = {}
    await asyncio.to_thread(arrived.put, b"")
    if message.get("text") is None:
        sending.cancel()
        return
    await sending
    await socket.close()


# ---- the rest


METRICS = """\
# HELP streaming_daemon_connections_active Streams that are open.
# TYPE streaming_daemon_connections_active gauge
streaming_daemon_connections_active {active}
streaming_daemon_connections_peak 12.0
streaming_daemon_connections_max 10000.0
streaming_daemon_slots_used {active}
streaming_daemon_queue_length 0.0
streaming_daemon_upstream_connections_idle 3.0
streaming_daemon_info{{kernel="io_uring",version="0.1.0",backend="openai",quoted="a \\"b\\" \\\\ c"}} 1.0
streaming_daemon_tokens_total {tokens}
streaming_daemon_messages_total {tokens}
streaming_daemon_accepted_total {streams}
streaming_daemon_streams_ended_total{{reason="complete"}} {streams}
streaming_daemon_streams_ended_total{{reason="upstream_cut"}} {errors}
streaming_daemon_streams_ended_total{{reason="refused"}} 1.0
streaming_daemon_handoffs_rejected_total{{reason="too_many_streams"}} 1.0
streaming_daemon_upstream_streams_active{{upstream="vllm-a"}} {active}
streaming_daemon_upstream_breaker_state{{upstream="vllm-a",state="closed"}} 1.0
streaming_daemon_upstream_breaker_state{{upstream="vllm-a",state="half_open"}} 0.0
gen_ai_server_time_to_first_token_seconds_bucket{{upstream="vllm-a",le="0.01"}} 0.0
gen_ai_server_time_to_first_token_seconds_bucket{{upstream="vllm-a",le="0.02"}} {streams}
gen_ai_server_time_to_first_token_seconds_bucket{{upstream="vllm-a",le="+Inf"}} {streams}
process_resident_memory_bytes 1.47e+08
process_start_time_seconds {started}
"""


def metrics(stage: Stage) -> Answer:
    """A daemon that has sent 500 tokens, 10 streams and one error more each time it is asked."""
    stage.metrics_count += 1
    count = stage.metrics_count
    values = {"tokens": 500 * count, "streams": 10 * count, "errors": count, "started": time.time() - 3700}
    text = METRICS.format(active=stage.streams_active, **values)
    return Answer(HTTPStatus.OK, text.encode(), "text/plain; version=0.0.4; charset=utf-8")


def ready(stage: Stage) -> Answer:
    if stage.is_ready:
        return json_answer(HTTPStatus.OK, {"status": "ready"})
    return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "not ready", "reason": "draining"})


def application(stage: Stage, mel: Mel, keys: Keys | None) -> FastAPI:
    """The front's own application, before a front of ours."""
    models = UpstreamModels("stage", (MODEL, "stage-2-large"))
    app = build(
        StageFront(stage),
        Options(
            router=Router(Served(frozenset({"openai"}), (models,))),
            pages={"/metrics": lambda _accept: metrics(stage), "/ready": lambda _accept: ready(stage)},
            keys=keys,
        ),
    )
    app.add_route("/audio/stream", audio_stream, methods=["POST"])
    app.router.routes.append(WebSocketRoute("/audio/ws", audio_socket))
    app.state.stage = stage
    app.state.mel = mel
    return app


def switching(stage: Stage) -> ASGIApp:
    """With keys or without, as a test has it."""
    mel = Mel({"enabled": True})
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"reader: {KEY}\n")
        file.flush()
        keys = Keys(file.name)
    guarded, free = application(stage, mel, keys), application(stage, mel, None)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (guarded if stage.wants_key else free)(scope, receive, send)

    return app


@contextmanager
def running_stage() -> Generator[Stage]:
    """The server on a thread of its own, on a free port of loopback."""
    stage = Stage(free_port())
    server = uvicorn.Server(
        uvicorn.Config(
            switching(stage),
            port=stage.port,
            log_level="critical",
            lifespan="off",
            ws="websockets-sansio",
            timeout_graceful_shutdown=1,
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
