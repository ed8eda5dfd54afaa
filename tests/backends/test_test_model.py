"""The load-test model: shapes that OpenAI's client reads, counts, stop strings, answers side by side, errors."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from backends.interface import BackendError, Endpoint, Fields, Request, paced_chunks
from backends.sse import DONE
from backends.stop_search import token_text
from backends.test_model import CHOICES_MAX, MODEL, TOKENS_MAX, TestModel, events, plan_of

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = "".join(map(token_text, range(300)))
UNPACED = TestModel({"tokens_per_second": 0})


class Patience:
    """A control that waits for nothing, and is over after so many pauses."""

    def __init__(self, pauses: int) -> None:
        self.left = pauses
        self.seconds: list[float] = []

    def cancelled(self) -> bool:
        return self.left <= 0

    def cancel_fd(self) -> int:
        return -1

    def pause(self, seconds: float) -> bool:
        self.left -= 1
        self.seconds.append(seconds)
        return self.cancelled()


def requested(endpoint: Endpoint = "completions", **said: object) -> Request:
    return Request(Fields(), json.dumps(said).encode() if said else b"", endpoint=endpoint)


def streamed(request: Request) -> bytes:
    """The whole body of a stream, by the way that it takes."""
    paced = UNPACED.open(request)
    if paced is not None:
        return b"".join(paced_chunks(paced, request)) + paced.finish()
    return b"".join(piece for piece in UNPACED.chunks(request) if isinstance(piece, bytes)) + UNPACED.end


def read(body: bytes, *, is_chat: bool = False) -> list[dict[str, Any]]:
    """Every event before `[DONE]`, as OpenAI's client takes it, too."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    found: list[dict[str, Any]] = [json.loads(block.removeprefix("data: ")) for block in blocks]
    prefix, kind = ("chatcmpl", "chat.completion.chunk") if is_chat else ("cmpl", "text_completion")
    assert len({event["id"] for event in found}) <= 1
    for event in found:
        assert re.fullmatch(prefix + "-[0-9a-f]{24}", event["id"])
        assert (event["object"], event["model"]) == (kind, MODEL)
        assert abs(event["created"] - time.time()) < 60
        if is_chat:
            ChatCompletionChunk.model_validate(event, strict=True)
        else:  # the client's class is that of whole answers, too, which always have a reason; streams have null
            choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in event["choices"]]
            Completion.model_validate({**event, "choices": choices}, strict=True)
    return found


def cut_out(start: int, size: int) -> str:
    return TEXT[start : start + size]


def completion(**said: object) -> list[dict[str, Any]]:
    return read(streamed(requested("completions", **said)))


def chat(**said: object) -> list[dict[str, Any]]:
    said = {"messages": [{"role": "user", "content": "Tell me"}], **said}
    return read(streamed(requested("chat", **said)), is_chat=True)


def texts(found: list[dict[str, Any]], index: int = 0) -> list[str]:
    return [choice["text"] for event in found for choice in event["choices"] if choice["index"] == index]


def reasons(found: list[dict[str, Any]], index: int = 0) -> list[str | None]:
    return [choice["finish_reason"] for event in found for choice in event["choices"] if choice["index"] == index]


@pytest.mark.parametrize("count", [1, 2, 16, 300])
def test_a_completion_is_an_event_a_token(count: int) -> None:
    found = completion(prompt="Hello", max_tokens=count)
    assert texts(found) == [token_text(number) for number in range(count)]
    assert reasons(found) == [None] * (count - 1) + ["length"]
    assert all("usage" not in event for event in found)
    assert all(event["choices"][0]["logprobs"] is None for event in found)


def test_defaults() -> None:
    assert len(completion()) == len(completion(prompt=None, max_tokens=None, n=None, stop=None, echo=None)) == 16
    assert len(read(streamed(requested("")))) == 16
    assert completion(max_tokens=0) == []
    assert UNPACED.format == "openai"


def test_a_conversation() -> None:
    found = chat(max_tokens=3)
    deltas = [event["choices"][0]["delta"] for event in found]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1:4] == [{"content": token_text(number)} for number in range(3)]
    assert deltas[4:] == [{}]
    assert reasons(found) == [None] * 4 + ["length"]
    assert b'"delta":{"content":"token_0 "}' in streamed(requested("chat", messages=[]))
    assert len(chat(max_tokens=5, max_completion_tokens=2)) == 4
    assert len(chat(max_tokens=0)) == 2
    assert len(completion(max_tokens=3, max_completion_tokens=2)) == 3


