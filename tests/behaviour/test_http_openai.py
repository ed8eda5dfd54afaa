"""The official `openai` package, unchanged, against the HTTP front: the test model, relayed models, plain and TLS."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI
from pydantic import BaseModel

from tests.behaviour.daemon_process import Daemon
from tests.behaviour.http_helpers import TEST_MODEL, Front, http_config, relayed, serving, tls, tokens_of, url_of
from tests.behaviour.relay_helpers import CANCEL_S_MAX, refusal
from tests.upstream import Fault, Plan, Upstream, ask_usage, openai_stream
from tests.upstream.certificate import make_certificate
from tests.upstream.events import delta, error_event

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from tests.upstream import Request

WAYS = ("sync", "async")
ENDPOINTS = ("chat", "completions")
RELAYED = "some-model"
REFUSED = "refused-model"  # of an upstream of its own: a 429 with Retry-After holds all that would go there
BODY_BYTES_MAX = 65_536
PATIENCE_S = 2.0  # of a client that leaves by itself: its request must have come to the upstream by then
WORDS = ["The", " quick", " brown", " fox"]
BEGUN = openai_stream(WORDS, finish=None, done=False)
ASKED = [{"role": "user", "content": "Hello"}]
Way = Literal["sync", "async"]
_numbers = itertools.count()


@pytest.fixture(name="front", scope="module", params=["http", "https"])
def _front(request: pytest.FixtureRequest, kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    http: dict[str, object] = {"body_bytes_max": BODY_BYTES_MAX, **(tls() if request.param == "https" else {})}
    with Upstream() as upstream:
        upstream.answer(RELAYED, Plan(openai_stream(WORDS)))
        other = relayed(upstream, {RELAYED: "upstream", REFUSED: "refusing"})
        directory = tmp_path_factory.mktemp("front")
        with serving(kernel, directory, http_config(http, other, backend="openai")) as front:
            front.upstream = upstream
            yield front


@pytest.fixture(name="client")
def _client(front: Front) -> Iterator[OpenAI]:
    with client_of(front) as client:
        yield client


@cache
def trusting() -> ssl.SSLContext:
    """The certificate of the tests, and nothing else."""
    return ssl.create_default_context(cafile=str(make_certificate().certificate_file))


@contextmanager
def client_of(front: Front, **options: Any) -> Generator[OpenAI]:  # noqa: ANN401  (the package's)
    """A client that asks once, unless it is told otherwise."""
    options = {"max_retries": 0, "api_key": "unused", "timeout": 20.0, **options}
    with DefaultHttpxClient(verify=trusting()) as http:
        yield OpenAI(base_url=front.base, http_client=http, **options)


def async_client_of(front: Front, http: httpx2.AsyncClient) -> AsyncOpenAI:
    """The same."""
    return AsyncOpenAI(base_url=front.base, http_client=http, max_retries=0, api_key="unused", timeout=20.0)


def fields_of(endpoint: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """What is asked for, unless it is said otherwise."""
    return {"model": TEST_MODEL, **({"messages": ASKED} if endpoint == "chat" else {"prompt": "Hello"}), **fields}


def creating(client: Any, endpoint: str = "chat") -> Any:  # noqa: ANN401  (which result depends on the arguments)
    """The method that asks."""
    return (client.chat.completions if endpoint == "chat" else client.completions).create


def whole(front: Front, way: Way, endpoint: str, **fields: Any) -> Any:  # noqa: ANN401
    """An answer in one piece."""
    given = fields_of(endpoint, **fields)
    if way == "sync":
        with client_of(front) as client:
            return creating(client, endpoint)(**given)

    async def ask() -> Any:  # noqa: ANN401
        async with DefaultAsyncHttpxClient(verify=trusting()) as http:
            client = async_client_of(front, http)
            return await creating(client, endpoint)(**given)

    return asyncio.run(ask())


def streamed(front: Front, way: Way, endpoint: str, found: list[Any] | None = None, **fields: Any) -> list[Any]:  # noqa: ANN401
    """The chunks of a stream; in `found` also those that came before something went wrong."""
    chunks: list[Any] = [] if found is None else found
    given = fields_of(endpoint, stream=True, **fields)
    if way == "sync":
        with client_of(front) as client:
            for chunk in creating(client, endpoint)(**given):
                chunks.append(chunk)  # noqa: PERF402  (what came is kept when the stream fails)
        return chunks

    async def ask() -> None:
        async with DefaultAsyncHttpxClient(verify=trusting()) as http:
            client = async_client_of(front, http)
            async for chunk in await creating(client, endpoint)(**given):
                chunks.append(chunk)  # noqa: PERF401  (what came is kept when the stream fails)

    asyncio.run(ask())
    return chunks


def text_of(chunks: list[Any], index: int = 0) -> str:
    """What an answer says, by its index."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join((choice.delta.content if hasattr(choice, "delta") else choice.text) or "" for choice in choices)


