"""Handoff data: everything that can come, and headers that must not get through."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.interface import Fields, Request
from daemon.control.admission.handoff import BLOCKED_HEADERS, decode, header_lines
from daemon.control.admission.refusal import Refusal


@pytest.mark.parametrize("data", [b"", b"\0", b"{}", b' {"unknown": [1, {"deep": null}]} '])
def test_a_request_without_fields(data: bytes) -> None:
    assert decode(data) == Fields()
    assert Request(decode(data)).prompt == "Hello"


def test_every_field() -> None:
    fields = decode(
        json.dumps(
            {
                "user_id": 7, "prompt": "p", "messages": [{"role": "user", "content": "c"}], "model": "m",
                "max_tokens": 5, "temperature": 1, "system": "s", "request_id": "r", "test_pattern": "short",
                "backend": "mock", "response_headers": {"X-A": "b"}, "timestamp": 123,
            }
        ).encode()
    )  # fmt: skip
    assert (fields.user_id, fields.max_tokens, fields.temperature, fields.backend) == (7, 5, 1.0, "mock")
    assert Request(fields).prompt == "c"
    assert [message.role for message in Request(fields).messages] == ["system", "user"]


def test_null_is_as_good_as_nothing() -> None:
    names = ("user_id", "prompt", "messages", "model", "max_tokens", "temperature", "backend", "response_headers")
    assert decode(json.dumps(dict.fromkeys(names)).encode()) == Fields()


@pytest.mark.parametrize("user", [0, -5, 2**63, "abc", ""])
def test_a_user_may_be_a_number_or_a_string(user: object) -> None:
    assert decode(json.dumps({"user_id": user}).encode()).user_id == user


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (b"{nonsense", "malformed_json", "JSON"),
        (b"\0\0", "malformed_json", "JSON"),
        (b"{}x", "malformed_json", "JSON"),
        (b'{"prompt": "\xff"}', "malformed_json", "UTF-8"),
        (b'{"unknown": "\xff"}', "malformed_json", "UTF-8"),
        (b'{"\xff": 1}', "malformed_json", "UTF-8"),
        (b'{"unknown": [{"a": "\xc3"}]}', "malformed_json", "UTF-8"),
        (b'{"prompt": "\\ud800"}', "malformed_json", "JSON"),
        (b'{"a":' * 30_000, "malformed_json", "nested"),
        (b"[1]", "not_an_object", "object"),
        (b'"text"', "not_an_object", "object"),
        (b"null", "not_an_object", "object"),
        (b"5", "not_an_object", "object"),
        (b'{"prompt": 5}', "wrong_type", "`prompt`"),
        (b'{"messages": "x"}', "wrong_type", "`messages`"),
        (b'{"messages": [{"content": 5}]}', "wrong_type", "`messages[0].content`"),
        (b'{"max_tokens": "many"}', "wrong_type", "`max_tokens`"),
        (b'{"user_id": 1.5}', "wrong_type", "`user_id`"),
        (b'{"user_id": true}', "wrong_type", "`user_id`"),
        (b'{"response_headers": []}', "wrong_type", "`response_headers`"),
    ],
)
def test_what_is_wrong_is_named_and_its_value_is_not_repeated(data: bytes, code: str, word: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode(data)
    assert caught.value.status == 400
    assert caught.value.code == code
    assert word in caught.value.detail
    assert b"HTTP/1.1 400 Bad Request\r\n" in caught.value.response()


def outcome(data: bytes) -> Fields | Refusal:
    try:
        return decode(data)
    except Refusal as refusal:
        return refusal


@given(some.binary(max_size=300))
def test_any_bytes_are_fields_or_a_refusal(data: bytes) -> None:
    found = outcome(data)
    assert isinstance(found, Fields) or found.response().startswith(b"HTTP/1.1 400 ")


some_json = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
names = some.sampled_from(sorted(Fields.__struct_fields__))


@given(some.dictionaries(names | some.text(max_size=8), some_json, max_size=6))
def test_any_object_is_fields_or_a_refusal(value: dict[str, object]) -> None:
    data = json.dumps(value).encode()
    found = outcome(data)
    if isinstance(found, Refusal):
        assert found.code in {"wrong_type", "malformed_json"}
        return
    assert isinstance(Request(found, data).prompt, str)
    assert Request(found, data).options == value


def test_good_headers_get_through_in_order() -> None:
    lines, dropped_count = header_lines({"X-B": "2", "X-A": "one, two\tthree", "X-Umlaut": "ä"})
    assert lines == "X-B: 2\r\nX-A: one, two\tthree\r\nX-Umlaut: ä\r\n".encode()
    assert dropped_count == 0


@pytest.mark.parametrize(
    "name", [*sorted(BLOCKED_HEADERS), "Content-Type", "TRANSFER-ENCODING", "", "a b", "a:b", "ä", "a\r\nb"]
)
def test_names_that_are_dropped(name: str) -> None:
    assert header_lines({name: "x"}) == (b"", 1)


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\rb", "a\0b", "a\x7fb", 5, None, ["x"]])
def test_values_that_are_dropped(value: object) -> None:
    assert header_lines({"X-A": value, "X-B": "kept"}) == (b"X-B: kept\r\n", 1)


@given(some.dictionaries(some.text(), some.text() | some.integers(), max_size=5))
def test_no_header_can_add_another_line(headers: dict[str, object]) -> None:
    lines, dropped_count = header_lines(headers)
    assert lines.count(b"\n") == lines.count(b"\r\n") == lines.count(b"\r") == len(headers) - dropped_count
    assert b"\0" not in lines
