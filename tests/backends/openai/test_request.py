"""Requests: what reaches the upstream, compared as JSON, and what is refused, by the name of its field."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.interface import BackendError, Fields, Message, Request
from backends.openai.errors import RequestError
from backends.openai.options import Defaults
from backends.openai.request import Prepared, prepare
from backends.relay import RelayError
from tests.backends.openai.making import request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.interface import Endpoint

NONE = Defaults(system="", max_tokens=0, temperature=-1, top_p=-1, asks_usage=True)
USAGE = {"include_usage": True}
HELLO = [{"role": "user", "content": "Hello"}]
HTTP = {"host": "here"}


def prepared(fields: Mapping[str, object] | None = None, headers: dict[str, str] | None = None) -> Prepared:
    return prepare(request(dict(fields or {}), headers), "default-model", "content", random.Random(1))


def body(fields: Mapping[str, object] | None = None, defaults: Defaults = NONE, **more: object) -> dict[str, Any]:
    one = prepared({**(fields or {}), **more})
    found: dict[str, Any] = json.loads(one.encoded(one.model, defaults))
    return found


def refusal(fields: Mapping[str, object], headers: dict[str, str] | None = None) -> RequestError:
    with pytest.raises(RequestError) as raised:
        prepared(fields, headers)
    assert raised.value.status == 400
    return raised.value


# ---- the conversation


def test_a_prompt() -> None:
    assert body(prompt="p") == {
        "model": "default-model",
        "messages": [{"role": "user", "content": "p"}],
        "stream": True,
        "stream_options": USAGE,
    }


@pytest.mark.parametrize("raw", [b"", b"\0"])
def test_a_handoff_without_anything_says_hello(raw: bytes) -> None:
    one = prepare(Request(Fields(), raw), "m", "openai", random.Random(1))
    assert json.loads(one.encoded("m", NONE))["messages"] == HELLO
    assert one.format == "openai"
    assert body(messages=[]) == body()


def test_fields_without_their_json() -> None:
    fields = Fields(messages=[Message("user", "a")], model="m", max_tokens=3, system="s")
    one = prepare(Request(fields), "default", "content", random.Random(1))
    assert json.loads(one.encoded(one.model, NONE)) == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        "max_tokens": 3,
        "stream": True,
        "stream_options": USAGE,
    }


def test_messages_win_and_reach_the_upstream_as_they_are() -> None:
    messages: list[dict[str, object]] = [
        {"role": "developer", "content": "be brief", "x_own": {"deep": [1, 2.5, None, "ä\u2028"]}},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "d:"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"a": "b"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "assistant", "tool_calls": []},
        {"role": "own role", "content": "", "name": "n"},
    ]
    assert body(messages=messages, prompt="no")["messages"] == messages


def test_the_body_is_compact_and_raw() -> None:
    one = prepared({"prompt": 'Größe "\n 中\U0001f600/'})
    text = one.encoded("m", NONE).decode()
    assert text.startswith('{"model":"m","messages":[{"role":"user","content":"Größe \\"\\n 中\U0001f600/"}],')


def test_the_system_message_comes_first() -> None:
    system = {"role": "system", "content": "s"}
    messages = [{"role": "system", "content": "other"}, {"role": "user", "content": "u"}]
    assert body(prompt="p", system="s")["messages"] == [system, {"role": "user", "content": "p"}]
    assert body(messages=messages, system="s")["messages"] == [system, *messages]
    assert body(messages=messages, system="")["messages"] == messages


def test_the_configured_system_message_is_for_conversations_without_one() -> None:
    defaults = Defaults("d", 0, -1, -1, asks_usage=True)
    user = {"role": "user", "content": "p"}
    assert body(defaults=defaults, prompt="p")["messages"] == [{"role": "system", "content": "d"}, user]
    for role in ("system", "developer"):
        messages = [user, {"role": role, "content": "x"}]
        assert body(defaults=defaults, messages=messages)["messages"] == messages
    assert body(defaults=defaults, prompt="p", system="s")["messages"][0]["content"] == "s"


def test_an_http_request_needs_messages() -> None:
    several: list[dict[str, object]] = [{}, {"messages": []}, {"messages": None}]
    for fields in several:
        error = refusal(fields, HTTP)
        assert (error.message, error.param) == ("messages is required and must be a non-empty array", "messages")
    assert prepared({"prompt": "p"}, HTTP).messages == [{"role": "user", "content": "p"}]


@pytest.mark.parametrize(
    ("messages", "param", "right"),
    [
        ([{"content": "x"}], "messages[0].role", '"user"'),
        ([{"role": "user", "content": "x"}, {"role": "", "content": "x"}], "messages[1].role", "string"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", '"type":"text"'),
    ],
)
def test_wrong_messages_are_named(messages: object, param: str, right: str) -> None:
    error = refusal({"messages": messages})
    assert error.param == param
    assert f"`{param}` must be" in error.message
    assert right in error.message


WRONG_MESSAGES: list[tuple[object, str]] = [
    ("x", "messages"),
    ({}, "messages"),
    (5, "messages"),
    (["x"], "messages[0]"),
    ([{"role": 5}], "messages[0].role"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": {}}], "messages[0].content"),
]


@pytest.mark.parametrize(("messages", "param"), WRONG_MESSAGES)
def test_wrong_messages_that_admission_would_have_refused(messages: object, param: str) -> None:
    raw = json.dumps({"messages": messages}).encode()
    with pytest.raises(RequestError) as raised:
        prepare(Request(Fields(), raw), "m", "content", random.Random(1))
    assert raised.value.param == param


@pytest.mark.parametrize("raw", [b"[1]", b"{", b"\xff", b'{"a":"\xff"}', b"[" * 5000])
def test_data_that_is_no_object(raw: bytes) -> None:
    with pytest.raises(RequestError) as raised:
        prepare(Request(Fields(), raw), "m", "content", random.Random(1))
    assert raised.value.status == 400


# ---- parameters

RIGHT: dict[str, list[object]] = {
    "max_tokens": [1, 100_000],
    "max_completion_tokens": [5],
    "temperature": [0, 0.5, 2],
    "top_p": [0, 1, 0.9],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2, 0.1],
    "seed": [0, -5, 1 << 62],
    "stop": ["a", ["a", "b"], []],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["auto", {"type": "function"}],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "json_object"}],
    "logprobs": [True],
    "top_logprobs": [0, 5],
    "logit_bias": [{"5": -100}],
    "reasoning_effort": ["low"],
    "verbosity": ["low"],
    "modalities": [["text"]],
    "audio": [{"voice": "x"}],
    "prediction": [{"type": "content"}],
    "metadata": [{"a": "b"}],
    "store": [False],
    "service_tier": ["flex"],
    "user": ["u"],
}
WRONG: dict[str, list[object]] = {
    "max_tokens": [0, -1],
    "max_completion_tokens": [0, "5", 1.5, True],
    "temperature": [-0.1, 2.1],
    "top_p": [-1, 1.01, "1", True],
    "presence_penalty": [-2.1, "x"],
    "frequency_penalty": [3, []],
    "seed": [1.5, "1", True],
    "stop": [5, [5], {}],
    "tools": [{}, ["x"], "x"],
    "tool_choice": [5, []],
    "parallel_tool_calls": [1, "true"],
    "response_format": ["json", []],
    "logprobs": [1],
    "top_logprobs": [-1, "1"],
    "logit_bias": [[]],
    "reasoning_effort": [1],
    "verbosity": [1],
    "modalities": ["text"],
    "audio": ["x"],
    "prediction": ["x"],
    "metadata": ["x"],
    "store": ["x"],
    "service_tier": [1],
    "user": [1],
}


@pytest.mark.parametrize("name", RIGHT)
def test_parameters_that_are_right(name: str) -> None:
    for value in RIGHT[name]:
        assert body({name: value})[name] == value
        assert body(options={name: value})[name] == value
        assert type(body({name: value})[name]) is type(value)


@pytest.mark.parametrize("name", WRONG)
def test_parameters_that_are_wrong(name: str) -> None:
    for value in WRONG[name]:
        error = refusal({name: value})
        assert error.param == name
        assert re.fullmatch(rf"field `{name}` must be (an?|true) .+", error.message)
        assert refusal({"options": {name: value}}).param == f"options.{name}"


def test_null_is_as_good_as_nothing() -> None:
    assert body(dict.fromkeys([*RIGHT, "messages", "model", "options", "format", "n", "stream_options"])) == body()


def test_what_a_handoff_says_for_the_daemon_stays_there() -> None:
    own: dict[str, object] = {
        "user_id": 7, "request_id": "r", "test_pattern": "short", "backend": "openai", "response_headers": {"X": "y"},
        "upstream": "u", "format": "openai", "traceparent": "x", "timestamp": 5, "thread_id": "t",
    }  # fmt: skip
    assert body(own) == body()


def test_anything_may_be_under_options() -> None:
    options = {"top_k": 5, "guided_json": {"a": [1]}, "prompt": "x", "format": "json", "nothing": None}
    assert body(options=options) == {**body(), **options}


def test_a_field_wins_over_an_option() -> None:
    assert body(temperature=1, options={"temperature": 0.5, "top_p": 0.5})["temperature"] == 1


def test_options_cannot_take_the_stream_away() -> None:
    assert body(options={"stream": False, "stream_options": {"include_usage": False}, "n": 1}) == body()
    assert body(stream=False, n=1) == body()
    for name in ("messages", "model"):
        assert refusal({"options": {name: "x"}}).param == f"options.{name}"
    several: list[object] = [[], "x", 5]
    for options in several:
        assert refusal({"options": options}).param == "options"


@pytest.mark.parametrize("count", [0, 2, "1", True, 1.0])
def test_only_one_answer_is_streamed(count: object) -> None:
    assert refusal({"n": count}).param == "n"
    assert refusal({"options": {"n": count}}).param == "options.n"


def test_an_http_request_speaks_the_upstreams_language() -> None:
    fields = {"prompt": "p", "top_k": 5, "min_p": 0.1, "user_id": 5, "backend": "openai", "nothing": None}
    one = prepared(fields, HTTP)
    assert json.loads(one.encoded("m", NONE)) == {**body(prompt="p"), "model": "m", "top_k": 5, "min_p": 0.1}
    assert body(fields) == body(prompt="p")


def test_usage_is_asked_for_and_passed_on_where_the_client_asks() -> None:
    silent = Defaults("", 0, -1, -1, asks_usage=False)
    assert not prepared().passes_usage
    assert "stream_options" not in body(defaults=silent)
    for fields in ({"stream_options": USAGE}, {"options": {"stream_options": {**USAGE, "other": 1}}}):
        assert prepared(fields).passes_usage
        assert body(fields, silent)["stream_options"] == USAGE
    assert refusal({"stream_options": []}).param == "stream_options"
    assert refusal({"stream_options": {"include_usage": 1}}).param == "stream_options.include_usage"
    assert refusal({"options": {"stream_options": 1}}).param == "options.stream_options"


def test_the_configured_parameters_are_for_requests_without_them() -> None:
    defaults = Defaults("", 100, 0, 0.5, asks_usage=True)
    assert body(defaults=defaults) == {**body(), "max_tokens": 100, "temperature": 0, "top_p": 0.5}
    own = {"max_tokens": 5, "temperature": 1, "top_p": 1}
    assert body(own, defaults) == {**body(), **own}
    assert "max_tokens" not in body({"max_completion_tokens": 5}, defaults)


def test_numbers_stay_what_they_are() -> None:
    options = {"large": 1 << 80, "small": 1e-300, "whole": 1.0, "negative": -(1 << 70)}
    found = body(options=options)
    assert {name: found[name] for name in options} == options
    assert isinstance(found["whole"], float)


def test_a_request_that_is_nested_too_deeply_for_its_place_in_the_body() -> None:
    deep: dict[str, object] = {}
    for _ in range(200_000):
        deep = {"a": deep}
    one = prepared()
    one.body["deep"] = deep
    with pytest.raises(RequestError, match="nested too deeply"):
        one.encoded("m", NONE)


# ---- what is not in the body


def test_model_format_and_upstream() -> None:
    one = prepared({"model": "m", "format": "openai", "upstream": "u"})
    assert (one.model, one.format, one.upstream) == ("m", "openai", "u")
    plain = prepared({"model": ""})
    assert (plain.model, plain.format, plain.upstream) == ("default-model", "content", "")
    assert refusal({"format": "raw"}).param == "format"
    assert refusal({"format": []}).param == "format"
    assert refusal({"upstream": 5}).param == "upstream"
    assert refusal({"model": "m" * 257}).param == "model"


def test_a_request_id_of_ones_own() -> None:
    for asked, expected in (("r-1", "r-1"), (7, "7"), ("x" * 128, "x" * 128)):
        one = prepared({"request_id": asked})
        assert one.request_id == expected
        assert one.headers == (("X-Request-Id", expected),)
    for wrong in ("a b", "ä", "x" * 129, "a\r\nb"):
        assert refusal({"request_id": wrong}).param == "request_id"


def test_a_fresh_request_id() -> None:
    randomness = random.Random(5)
    ids = [prepare(request(), "m", "content", randomness).request_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    assert re.fullmatch(r"[0-9a-f]{32}", prepared({"request_id": ""}).request_id)


def test_headers_of_an_http_request() -> None:
    fields = {"prompt": "p"}
    assert prepared(fields, {"x-request-id": "abc"}).request_id == "abc"
    assert re.fullmatch(r"[0-9a-f]{32}", prepared(fields, {"x-request-id": "a b"}).request_id)
    assert prepared({**fields, "request_id": "own"}, {"x-request-id": "abc"}).request_id == "own"


GOOD_TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_traceparent_is_passed_on_where_it_is_one() -> None:
    assert ("traceparent", GOOD_TRACE) in prepared({"traceparent": GOOD_TRACE}).headers
    assert ("traceparent", GOOD_TRACE) in prepared({"prompt": "p"}, {"traceparent": GOOD_TRACE}).headers
    for wrong in (
        *(5, "", "x", GOOD_TRACE.upper(), f"ff{GOOD_TRACE[2:]}", GOOD_TRACE + "-x", GOOD_TRACE + "\n"),
        *(GOOD_TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),),
        *(GOOD_TRACE.replace("00f067aa0ba902b7", "0" * 16),),
    ):
        assert len(prepared({"traceparent": wrong}).headers) == 1


def test_a_test_pattern() -> None:
    assert ("X-Test-Pattern", "abort:5") in prepared({"test_pattern": "abort:5"}).headers
    assert len(prepared({"test_pattern": ""}).headers) == 1
    for wrong in ("a\r\nb", "ä", " a", "a ", "x" * 65):
        assert refusal({"test_pattern": wrong}).param == "test_pattern"


def test_characters_are_counted_for_an_estimate() -> None:
    assert prepared({"prompt": "abcde", "system": "xyz"}).prompt_characters == 8
    parts = [{"type": "text", "text": "ab"}, {"type": "image_url"}, {"text": 5}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert prepared({"messages": messages}).prompt_characters == 2


def test_an_error_is_of_both_kinds() -> None:
    error = RequestError("code", "message", param="field")
    assert isinstance(error, BackendError)
    assert isinstance(error, RelayError)
    assert (error.status, error.code, error.message, error.param) == (400, "code", "message", "field")
    assert (error.retry_after_s, error.body, str(error)) == (0, b"", "message")


some_json = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=10),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
own_names = ("messages", "prompt", "model", "options", "n", "stream_options", "format", "upstream")
names = some.sampled_from([*RIGHT, *own_names])


def outcome_of(one: Request) -> bytes | RequestError:
    try:
        return prepare(one, "m", "content", random.Random(1)).encoded("m", NONE)
    except RequestError as error:
        return error


@given(some.dictionaries(names | some.text(max_size=5), some_json, max_size=6), some.booleans())
def test_any_object_is_a_request_or_a_refusal(fields: dict[str, object], is_http: bool) -> None:
    raw = json.dumps(fields).encode()
    encoded = outcome_of(Request(Fields(), raw, HTTP if is_http else None))
    if isinstance(encoded, RequestError):
        assert encoded.status == 400
        assert encoded.message
        return
    found = json.loads(encoded)
    assert found["stream"] is True
    assert found["stream_options"] == USAGE
    assert found.get("n", 1) == 1
    assert found["model"] == "m"
    assert all(isinstance(message["role"], str) for message in found["messages"])


# ---- requests of the HTTP front's API


def spoken(
    endpoint: Endpoint, fields: Mapping[str, object], defaults: Defaults = NONE
) -> tuple[Prepared, dict[str, Any]]:
    raw = json.dumps(dict(fields)).encode()
    one = prepare(Request(Fields(), raw, HTTP, endpoint), "default-model", "content", random.Random(1))
    found: dict[str, Any] = json.loads(one.encoded(one.model, defaults))
    known = Request(Fields(), raw, HTTP, endpoint)
    known.decoded = json.loads(raw)
    assert prepare(known, "default-model", "content", random.Random(1)) == one, "the front has decoded it"
    assert one.encoded(one.model, defaults)
    assert known.decoded == json.loads(raw), "it is only looked at"
    return one, found


@pytest.mark.parametrize("prompt", ["Say", "", ["a", "b"], [1, 2], [[1], [2]]])
def test_a_completion_asks_the_upstreams_completions(prompt: object) -> None:
    more: dict[str, object] = {"n": 2, "max_tokens": 0, "best_of": 3, "suffix": "s", "unknown": {"a": [None]}}
    one, found = spoken("completions", {"prompt": prompt, **more})
    assert (one.path, one.format, one.messages, one.passes_usage) == ("/completions", "openai", None, False)
    assert found == {
        "model": "default-model",
        "prompt": prompt,
        **more,
        "stream": True,
        "stream_options": USAGE,
    }


def test_a_completion_has_no_system_message() -> None:
    _, found = spoken("completions", {"prompt": "p"}, Defaults("Be kind", 5, 0.5, 0.9, asks_usage=False))
    assert found == {
        "model": "default-model",
        "prompt": "p",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "stream": True,
    }


def test_the_length_of_a_prompt() -> None:
    assert spoken("completions", {"prompt": "abc"})[0].prompt_characters == 3
    assert spoken("completions", {"prompt": ["ab", "c"]})[0].prompt_characters == 3
    assert spoken("completions", {"prompt": [1, 2]})[0].prompt_characters == 8
    assert spoken("completions", {"prompt": [[1, 2], [3]]})[0].prompt_characters == 12
    assert spoken("completions", {})[0].prompt_characters == 0
    assert spoken("chat", {"messages": HELLO})[0].prompt_characters == 5


def test_a_chat_goes_on_as_it_came_but_for_what_makes_it_a_stream() -> None:
    # What would be the daemon's own in a handoff is the upstream's here.
    fields: dict[str, object] = {"messages": HELLO, "model": "m", "n": 3, "format": "json", "upstream": "u"}
    fields |= {"options": {"num_ctx": 5}, "system": "s", "user_id": 1, "backend": "b", "stream": False, "stop": None}
    one, found = spoken("chat", fields)
    assert (one.path, one.format, one.upstream, one.model) == ("/chat/completions", "openai", "", "m")
    del fields["stop"]
    assert found == {**fields, "stream": True, "stream_options": USAGE}


def test_what_a_stream_is_to_tell_is_kept() -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    one, found = spoken("chat", {"messages": HELLO, "stream_options": options})
    assert not one.passes_usage
    assert found["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    silent = Defaults("", 0, -1, -1, asks_usage=False)
    assert spoken("chat", {"messages": HELLO, "stream_options": options}, silent)[1]["stream_options"] == options
    assert spoken("chat", {"messages": HELLO, "stream_options": USAGE})[0].passes_usage


def test_a_chat_needs_messages_whatever_else_it_has() -> None:
    wrong: list[dict[str, object]] = [{}, {"messages": []}, {"prompt": "p"}]
    for fields in wrong:
        with pytest.raises(RequestError, match="messages is required"):
            spoken("chat", fields)