def text_of_choice(choice: Any) -> str:  # noqa: ANN401
    """The same of an answer in one piece."""
    return str(choice.message.content if hasattr(choice, "message") else choice.text)


def planned(front: Front, *plans: Plan, model: str = RELAYED) -> dict[str, Any]:
    """Fields of a request to the upstream that gets these plans."""
    name = f"openai-{next(_numbers)}"
    assert front.upstream is not None
    front.upstream.answer(name, *plans)
    return {"model": model, "extra_headers": {"X-Request-Id": name}}


def request_of(front: Front, fields: dict[str, Any], count: int = 1) -> Request:
    """How the upstream saw it last."""
    assert front.upstream is not None
    return front.upstream.wait_for_requests(count, fields["extra_headers"]["X-Request-Id"])[-1]


# ---- answers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_answer_in_one_piece(front: Front, way: Way, endpoint: str) -> None:
    answer = whole(front, way, endpoint, max_tokens=5)
    assert text_of_choice(answer.choices[0]) == tokens_of(5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == TEST_MODEL
    assert answer.object == ("chat.completion" if endpoint == "chat" else "text_completion")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (1, 5, 6)
    assert abs(answer.created - time.time()) < 60
    assert answer._request_id


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_stream(front: Front, way: Way, endpoint: str) -> None:
    chunks = streamed(front, way, endpoint, max_tokens=200)
    assert text_of(chunks) == tokens_of(200)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_several_answers_that_stop_with_counts(front: Front, way: Way, endpoint: str) -> None:
    fields: dict[str, Any] = {"n": 3, "stop": ["token_4"], "max_tokens": 9}
    answer = whole(front, way, endpoint, **fields)
    assert [text_of_choice(choice) for choice in answer.choices] == [tokens_of(4)] * 3
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    chunks = streamed(front, way, endpoint, stream_options={"include_usage": True}, **fields)
    assert [text_of(chunks, index) for index in range(3)] == [tokens_of(4)] * 3
    assert chunks[-1].choices == []
    assert chunks[-1].usage == answer.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_is_relayed(front: Front, way: Way, endpoint: str) -> None:
    if endpoint == "completions":
        events = [
            f'data: {{"id":"c","object":"text_completion","created":1,"model":"m","choices":[{{"index":0,"text":'
            f'"{word}","logprobs":null,"finish_reason":null}}]}}\n\n'.encode()
            for word in WORDS
        ]
        plan = Plan([*events, b"data: [DONE]\n\n"])
    else:
        plan = Plan(openai_stream(WORDS, usage=ask_usage(3, 4)))
    fields = planned(front, plan)
    assert text_of(streamed(front, way, endpoint, **fields)) == "".join(WORDS)
    assert text_of_choice(whole(front, way, endpoint, **fields).choices[0]) == "".join(WORDS)
    asked = request_of(front, fields, 2)
    assert asked.path == ("/v1/chat/completions" if endpoint == "chat" else "/v1/completions")
    assert asked.json["stream"] is True


def test_calls_of_tools_through_a_relay(front: Front, client: OpenAI) -> None:
    calls = [
        delta(role="assistant", content=None),
        delta(
            tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "now", "arguments": ""}}]
        ),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"zone":'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '"UTC"}'}}]),
        delta("tool_calls"),
        b"data: [DONE]\n\n",
    ]
    fields = planned(front, Plan(calls))
    tool: Any = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    asked: Any = fields_of("chat", tools=[tool], tool_choice="auto", **fields)
    message = creating(client)(**asked).choices[0].message
    assert message.content is None
    (call,) = message.tool_calls
    assert (call.id, call.type, call.function.name, call.function.arguments) == (
        "call_1",
        "function",
        "now",
        '{"zone":"UTC"}',
    )
    with client.chat.completions.stream(**asked) as stream:
        final: Any = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"zone":"UTC"}'
    assert request_of(front, fields, 2).json["tools"] == [tool]
    # What a tool gave goes back in a message of its own.
    back = planned(front, Plan(openai_stream(["noon"])))
    given: Any = [*ASKED, message.to_dict(), {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}]
    assert creating(client)(messages=given, **back).choices[0].message.content == "noon"
    assert request_of(front, back).json["messages"] == given


