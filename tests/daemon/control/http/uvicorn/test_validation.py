"""Bodies of requests: what is let through, and what is said of what is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn.requests import ChatCompletionRequest, CompletionRequest
from daemon.control.http.uvicorn.validation import parse

if TYPE_CHECKING:
    from daemon.control.http.uvicorn.requests import Body

USER = {"role": "user", "content": "Hello"}
SECRET = "sk-a-secret-that-nobody-may-see"


def refusal(model: type[Body], raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(model, raw)
    assert raised.value.status == 400
    error = json.loads(raised.value.body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] == raised.value.message
    return raised.value


def completion_refusal(**fields: object) -> ApiError:
    return refusal(CompletionRequest, json.dumps(fields).encode())


def chat_refusal(**fields: object) -> ApiError:
    return refusal(ChatCompletionRequest, json.dumps(fields).encode())


# ---- what is no object


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "it is empty"),
        (b"{", "truncated"),
        (b'{"a":NaN}', "invalid character"),
        (b'{"a":Infinity}', "invalid character"),
        (b'{"a":1e999}', "out of range"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\\ud800"}', "truncated"),
        (b"{'a':1}", "malformed"),
        (b'{"a":1,}', "malformed"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_what_is_not_json(raw: bytes, said: str) -> None:
    error = refusal(CompletionRequest, raw)
    assert (error.code, error.param) == ("malformed_json", None)
    assert said in error.message


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_json_that_is_no_object(raw: bytes) -> None:
    assert refusal(ChatCompletionRequest, raw).code == "not_an_object"


# ---- fields


@pytest.mark.parametrize(
    ("fields", "param", "right"),
    [
        ({"max_tokens": -1}, "max_tokens", "0 or more"),
        ({"max_tokens": "5"}, "max_tokens", "an integer, and is a string"),
        ({"max_tokens": 5.5}, "max_tokens", "an integer, and is a number"),
        ({"max_tokens": True}, "max_tokens", "an integer, and is true or false"),
        ({"max_tokens": 2**40}, "max_tokens", "or less"),
        ({"temperature": 2.1}, "temperature", "2 or less"),
        ({"temperature": -0.1}, "temperature", "0 or more"),
        ({"temperature": "hot"}, "temperature", "a number, and is a string"),
        ({"top_p": 1.5}, "top_p", "1 or less"),
        ({"n": 0}, "n", "1 or more"),
        ({"n": 129}, "n", "128 or less"),
        ({"presence_penalty": 3}, "presence_penalty", "2 or less"),
        ({"frequency_penalty": -3}, "frequency_penalty", "-2 or more"),
        ({"repetition_penalty": 0}, "repetition_penalty", "more than 0"),
        ({"stop": 5}, "stop", "a string or an array of at most 4 strings, and is an integer"),
        ({"stop": list("abcde")}, "stop", "an array of 4 or fewer"),
        ({"stop": ["a", 1]}, "stop[1]", "a string, and is an integer"),
        ({"prompt": {}}, "prompt", "a string, or a non-empty array"),
        ({"prompt": []}, "prompt", "a string, or a non-empty array"),
        ({"prompt": [1, "a"]}, "prompt[1]", "an integer, and is a string"),
        ({"prompt": ["a", 1]}, "prompt[1]", "a string, and is an integer"),
        ({"prompt": [[1], []]}, "prompt[1]", "an array of 1 or more"),
        ({"stream": "yes"}, "stream", "true or false, and is a string"),
        ({"stream_options": []}, "stream_options", "an object, and is an array"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
        ({"logit_bias": {"50256": 101}}, "logit_bias.50256", "100 or less"),
        ({"model": 5}, "model", "a string, and is an integer"),
        ({"model": "m" * 257}, "model", "256 characters or fewer"),
        ({"logprobs": True}, "logprobs", "an integer"),
        ({"seed": 2**64}, "seed", "or less"),
    ],
)
def test_fields_of_a_completion(fields: dict[str, object], param: str, right: str) -> None:
    error = completion_refusal(**fields)
    assert error.param == param
    assert error.message.startswith(f"{param} must be ")
    assert right in error.message
    assert error.code in {"invalid_type", "invalid_value"}


@pytest.mark.parametrize("fields", [{}, {"messages": []}, {"messages": None}])
def test_a_chat_needs_messages(fields: dict[str, object]) -> None:
    error = chat_refusal(**fields)
    assert error.message == "messages is required and must be a non-empty array"
    assert (error.param, error.code) == ("messages", "missing_required_parameter")


MESSAGES: list[tuple[Any, str, str]] = [
    ("Hello", "messages", "must be an array, and is a string"),
    ([1], "messages[0]", "must be an object with role and content, and is an integer"),
    ([{}], "messages[0].role", "is required: it must be"),
    ([USER, {"role": "robot", "content": "x"}], "messages[1].role", 'must be "system", "developer"'),
    ([{"role": 1}], "messages[0].role", "must be"),
    ([{"role": "user"}], "messages[0].content", "is required"),
    ([{"role": "user", "content": 5}], "messages[0].content", "must be a string or a non-empty array of parts"),
    ([{"role": "user", "content": []}], "messages[0].content", "an array of 1 or more"),
    ([{"role": "user", "content": [5]}], "messages[0].content[0]", "an object such as"),
    ([{"role": "user", "content": [{}]}], "messages[0].content[0].type", "is required"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "is required"),
    ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "is required"),
    ([{"role": "function", "content": "x"}], "messages[0].name", "is required"),
    (
        [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}],
        "messages[0].tool_calls[0].function.arguments",
        "is required",
    ),
]


@pytest.mark.parametrize(("messages", "param", "said"), MESSAGES)
def test_messages_of_a_chat(messages: object, param: str, said: str) -> None:
    error = chat_refusal(messages=messages)
    assert error.param == param
    assert error.message.startswith(f"{param} ")
    assert said in error.message


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [5]}, "tools[0]"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"response_format": {"type": 5}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), FIELDS)
def test_fields_of_a_chat(fields: dict[str, object], param: str) -> None:
    error = chat_refusal(messages=[USER], **fields)
    assert error.param == param
    assert param in error.message


def test_an_error_holds_no_value() -> None:
    for error in (
        completion_refusal(max_tokens=SECRET),
        completion_refusal(stop=[SECRET, SECRET, SECRET, SECRET, SECRET]),
        chat_refusal(messages=[{"role": SECRET, "content": SECRET}]),
        chat_refusal(messages=[{"role": "user", "content": {"x": SECRET}}]),
        refusal(CompletionRequest, b'{"prompt":"' + SECRET.encode()),
    ):
        assert SECRET.encode() not in error.body


def test_a_path_is_bounded_and_can_be_read() -> None:
    error = completion_refusal(logit_bias={"\n\x1b" + "x" * 10_000: "a"})
    assert error.param is not None
    assert len(error.param) <= 200
    assert error.param.isprintable()


# ---- what is right


def test_everything_that_a_completion_may_say() -> None:
    said = {
        "model": "m",
        "prompt": ["a"],
        "echo": True,
        "max_tokens": 0,
        "n": 2,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "suffix": None,
        "stream": True,
        "stop": ["a", "b"],
        "seed": -5,
        "logprobs": 5,
        "stream_options": {"include_usage": True, "continuous_usage_stats": False},
        "top_k": -1,
        "min_p": 0.5,
        "temperature": 0,
        "top_p": 1,
        "repetition_penalty": 1.1,
        "user": "u",
        "use_beam_search": False,
        "length_penalty": 1,
        "stop_token_ids": [1],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 0,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "best_of": 2,
        "allowed_token_ids": [1, 2],
        "prompt_logprobs": 1,
        "truncate_prompt_tokens": 5,
        "unknown": {"a": [1]},
    }
    fields, found = parse(CompletionRequest, json.dumps(said).encode())
    assert found == said
    assert (fields.tokens_max, fields.stream) == (0, True)


def test_null_is_the_same_as_nothing() -> None:
    names = set(CompletionRequest.model_fields)
    fields, _ = parse(CompletionRequest, json.dumps(dict.fromkeys(names)).encode())
    assert fields == parse(CompletionRequest, b"{}")[0]


def test_a_conversation_with_tools() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "more": 1}
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be kind"}]},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, image], "name": "n"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "5", "tool_call_id": "c"},
        {"role": "function", "content": None, "name": "f"},
    ]
    said = {"messages": messages, "max_tokens": 5, "max_completion_tokens": 7, "tool_choice": {"type": "function"}}
    fields, found = parse(ChatCompletionRequest, json.dumps(said).encode())
    assert found == said
    assert fields.tokens_max == 7


_JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = some.sampled_from(sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}))


@given(some.dictionaries(_NAMES, _JSON), some.sampled_from([ChatCompletionRequest, CompletionRequest]))
def test_any_object_is_right_or_told_what_is_wrong(said: dict[str, object], model: type[Body]) -> None:
    error = error_of(model, msgspec.json.encode(said))
    if error is not None and error.code == "malformed_json":
        assert "out of range" in error.message
    elif error is not None:
        assert error.status == 400
        assert error.param
        assert error.message.startswith(error.param)


def error_of(model: type[Body], raw: bytes) -> ApiError | None:
    try:
        parse(model, raw)
    except ApiError as error:
        return error
    return None
