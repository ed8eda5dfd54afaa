"""The mock: what its eighteen messages say, and its tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.interface import TEXT_BYTES_MAX, Fields, Message, Request, paced_chunks
from backends.mock import MESSAGE_COUNT, TOKENS_MAX, Mock, greeting
from backends.sse import DONE


def streamed(mock: Mock, **fields: object) -> bytes:
    """The whole body of a stream."""
    request = Request(Fields(**fields))  # type: ignore[arg-type]
    paced = mock.open(request)
    return b"".join(paced_chunks(paced, request)) + paced.finish()


def contents(body: bytes) -> list[str]:
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: "))["content"] for block in blocks]


def test_eighteen_messages() -> None:
    texts = contents(streamed(Mock({"message_delay_ms": 0}), prompt="Tell me", user_id=7))
    assert len(texts) == MESSAGE_COUNT == 18
    assert texts[0] == "Hello from Python daemon! Prompt: Tell me"
    assert texts[1] == "User ID: 7"
    assert len(set(texts[2:12])) == 10
    assert texts[12:17] == [f"This is message {number} of 18." for number in range(13, 18)]
    assert texts[17] == "[DONE-CONTENT]"


def test_the_pace() -> None:
    paced = Mock({"message_delay_ms": 20, "latency_ms": 300}).open(Request(Fields()))
    assert (paced.interval_ps, paced.latency_ms) == (20 * 10**9, 300)
    assert b"Hello" in paced.opening


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("x" * 50, "x" * 50),
        ("x" * 51, "x" * 50 + "..."),
        ("\U0001f600" * 60, "\U0001f600" * 50 + "..."),
        ('a"b\\c\n\x01', 'a"b\\c\n\x01'),
        ("", ""),
    ],
)
def test_the_prompt_is_cut_between_characters(prompt: str, shown: str) -> None:
    assert json.loads(greeting(prompt).decode().removeprefix("data: "))["content"].endswith(f"Prompt: {shown}")


def test_messages_win_over_the_prompt() -> None:
    messages = [
        Message("user", "first"),
        Message("user", [{"type": "text", "text": "last"}]),
        Message("assistant", "no"),
    ]
    assert b"Prompt: last" in streamed(Mock({"message_delay_ms": 0}), prompt="p", messages=messages)


def test_without_a_user() -> None:
    assert contents(streamed(Mock({"message_delay_ms": 0})))[1] == "User ID: 0"


@given(some.text() | some.integers())
def test_any_user_fits(user: str | int) -> None:
    paced = Mock({}).open(Request(Fields(user_id=user)))
    assert len(paced.text) <= TEXT_BYTES_MAX
    shown = json.loads(b'"' + paced.text + b'"')
    assert str(user).encode(errors="replace").decode().startswith(shown)


def test_tokens_as_content() -> None:
    mock = Mock({"tokens": 3})
    assert contents(streamed(mock)) == ["token_0", "token_1", "token_2"]
    assert len(contents(streamed(mock, max_tokens=11))) == 11
    assert streamed(mock, max_tokens=-1) == DONE
    assert mock.open(Request(Fields(max_tokens=1 << 60))).message_count == TOKENS_MAX


def test_tokens_as_completion_chunks() -> None:
    body = streamed(Mock({"tokens": 2, "format": "openai"}))
    chunks = [json.loads(line.removeprefix("data: ")) for line in body.decode().split("\n\n")[:-2]]
    assert [chunk["choices"] for chunk in chunks] == [
        [{"text": f"token_{number}", "index": 0, "logprobs": None, "finish_reason": None}] for number in range(2)
    ]
    for chunk in chunks:
        assert (chunk["object"], chunk["model"]) == ("text_completion", "test-model")
        assert chunk["id"] == chunks[0]["id"]
        assert len(chunk["id"]) == len("cmpl-") + 24
        assert chunk["created"] > 1_700_000_000
    assert b'": ' not in body


def test_the_test_model_is_always_there() -> None:
    assert len(contents(streamed(Mock({}), model="test-model"))) == 16
    assert Mock({"tokens": 1, "tokens_per_second": 400_000}).open(Request(Fields())).interval_ps == 2_500_000


def test_a_reload_changes_the_pace() -> None:
    mock = Mock({"message_delay_ms": 5})
    mock.reload({"message_delay_ms": 9})
    assert mock.open(Request(Fields())).interval_ps == 9 * 10**9
