"""Events as one object: whatever way their bytes were cut, and whatever an upstream says."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from backends.sse import DONE
from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn.aggregation import Assembly, Event, SseReader
from tests.daemon.control.http.uvicorn.fakes import CHAT_EVENTS, USAGE, chunk, event, text_chunk


def assembled(*chunks: bytes, is_chat: bool = True) -> dict[str, Any]:
    reader, assembly = SseReader(), Assembly(is_chat=is_chat, model="asked")
    for piece in chunks:
        for found in reader.feed(piece):
            assembly.add(found)
    for found in reader.end():
        assembly.add(found)
    return assembly.result()


def message_of(*deltas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = assembled(*(event(chunk(delta)) for delta in deltas))["choices"][0]["message"]
    return found


def call(index: int, name: str | None = None, arguments: str | None = None, **more: object) -> dict[str, Any]:
    function = {name: value for name, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"index": index, **more, "function": function}]}


CALLS = (
    {"role": "assistant", "content": None},
    call(1, "second", "", id="b", type="function"),
    call(0, "first", '{"a', id="a", type="function"),
    call(1, arguments="{"),
    call(0, arguments='":1}'),
    call(1, arguments="}"),
)
LONG = (
    *(event(chunk(delta)) for delta in CALLS),
    b": keep-alive\n\n",
    b"\xef\xbb\xbf: no beginning\r\n\r\n",
    b"id: 5\nretry: 10\nevent: message\ndata: "
    + msgspec.json.encode(chunk({"reasoning_content": "h\u00e4"}))
    + b"\n\n",
    b'data: {"choices":[{"index":1,\ndata: "delta":{"content":"\xf0\x9f\x98\x80"}}]}\r\n\r\n',
    b'data:{"choices":[{"index":1,"delta":{"content":"!"},"finish_reason":"length"}]}\r\r',
    event(chunk(finish="tool_calls")),
    event({"choices": [], "usage": USAGE}),
    DONE,
)


def test_all_of_it() -> None:
    found = assembled(*LONG)
    assert found["usage"] == USAGE
    first, second = found["choices"]
    assert first["finish_reason"] == "tool_calls"
    assert first["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "h\u00e4",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "first", "arguments": '{"a":1}'}},
            {"id": "b", "type": "function", "function": {"name": "second", "arguments": "{}"}},
        ],
    }
    assert second == {
        "index": 1,
        "message": {"role": "assistant", "content": "\U0001f600!", "refusal": None},
        "logprobs": None,
        "finish_reason": "length",
    }


@given(some.data())
def test_cuts_change_nothing(data: some.DataObject) -> None:
    stream = b"".join(LONG)
    ends = data.draw(some.sampled_from([b"\n", b"\r\n", b"\r"]))
    stream = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", ends)
    cuts = sorted(data.draw(some.lists(some.integers(0, len(stream)), max_size=20)))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert assembled(*pieces) == assembled(*LONG)


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte(ends: bytes) -> None:
    stream = b"\xef\xbb\xbf" + b"".join(CHAT_EVENTS).replace(b"\n", ends)
    assert assembled(*(stream[index : index + 1] for index in range(len(stream)))) == assembled(*CHAT_EVENTS)


def test_an_event_without_its_blank_line_is_none() -> None:
    reader = SseReader()
    assert reader.feed(b"data: a\n\ndata: b\n") == [Event("", b"a")]
    assert reader.end() == []


def test_the_last_line_may_end_in_a_lone_return() -> None:
    reader = SseReader()
    assert reader.feed(b"event: x\rdata: a\r\r") == []
    assert reader.end() == [Event("x", b"a")]


def test_text_of_completions() -> None:
    found = assembled(event(text_chunk("a")), event(text_chunk("b", "stop")), DONE, is_chat=False)
    assert found["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"}]
    assert found["object"] == "text_completion"


def test_log_probabilities_are_joined() -> None:
    one: dict[str, Any] = {"token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": []}

    def with_one(index: int) -> bytes:
        said = chunk({"content": "a"})
        said["choices"] = [
            {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{**one, "n": index}], "refusal": None}}
        ]
        return event(said)

    found = assembled(with_one(1), with_one(2))["choices"][0]
    assert found["logprobs"] == {"content": [{**one, "n": 1}, {**one, "n": 2}], "refusal": None}

    def of_text(token: str, offset: int) -> bytes:
        probabilities: dict[str, Any] = {
            "tokens": [token],
            "token_logprobs": [-1.0],
            "top_logprobs": [{}],
            "text_offset": [offset],
        }
        return event({"choices": [{"index": 0, "text": token, "logprobs": probabilities}]})

    found = assembled(of_text("a", 0), of_text("b", 1), is_chat=False)["choices"][0]
    assert found["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{}, {}],
        "text_offset": [0, 1],
    }


def test_calls_that_are_said_whole_again_and_again() -> None:
    found = message_of(call(0, "f", "{", id="a", type="function"), call(0, "f", "}", id="a", type="function"))
    assert found["tool_calls"] == [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert found["content"] is None


def test_calls_without_an_index() -> None:
    one = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    found = message_of({"tool_calls": [one]}, {"tool_calls": [{**one, "id": "b"}]})
    assert [each["id"] for each in found["tool_calls"]] == ["a", "b"]


def test_the_older_call_of_a_function_and_a_refusal() -> None:
    found = message_of({"function_call": {"name": "f", "arguments": "{"}}, {"function_call": {"arguments": "}"}})
    assert found["function_call"] == {"name": "f", "arguments": "{}"}
    found = message_of({"refusal": "I "}, {"refusal": "will not"})
    assert (found["refusal"], found["content"]) == ("I will not", None)


def test_the_first_name_and_the_last_of_anything_else() -> None:
    found = assembled(
        event({**chunk({"content": "a"}), "system_fingerprint": None, "service_tier": "a"}),
        event({**chunk({"content": "b"}), "id": "other", "created": 9, "model": "n", "service_tier": "b"}),
        event({"choices": [{"index": 0, "stop_reason": 7, "finish_reason": "stop"}]}),
    )
    assert (found["id"], found["created"], found["model"]) == ("chatcmpl-1", 5, "test-model")
    assert found["service_tier"] == "b"
    assert "system_fingerprint" not in found
    assert found["choices"][0]["stop_reason"] == 7


def test_an_upstream_that_says_nothing_of_itself() -> None:
    found = assembled(event({"choices": [{"delta": {"content": "a"}}]}))
    assert found["model"] == "asked"
    assert found["id"].startswith("chatcmpl-")
    assert found["choices"][0]["finish_reason"] == "stop"


def test_what_cannot_be_understood() -> None:
    with pytest.raises(ApiError) as raised:
        assembled(b"data: <html>\n\n", b"data: 5\n\n", DONE)
    assert (raised.value.status, raised.value.code) == (502, "upstream_malformed")
    found = assembled(b"data: <html>\n\n", event(chunk({"content": "a"})), DONE)
    assert found["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize("data", [b"x", b'{"error":{"message":"m"}}', b'{"message":"m"}'])
def test_an_event_that_is_named_error(data: bytes) -> None:
    with pytest.raises(ApiError) as raised:
        assembled(event(chunk({"content": "a"})), b"event: error\ndata: " + data + b"\n\n")
    assert raised.value.status == 502


_VALUES = some.none() | some.integers(0, 3) | some.text(max_size=3)
_JSON = some.recursive(
    _VALUES,
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(
            some.sampled_from(
                ["choices", "delta", "index", "tool_calls", "logprobs", "text", "content", "usage", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(some.dictionaries(some.sampled_from(["choices", "usage", "id", "model"]), _JSON), max_size=5))
def test_any_events_make_an_object_that_can_be_sent(events: list[dict[str, object]]) -> None:
    for is_chat in (True, False):
        found = assembled(*(event(one) for one in events), is_chat=is_chat)
        msgspec.json.encode(found)
        assert all(isinstance(choice["index"], int) for choice in found["choices"])


def test_a_long_answer_takes_time_in_proportion() -> None:
    word = "word " * 40

    def seconds(count: int) -> float:
        pieces = [event(chunk({"content": word}))] * count
        began_s = time.thread_time()
        assert assembled(*pieces)["choices"][0]["message"]["content"] == word * count
        return time.thread_time() - began_s

    short_s = min(seconds(2500) for _ in range(3))
    long_s = min(seconds(20_000) for _ in range(3))
    # 8 times as long takes 8 times the time; to join all that was said before with each piece would take 64.
    assert long_s < 24 * short_s