def test_an_answer_that_is_parsed(front: Front, client: OpenAI) -> None:
    class Animal(BaseModel):
        name: str
        legs: int

    fields = planned(front, Plan(openai_stream(['{"name":"fox",', '"legs":4}'])))
    parsed = client.chat.completions.parse(**fields_of("chat", response_format=Animal, **fields))
    assert parsed.choices[0].message.parsed == Animal(name="fox", legs=4)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == sorted([RELAYED, REFUSED, TEST_MODEL])
    assert client.models.retrieve(RELAYED).owned_by == "upstream"
    with pytest.raises(openai.NotFoundError) as failed:
        client.models.retrieve("no-such-model")
    assert failed.value.code == "model_not_found"


def test_one_client_asks_again_and_again(front: Front, client: OpenAI) -> None:
    with front.leaves_nothing():
        for count in range(30):
            stream = client.completions.create(model=TEST_MODEL, prompt="", max_tokens=count, stream=True)
            assert text_of(list(stream)) == tokens_of(count)
            assert client.completions.create(model=TEST_MODEL, prompt="", max_tokens=count).choices[
                0
            ].text == tokens_of(count)
        client.close()


# ---- errors


WRONG: dict[str, dict[str, object]] = {
    "temperature": {"temperature": 5},
    "max_tokens": {"max_tokens": -1},
    "messages": {"messages": []},
    "messages[0].content": {"messages": [{"role": "user"}]},
    "stop": {"stop": ["a"] * 5},
    "n": {"n": "three"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ask", [whole, streamed])
def test_a_field_that_is_wrong(front: Front, way: Way, ask: Any) -> None:  # noqa: ANN401
    for param, fields in WRONG.items():
        with pytest.raises(openai.BadRequestError) as failed:
            ask(front, way, "chat", **fields)
        assert failed.value.param == param
        assert failed.value.type == "invalid_request_error"
        assert param in failed.value.message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ask", [whole, streamed])
def test_a_model_that_is_not_there(front: Front, way: Way, ask: Any) -> None:  # noqa: ANN401
    with pytest.raises(openai.NotFoundError) as failed:
        ask(front, way, "chat", model="gpt-nowhere")
    assert (failed.value.code, failed.value.param) == ("model_not_found", "model")


def test_what_is_not_there_and_what_is_not_taken(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model=TEST_MODEL, input="text")
    assert missing.value.code == "route_not_found"
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=TEST_MODEL, prompt="x" * (2 * BODY_BYTES_MAX))
    assert (large.value.status_code, large.value.code) == (413, "body_too_large")
    with pytest.raises(openai.APIStatusError) as unsupported:
        client.completions.create(model=TEST_MODEL, prompt="x", extra_headers={"Content-Type": "text/plain"})
    assert (unsupported.value.status_code, unsupported.value.code) == (415, "unsupported_media_type")
    assert client.completions.create(model=TEST_MODEL, prompt="x", max_tokens=1).choices[0].text == tokens_of(1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ask", [whole, streamed])
def test_what_an_upstream_refuses(front: Front, way: Way, ask: Any) -> None:  # noqa: ANN401
    for status, kind in ((400, openai.BadRequestError), (503, openai.InternalServerError)):
        with pytest.raises(kind) as failed:
            ask(front, way, "chat", **planned(front, refusal(status, "not today")))
        assert failed.value.status_code == status
    with pytest.raises(openai.RateLimitError) as limited:
        ask(front, way, "chat", **planned(front, refusal(429, "slowly", Retry_After="7"), model=REFUSED))
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 7


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "end", [Fault.CUT, Fault.RESET, error_event("the model fell over")], ids=["cut", "reset", "event"]
)
def test_an_answer_that_goes_wrong_is_no_answer(front: Front, way: Way, end: bytes | Fault) -> None:
    fields = planned(front, Plan([*BEGUN, end]))
    chunks: list[Any] = []
    with pytest.raises(openai.APIError) as failed:
        streamed(front, way, "chat", chunks, **fields)
    assert text_of(chunks) == "".join(WORDS)
    assert failed.value.message
    with pytest.raises(openai.InternalServerError):
        whole(front, way, "chat", **fields)


def test_a_stream_that_ends_with_the_daemon_raises(front: Front, kernel: str, tmp_path: Path) -> None:
    is_https = front.url.startswith("https")
    configuration = http_config(tls() if is_https else {}, "[backend.test_model]\ntokens_per_second = 50")
    daemon = Daemon(tmp_path, kernel, configuration=configuration).start()
    assert daemon.process is not None

    class Killing(list[Any]):
        def append(self, chunk: Any) -> None:  # noqa: ANN401
            super().append(chunk)
            if len(self) == 3 and daemon.process is not None:
                daemon.process.kill()
                daemon.process.wait()

    chunks = Killing()
    own = Front(daemon, url_of(daemon))
    try:
        with pytest.raises((openai.APIConnectionError, httpx2.TransportError)):  # the second before version 3
            streamed(own, "async" if is_https else "sync", "completions", chunks, max_tokens=10_000)
    finally:
        daemon.process.kill()
        daemon.process.wait()
    assert len(chunks) >= 3


# ---- leaving and waiting


@pytest.mark.parametrize("moment", ["in mid-stream", "before the first byte"])
def test_a_client_that_leaves_stops_the_upstream(front: Front, client: OpenAI, moment: str) -> None:
    with front.leaves_nothing():
        is_early = moment == "before the first byte"
        stalled = (
            Plan(fault=Fault.STALL, fault_in_head=True, fault_at=0) if is_early else Plan(BEGUN, fault=Fault.STALL)
        )
        fields = planned(front, stalled)
        assert front.upstream is not None
        if is_early:
            with pytest.raises(openai.APITimeoutError):
                creating(client.with_options(timeout=PATIENCE_S))(**fields_of("chat", stream=True, **fields))
            front.upstream.wait_gone(request_of(front, fields))
        else:
            stream = creating(client)(**fields_of("chat", stream=True, **fields))
            assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", *WORDS[:2]]
            left_s = time.monotonic()
            stream.close()
            assert front.upstream.wait_gone(request_of(front, fields)) - left_s < CANCEL_S_MAX
        client.close()


def test_a_client_that_gives_up_on_a_whole_answer_stops_the_upstream(front: Front, client: OpenAI) -> None:
    with front.leaves_nothing():
        fields = planned(front, Plan(BEGUN, fault=Fault.STALL))
        with pytest.raises(openai.APITimeoutError):
            creating(client.with_options(timeout=PATIENCE_S))(**fields_of("chat", **fields))
        assert front.upstream is not None
        front.upstream.wait_gone(request_of(front, fields))

        async def cancelled() -> None:
            async with DefaultAsyncHttpxClient(verify=trusting()) as http:
                asking = creating(async_client_of(front, http))(**fields_of("chat", **fields))
                task = asyncio.ensure_future(asking)
                await asyncio.to_thread(request_of, front, fields, 2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

        asyncio.run(cancelled())
        front.upstream.wait_gone(request_of(front, fields, 2))
        client.close()
