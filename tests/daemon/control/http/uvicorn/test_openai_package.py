"""OpenAI's own client against this server: streams, whole answers, models, and each error as the class it has there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from daemon.control.http.api.errors import ApiError
from tests.daemon.control.http.uvicorn.fakes import CHAT_EVENTS, CUT, FakeFront, chunk, event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types.chat import ChatCompletionMessageParam

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


pytestmark = pytest.mark.usefixtures("front")  # as it was before each test


@pytest.fixture
def client(server: tuple[FakeFront, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="any", base_url=f"{server[1]}/v1", max_retries=0) as found:
        yield found


def test_a_streamed_conversation(client: openai.OpenAI) -> None:
    text, usage = "", None
    with client.chat.completions.create(
        model="test-model", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for part in stream:
            text += "".join(choice.delta.content or "" for choice in part.choices)
            usage = part.usage or usage
    assert text == "Hello"
    assert usage is not None
    assert usage.total_tokens == 5


def test_a_whole_conversation(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="test-model", messages=HELLO)
    assert found.choices[0].message.content == "Hello"
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None
    assert found.usage.completion_tokens == 2


def test_calls_of_tools(client: openai.OpenAI, front: FakeFront) -> None:
    call: dict[str, Any] = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
    front.chat = (
        event(chunk({"role": "assistant", "tool_calls": [call]})),
        event(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]})),
        event(chunk(finish="tool_calls")),
        b"data: [DONE]\n\n",
    )
    found = client.chat.completions.create(
        model="test-model",
        messages=HELLO,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    )
    calls = found.choices[0].message.tool_calls or []
    assert [(one.id, one.type) for one in calls] == [("c", "function")]
    assert calls[0].type == "function"
    assert (calls[0].function.name, calls[0].function.arguments) == ("f", "{}")


def test_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(model="test-model", prompt="Hello", max_tokens=5)
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("Hello", "length")
    parts = client.completions.create(model="test-model", prompt="Hello", stream=True)
    assert "".join(choice.text for part in parts for choice in part.choices) == "Hello"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["test-model"]
    assert client.models.retrieve("test-model").owned_by == "streaming-daemon"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (502, openai.InternalServerError),
        (503, openai.InternalServerError),
        (504, openai.InternalServerError),
    ],
)
def test_errors(client: openai.OpenAI, front: FakeFront, status: int, kind: type[openai.APIStatusError]) -> None:
    front.refusal = ApiError(status, "a_code", "what is wrong", param="n")
    for stream in (True, False):
        with pytest.raises(kind) as raised:
            client.chat.completions.create(model="test-model", messages=HELLO, stream=stream)
        assert (raised.value.code, raised.value.param) == ("a_code", "n")
        assert "what is wrong" in raised.value.message
        assert raised.value.request_id


def test_a_wrong_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature must be 2 or less") as raised:
        client.chat.completions.create(model="test-model", messages=HELLO, temperature=3)
    assert raised.value.param == "temperature"


def test_an_error_in_a_stream(client: openai.OpenAI, front: FakeFront) -> None:
    error = {"message": "the upstream fell silent", "type": "timeout", "param": None, "code": "upstream_timeout"}
    front.chat = (*CHAT_EVENTS[:2], b"event: error\n" + event({"error": error}))
    stream = client.chat.completions.create(model="test-model", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="fell silent"):
        list(stream)
    with pytest.raises(openai.InternalServerError, match="fell silent") as raised:
        client.chat.completions.create(model="test-model", messages=HELLO)
    assert raised.value.status_code == 504


def test_an_answer_that_is_cut(client: openai.OpenAI, front: FakeFront) -> None:
    front.chat, front.failure = CHAT_EVENTS[:2], CUT
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="test-model", messages=HELLO)
    assert raised.value.status_code == 502