def test_a_handoff_is_what_it_looks_like() -> None:
    assert read(streamed(requested("", messages=[{"role": "user", "content": "a"}])), is_chat=True)
    assert len(read(streamed(requested("", prompt="a", max_tokens=4)))) == 4


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(
    ("prompt", "words", "answers"),
    [
        *(("", 0, 1), (None, 0, 1), (" one  two\nthree ", 3, 1), ([5, 6, 7, 8], 4, 1)),
        *((["a b", "c"], 3, 2), ([[1, 2], [3]], 3, 2)),
    ],
)
def test_usage(prompt: object, words: int, answers: int, *, continuous: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    *found, last = completion(prompt=prompt, max_tokens=5, stream_options=options)
    assert last["choices"] == []
    total = 5 * answers
    expected = {"prompt_tokens": words, "completion_tokens": total, "total_tokens": words + total}
    assert last["usage"] == expected
    assert len(found) == total
    if continuous:
        counted = [event["usage"]["completion_tokens"] for event in found]
        assert counted == list(range(1, total + 1))
    else:
        assert [event["usage"] for event in found] == [None] * total


def test_usage_of_a_conversation() -> None:
    parts = [{"type": "text", "text": "two words"}, {"type": "image_url"}]
    messages = [{"role": "system", "content": "be nice"}, {"role": "user", "content": parts}]
    *found, last = chat(messages=messages, max_tokens=2, stream_options={"include_usage": True})
    assert [event["usage"] for event in found] == [None] * 4
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert last["choices"] == []
    *_, final, _ = chat(max_tokens=2, n=3, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert final["usage"]["completion_tokens"] == 6


def test_the_counts_of_the_largest_stream_fit() -> None:
    request = requested(prompt="a " * 2_000_000, max_tokens=TOKENS_MAX, stream_options={"include_usage": True})
    paced = UNPACED.open(request)
    assert paced is not None
    assert len(paced.closing) <= 64
    assert paced.message_count == TOKENS_MAX - 1


def test_echo() -> None:
    found = completion(prompt='say "é"\n', echo=True, max_tokens=2)
    assert texts(found) == ['say "é"\n', "token_0 ", "token_1 "]
    assert reasons(found) == [None, None, "length"]
    found = completion(prompt=[7, 8], echo=True, max_tokens=0)
    assert texts(found) == ["token_7 token_8 "]
    assert reasons(found) == ["length"]
    assert chat(echo=True, max_tokens=1)[0]["choices"][0]["delta"]["content"] == ""


def test_a_prompt_is_shown_in_many_answers_and_made_once() -> None:
    raw = msgspec.json.encode({"prompt": [[1, 2], [3]], "echo": True, "n": 60})
    echoes = plan_of(Request(Fields(), raw, {}, "completions")).echoes
    assert list(echoes) == ["token_1 token_2 "] * 60 + ["token_3 "] * 60
    assert len({id(text) for text in echoes}) == 2


def test_answers_side_by_side() -> None:
    found = completion(prompt=["one", "two"], n=2, max_tokens=3, echo=True)
    for index, prompt in enumerate(("one", "one", "two", "two")):
        assert texts(found, index) == [prompt, "token_0 ", "token_1 ", "token_2 "]
        assert reasons(found, index) == [None, None, None, "length"]
    conversation = chat(n=2, max_tokens=1)
    assert [event["choices"][0]["index"] for event in conversation] == [0, 1] * 3
    assert [event["choices"][0]["delta"] for event in conversation[-2:]] == [{}, {}]
    assert len(completion(prompt=["a"] * CHOICES_MAX, max_tokens=1)) == CHOICES_MAX


@settings(max_examples=300, deadline=None)
@given(
    some.lists(
        some.builds(cut_out, some.integers(0, 1200), some.integers(1, 30)),
        min_size=1,
        max_size=4,
    ),
    some.integers(0, 150),
    some.booleans(),
    some.booleans(),
    some.integers(1, 2),
)
def test_a_stop_string_ends_it_anywhere(
    stops: list[str],
    limit: int,
    kept: bool,
    is_chat: bool,
    n: int,
) -> None:
    """Against a plain reading: the whole text is made, and looked through."""
    text = "".join(map(token_text, range(limit)))
    places = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    expected, finish = (text[: min(places)[0 if kept else 1]], "stop") if places else (text, "length")
    made = sum(
        1 for number in range(limit) if not places or len("".join(map(token_text, range(number)))) < min(places)[0]
    )
    said: dict[str, Any] = {"max_tokens": limit, "stop": stops, "include_stop_str_in_output": kept, "n": n}
    said["stream_options"] = {"include_usage": True}
    *found, last = chat(**said) if is_chat else completion(**said)
    assert last["usage"]["completion_tokens"] == made * n
    for index in range(n):
        if is_chat:
            pieces = [c["delta"].get("content", "") for e in found for c in e["choices"] if c["index"] == index]
        else:
            pieces = texts(found, index)
        assert "".join(pieces) == expected
        said_reasons = reasons(found, index)
        assert said_reasons[:-1] == [None] * len(said_reasons[:-1])
        assert said_reasons[-1:] == ([finish] if is_chat or limit else [])
        events_of_text = expected.count(" ") + (not expected.endswith(" ") and expected != "")
        count = events_of_text + 2 if is_chat else max(events_of_text, int(finish == "stop"))
        assert len(pieces) == count


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize("has_usage", [False, True])
@pytest.mark.parametrize("said", [{}, {"max_tokens": 1}, {"max_tokens": 0}, {"echo": True}, {"stop": "token_7"}])
def test_both_ways_say_the_same(said: dict[str, Any], *, is_chat: bool, has_usage: bool) -> None:
    """What the plane makes is, byte for byte, what the thread would have made."""
    said = {**said, "prompt": "a b", "stream_options": {"include_usage": has_usage}}
    request = requested("chat" if is_chat else "completions", messages=[], **said)
    paced = UNPACED.open(request)
    assert paced is not None
    by_plane = b"".join(paced_chunks(paced, request)) + paced.finish()
    plan = plan_of(request)
    by_thread = b"".join(UNPACED.chunks(request)) + DONE  # type: ignore[arg-type]
    unlike = re.compile(rb'-[0-9a-f]{24}","created":\d+')
    assert unlike.sub(b"", by_plane) == unlike.sub(b"", by_thread)
    assert paced.opening + b"".join(paced_chunks(paced._replace(opening=b""), request)) + paced.finish() == by_plane
    assert len(list(events(plan))) == by_plane.count(b"data: {") - has_usage


def test_who_makes_what() -> None:
    def in_plane(endpoint: Endpoint = "completions", **said: object) -> bool:
        return UNPACED.open(requested(endpoint, **said)) is not None

    assert in_plane(stop="token_9", echo=True, prompt="x", stream_options={"include_usage": True})
    assert in_plane("chat", messages=[], stop="token_0")
    assert in_plane(stop="ken_99 ", include_stop_str_in_output=True)
    assert not in_plane(n=2)
    assert not in_plane(stop="ken_9")
    assert not in_plane(stop="token_0")  # its one event is empty
    assert not in_plane(stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert in_plane(stream_options={"continuous_usage_stats": True})
    assert set(UNPACED.scripts()) >= {UNPACED.open(requested()).script}  # type: ignore[union-attr]


def test_the_pace() -> None:
    paced = TestModel({}).open(requested())
    assert paced is not None
    assert paced.interval_ps == 10**12 // 120_000
    model = TestModel({"tokens_per_second": 10})
    request = requested(n=2, max_tokens=3)
    patience = Patience(100)
    request.control = patience
    pieces = list(model.chunks(request))
    assert [piece.count(b"data: ") for piece in pieces if isinstance(piece, bytes)] == [1] * 6
    assert patience.seconds == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=0.05)
    request.control = Patience(2)
    assert len(list(model.chunks(request))) == 2
    model.reload({"tokens_per_second": 0})
    reloaded = model.open(requested())
    assert reloaded is not None
    assert reloaded.interval_ps == 0


def test_a_long_stream_of_a_thread_comes_in_bounded_pieces() -> None:
    pieces: Iterator[str | bytes] = UNPACED.chunks(requested(n=2, max_tokens=TOKENS_MAX))
    for _ in range(20):
        piece = next(pieces)
        assert isinstance(piece, bytes)
        assert piece.endswith(b"\n\n")
        assert 10_000 < len(piece) < 20_000


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": "many"}, "max_tokens", "int"),
    ({"max_tokens": -1}, "max_tokens", ">= 0"),
    ({"max_tokens": 2**31}, "max_tokens", "<= 2147483647"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens", "int"),
    ({"n": 0}, "n", ">= 1"),
    ({"n": 129}, "n", "<= 128"),
    ({"n": 65, "prompt": ["a", "b"]}, "n", "128 are allowed"),
    ({"stop": ["a"] * 5}, "stop", "<= 4"),
    ({"stop": [5]}, "stop", "str"),
    ({"stop": ["a", ""]}, "stop", "at least one character"),
    ({"echo": "yes"}, "echo", "bool"),
    ({"prompt": 5}, "prompt", "str"),
    ({"prompt": []}, "prompt", "not empty"),
    ({"prompt": [1, "a"]}, "prompt", "texts"),
    ({"prompt": [True]}, "prompt", "token numbers"),
    ({"prompt": [-1]}, "prompt", "token numbers"),
    ({"prompt": [[]]}, "prompt", "lists of them"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "bool"),
    ({"messages": [{"content": 5}]}, "messages[0].content", "str"),
]


@pytest.mark.parametrize(("said", "field", "right"), WRONG)
def test_what_is_wrong_is_named(said: dict[str, object], field: str, right: str) -> None:
    endpoints: tuple[Endpoint, ...] = ("", "completions", "chat")
    for endpoint in endpoints:
        if endpoint == "chat" and "prompt" in said:
            continue  # it has none
        with pytest.raises(BackendError) as refused:
            UNPACED.open(requested(endpoint, **said))
        assert refused.value.status == 400
        assert str(refused.value.param).startswith(field)
        assert refused.value.message.startswith(f"field `{refused.value.param}`")
        assert right in refused.value.message


def test_what_is_no_request_at_all() -> None:
    for raw in (b"{", b"[]", b'"x"', b"\xff"):
        with pytest.raises(BackendError, match=r"^the request cannot be read"):
            UNPACED.open(Request(Fields(), raw))
