"""LangChain's ChatOpenAI, unchanged, against the HTTP front: the test model and a relayed one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.behaviour.http_helpers import TEST_MODEL, Front, http_config, relayed, serving, tokens_of
from tests.upstream import Fault, Plan, Upstream, ask_usage, openai_stream
from tests.upstream.events import delta

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = ["The", " quick", " brown", " fox"]
ASKED = [SystemMessage("Be brief."), HumanMessage("Hello")]
CALL = [
    delta(role="assistant", content=None),
    delta(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":2,'}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": '"b":3}'}}]),
    delta("tool_calls"),
    b"data: [DONE]\n\n",
]


@pytest.fixture(name="front", scope="module")
def _front(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Upstream() as upstream:
        plans = {
            "some-model": Plan(openai_stream(WORDS, usage=ask_usage(3, 4))),
            "calling-model": Plan(CALL),
            "cut-model": Plan([*openai_stream(WORDS, finish=None, done=False)], fault=Fault.CUT),
        }
        for model, plan in plans.items():
            upstream.answer(model, plan)
        configuration = http_config(None, relayed(upstream, {model: model for model in plans}), backend="openai")
        with serving(kernel, tmp_path_factory.mktemp("langchain"), configuration) as front:
            front.upstream = upstream
            yield front


def chat_of(front: Front, model: str, **options: Any) -> ChatOpenAI:  # noqa: ANN401
    """LangChain's client."""
    return ChatOpenAI(model=model, base_url=front.base, api_key=SecretStr("unused"), max_retries=0, **options)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_an_answer_in_one_piece_and_streamed(front: Front) -> None:
    chat = chat_of(front, TEST_MODEL, max_tokens=5)
    answer = chat.invoke(ASKED)
    assert answer.content == tokens_of(5)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
    pieces = list(chat.stream(ASKED))
    assert "".join(str(piece.content) for piece in pieces) == tokens_of(5)
    assert len([piece for piece in pieces if piece.content]) == 5


def test_asynchronously_and_in_batches(front: Front) -> None:
    async def ask() -> tuple[str, list[str]]:
        chat = chat_of(front, "some-model")
        streamed = [str(piece.content) async for piece in chat.astream(ASKED)]
        answers = await chat.abatch([ASKED] * 3)
        return "".join(streamed), [str(answer.content) for answer in answers]

    assert asyncio.run(ask()) == ("".join(WORDS), ["".join(WORDS)] * 3)


def test_tools(front: Front) -> None:
    model: Any = chat_of(front, "calling-model")
    chat = model.bind_tools([add])
    (call,) = chat.invoke(ASKED).tool_calls
    assert add.invoke(call["args"]) == 5
    whole: Any = None
    for piece in chat.stream(ASKED):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls == [call]
    assert front.upstream is not None
    asked = front.upstream.requests("calling-model")[0].json
    assert asked["tools"][0]["function"]["name"] == "add"


def test_what_goes_wrong_is_raised(front: Front) -> None:
    with pytest.raises(openai.BadRequestError) as failed:
        chat_of(front, TEST_MODEL, temperature=7).invoke(ASKED)
    assert failed.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        list(chat_of(front, "gpt-nowhere").stream(ASKED))
    pieces: list[str] = []

    def read() -> None:
        for piece in chat_of(front, "cut-model").stream(ASKED):
            pieces.append(str(piece.content))  # noqa: PERF401  (what came is kept when the stream fails)

    with pytest.raises(openai.APIError):
        read()
    assert "".join(pieces) == "".join(WORDS)
