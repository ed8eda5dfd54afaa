"""The quick look: it takes what clients send every day, and nothing that the close one refuses."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn import quick
from daemon.control.http.uvicorn.body import collector_paused
from daemon.control.http.uvicorn.quick import NotTaken
from daemon.control.http.uvicorn.requests import ChatCompletionRequest, CompletionRequest
from daemon.control.http.uvicorn.validation import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import WrapValidator

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OFFERED = {"name": "f", "description": None, "parameters": {"type": "object"}, "strict": True}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
USUAL: list[tuple[str, WrapValidator, Any]] = [
    ("messages", quick.MESSAGES, [{"role": "user", "content": "Hello"}]),
    (
        "messages",
        quick.MESSAGES,
        [{"role": "system", "content": ""}, {"role": "developer", "content": "x", "a": 1}],
    ),
    ("messages", quick.MESSAGES, [{"role": "user", "content": [{"type": "text", "text": ""}, IMAGE]}]),
    ("messages", quick.MESSAGES, [{"role": "assistant"}, {"role": "assistant", "content": None, "refusal": "no"}]),
    ("messages", quick.MESSAGES, [{"role": "assistant", "tool_calls": [CALL]}]),
    ("messages", quick.MESSAGES, [{"role": "user", "content": [{**IMAGE, "text": 5}]}]),
    ("messages", quick.MESSAGES, [{"role": "tool", "content": "5", "tool_call_id": "1"}]),
    ("messages", quick.MESSAGES, [{"role": "function", "name": "f", "content": None}]),
    ("messages", quick.MESSAGES, [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]),
    ("tools", quick.TOOLS, [{"type": "function", "function": OFFERED}, {"type": "search"}]),
    ("tools", quick.TOOLS, []),
    ("functions", quick.FUNCTIONS, [OFFERED, {"name": "g"}]),
    ("logit_bias", quick.BIASES, {"50256": -100, "1": 0.5}),
    ("stop_token_ids", quick.NUMBERS, [1, -5]),
    ("allowed_token_ids", quick.NUMBERS, []),
    ("prompt", quick.PROMPT, "Hello"),
    ("prompt", quick.PROMPT, ["a", ""]),
    ("prompt", quick.PROMPT, [1, 2**31 - 1]),
    ("prompt", quick.PROMPT, [[1], [2, 3]]),
]
LEAVES: list[Any] = [
    *(None, True, 0, 1, -1, 1.0, 1.5, 100, 100.5, -101, 2**31, 2**63, 2**64),
    *("", "x", "text", [], {}, ["x"], [1], [[]]),
]
NAMES = ["role", "content", "type", "text", "name", "function", "tool_calls", "id", "arguments", "value"]


def model_of(name: str) -> type[ChatCompletionRequest | CompletionRequest]:
    return CompletionRequest if name == "prompt" else ChatCompletionRequest


def whole(name: str, value: object) -> dict[str, object]:
    """A body with this field that has all that it must have."""
    return {"messages": [{"role": "user", "content": "x"}], name: value}


def finding_nothing(_value: object, _form: object) -> None:
    """In place of the quick look: everything is looked at closely."""
    raise NotTaken


def told(name: str, value: object) -> str | None:
    """What a client is told that sends this; None: it is right."""
    try:
        parse(model_of(name), msgspec.json.encode(whole(name, value)))
    except ApiError as error:
        return f"{error.code} {error.param} {error.message}"
    return None


@pytest.mark.parametrize(("name", "look", "value"), USUAL)
def test_what_is_usual_is_not_looked_at_closely(name: str, look: WrapValidator, value: Any) -> None:  # noqa: ANN401
    closely: list[object] = []
    seen = cast("Any", look.func)(value, closely.append)
    assert seen is value
    assert closely == []
    assert told(name, value) is None


@pytest.mark.parametrize(("name", "look", "value"), USUAL)
def test_the_close_look_agrees(
    name: str,
    look: WrapValidator,
    value: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del look
    monkeypatch.setattr(quick, "_taken", finding_nothing)
    assert told(name, value) is None


@some.composite
def nearly_right(draw: some.DrawFn) -> tuple[str, Any]:
    """Something usual with a change or two anywhere in it."""
    name, _, value = draw(some.sampled_from(USUAL))
    root = {"value": copy.deepcopy(value)}
    for _ in range(draw(some.integers(1, 3))):
        place: Any = root
        while True:
            inner = [key for key in _keys(place) if isinstance(place[key], dict | list) and place[key]]
            if not inner or not draw(some.booleans()):
                break
            place = place[draw(some.sampled_from(inner))]
        _change(draw, place, is_root=place is root)
    return name, root["value"]


def _keys(place: Any) -> list[Any]:  # noqa: ANN401
    return list(cast("dict[str, Any]", place)) if isinstance(place, dict) else list(range(len(place)))


def _change(draw: some.DrawFn, place: Any, *, is_root: bool) -> None:  # noqa: ANN401
    keys = _keys(place)
    new = copy.deepcopy(draw(some.sampled_from(LEAVES)))
    how = "set" if is_root else draw(some.sampled_from(["set", "remove", "add"]))
    if how == "add" or not keys:
        if isinstance(place, dict):
            place[draw(some.sampled_from(NAMES))] = new
        else:
            place.append(new)
    elif how == "remove":
        del place[draw(some.sampled_from(keys))]
    else:
        place[draw(some.sampled_from(keys))] = new


@given(nearly_right())
@example(("messages", [{"role": "user", "content": [{"type": "text"}]}]))
@example(("messages", [{"role": "user", "content": [{"type": "text", "text": None}]}]))
@example(("messages", [{"role": "user", "content": [{"type": ""}]}]))
@example(("messages", [{"role": "user", "content": []}]))
@example(("messages", []))
@example(("messages", [{"role": "user", "content": [{"type": "text"}]}, {"role": "user", "content": 5}]))
@example(("messages", [{"role": "user", "content": [IMAGE, {"type": "text"}, {"type": 5}]}]))
@example(("messages", [{"role": "assistant", "tool_calls": [CALL, CALL, {**CALL, "id": 5}]}]))
@example(("prompt", ["a", "b", 5]))
@example(("prompt", [[1], [2, 3, "a"]]))
@example(("logit_bias", {"1": 1, "2": "x", "3": 101}))
@example(("prompt", [1.0]))
@example(("prompt", [True]))
@example(("prompt", [2**31]))
@example(("prompt", []))
@example(("prompt", [[]]))
@example(("stop_token_ids", [1, 2.0]))
@example(("logit_bias", {"1": True}))
def test_a_client_is_told_the_same_whether_or_not_it_is_looked_at_quickly(case: tuple[str, Any]) -> None:
    quickly = told(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick, "_taken", finding_nothing)
        closely = told(*case)
    assert quickly == closely


def test_what_stays_as_it_came() -> None:
    body = whole("tools", [{"type": "function", "function": OFFERED, "more": 1}])
    fields, said = parse(ChatCompletionRequest, msgspec.json.encode(body))
    assert said == body
    assert cast("Any", fields).messages == body["messages"]
    assert cast("Any", fields).tools == body["tools"]


COUNT = 100_000
TEXT = {"type": "text", "text": "a"}
BIASES: dict[str, object] = dict.fromkeys(map(str, range(COUNT)), 1)


def long(
    name: str, element: object, wrong: object, around: Callable[[object], object] | None = None
) -> tuple[str, Any, Any]:
    """A field with a long list of right elements, and the same with a wrong one as its last."""
    right = [element] * COUNT
    worse = [*right, wrong]
    return (name, right, worse) if around is None else (name, around(right), around(worse))


LONG: list[tuple[str, Any, Any]] = [
    ("logit_bias", BIASES, dict.fromkeys(BIASES, "x")),
    ("logit_bias", BIASES, dict.fromkeys(BIASES, 101)),
    ("logit_bias", BIASES, {**BIASES, "last": None}),
    long("messages", {"role": "user", "content": "a"}, {"role": "user", "content": 5}),
    long("messages", TEXT, {"type": "text"}, lambda parts: [{"role": "user", "content": parts}]),
    long("messages", CALL, {}, lambda calls: [{"role": "assistant", "tool_calls": calls}]),
    long("tools", {"type": "function", "function": OFFERED}, {"type": "function", "function": {"name": 5}}),
    long("functions", OFFERED, {"name": 5}),
    long("stop_token_ids", 1, "a"),
    long("modalities", "a", 5),
    long("prompt", "a", 5),
    long("prompt", 1, "a"),
    long("prompt", [1], ["a"]),
    long("prompt", 1, "a", lambda tokens: [tokens]),
]


@pytest.mark.serial
@pytest.mark.parametrize(("name", "right", "wrong"), LONG, ids=range(len(LONG)))
def test_what_is_wrong_takes_no_longer_than_what_is_right(name: str, right: Any, wrong: Any) -> None:  # noqa: ANN401
    seconds: list[float] = []
    for value in (right, wrong):
        raw = msgspec.json.encode(whole(name, value))
        began_s = time.thread_time()
        error = _told_of(name, raw)
        seconds.append(time.thread_time() - began_s)
        for _ in range(4):  # the least of five: what else the machine does is no part of it
            began_s = time.thread_time()
            _told_of(name, raw)
            seconds[-1] = min(seconds[-1], time.thread_time() - began_s)
        assert (error is None) == (value is right), error
    assert seconds[1] < 2.2 * seconds[0], seconds


def _told_of(name: str, raw: bytes) -> str | None:
    with collector_paused():
        try:
            parse(model_of(name), raw)
        except ApiError as error:
            return error.message
    return None
