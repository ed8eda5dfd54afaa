"""The walk and the rewriting of strings against Python's json, on documents full of decoys, in guarded memory."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from config.compilation import INTERPRETED
from daemon.plane.bytes_search import control_bytes, find_byte, line_bytes, string_bytes, text_bytes
from daemon.plane.json_walk import (
    CONTENT_ABSENT,
    CONTENT_ESCAPED,
    CONTENT_NULL,
    CONTENT_OTHER,
    CONTENT_PLAIN,
    DEPTH_MAX,
    WALK,
    rewrite_string,
    walk_chunk,
    walk_of,
)
from tests.daemon.plane.guarded import Fields, Guarded
from tests.daemon.plane.parser_reference import MISSING, is_array, load_json, rewrite_reference, walk_reference
from tests.daemon.plane.small import bytes_at

pytestmark = pytest.mark.plane

MEMORY = Guarded(1 << 16)
DESTINATION = Guarded(1 << 16)
WALKED = Fields(WALK, walk_of)
EXAMPLES = 80 if INTERPRETED else 250


def walk(document: bytes) -> bool:
    """Walk the document twice, with nothing readable behind it and then before it; it says the same."""
    WALKED.spoil()
    after = bool(walk_chunk(WALKED.record, MEMORY.at_end(document), len(document)))
    first = WALKED.array.tobytes()
    WALKED.spoil()
    before = bool(walk_chunk(WALKED.record, MEMORY.at_start(document), len(document)))
    assert after == before
    assert not after or WALKED.array.tobytes() == first
    return after


def text_of(span: bytes | None) -> str | None:
    return None if span is None else json.loads(b'"' + span.decode("latin-1").encode() + b'"')


def check(document: bytes) -> bool:
    """Walk the document and compare everything that it says; whether it is valid."""
    expected = walk_reference(document)
    is_valid = walk(document)
    assert is_valid == (expected is not None), document
    if expected is None:
        return False
    content = WALKED.span(document, "content")
    assert text_of(content) == expected.content
    assert WALKED["content_kind"] in expected.kinds
    if content is not None:
        assert WALKED["content_kind"] == (CONTENT_ESCAPED if b"\\" in content else CONTENT_PLAIN)
    assert WALKED["choice_count"] == expected.choice_count
    assert WALKED["finish"] == expected.finish
    assert text_of(WALKED.span(document, "finish")) == expected.finish_text
    assert WALKED["token"] == expected.token
    assert WALKED["usage"] == expected.usage
    assert WALKED["prompt_tokens"] == expected.prompt_tokens
    assert WALKED["completion_tokens"] == expected.completion_tokens
    assert WALKED["error"] == (expected.error is not MISSING)
    error = WALKED.span(document, "error")
    assert (MISSING if error is None else load_json(error)) == expected.error
    assert text_of(WALKED.span(document, "model")) == expected.model
    assert WALKED["object_count"] == expected.object_count
    return True


# ---- documents

Json = Any
Values = some.SearchStrategy[Any]
Pairs = list[tuple[str, Json]]  # an object with duplicate keys; an array is a tuple

NAMES = [
    "choices",
    "delta",
    "content",
    "finish_reason",
    "text",
    "role",
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "error",
    "model",
    "index",
    "id",
    "tool_calls",
    "reasoning_content",
    "",
    "contents",
    "conten",
    "Content",
    "é",
]
TEXT = some.text(max_size=40) | some.sampled_from(["", '{"content":"decoy"}', '"', "\\", "a\n", "\ud83d", "中文 😀"])
NUMBERS = some.integers(-3, 10**19) | some.floats(allow_nan=False, allow_infinity=False)
LEAVES = TEXT | NUMBERS | some.none() | some.booleans()


def members(values: dict[str, Values], others: Values) -> some.SearchStrategy[Pairs]:
    """Objects in which these keys often hold these values."""
    likely = [some.tuples(some.just(name), value | value | others) for name, value in values.items()]
    pair = some.one_of(*likely, *likely, some.tuples(some.sampled_from(NAMES), others))
    return some.lists(pair, max_size=6)


def containers(inner: Values) -> Values:
    pairs = some.lists(some.tuples(some.sampled_from(NAMES), inner), max_size=4)
    return pairs | some.lists(inner, max_size=4).map(tuple)


ANY = some.recursive(LEAVES, containers, max_leaves=8)
DELTAS = members({"content": TEXT, "role": TEXT, "tool_calls": ANY}, ANY)
CHOICES = members({"delta": DELTAS, "text": TEXT, "finish_reason": TEXT | some.none()}, ANY)
USAGES = members({"prompt_tokens": NUMBERS, "completion_tokens": NUMBERS}, ANY)
DOCUMENTS = members(
    {"choices": some.lists(CHOICES, max_size=3).map(tuple), "usage": USAGES, "error": ANY, "model": TEXT}, ANY
)


def is_tuple(value: object) -> bool:
    return isinstance(value, tuple)


def render(value: Json, chance: random.Random) -> str:
    """The value as JSON, its spacing and escapes left to chance."""

    def space() -> str:
        return chance.choice(["", "", "", " ", "\n", "\r\n\t "])

    def inside(parts: list[str]) -> str:
        return ",".join(f"{space()}{part}{space()}" for part in parts) or space()

    if is_array(value):
        pairs: Pairs = value
        return "{" + inside([f"{render_text(n, chance)}{space()}:{space()}{render(v, chance)}" for n, v in pairs]) + "}"
    if is_tuple(value):
        elements: tuple[Json, ...] = value
        return "[" + inside([render(element, chance) for element in elements]) + "]"
    return render_text(value, chance) if isinstance(value, str) else json.dumps(value)


def render_text(text: str, chance: random.Random) -> str:
    is_raw = chance.random() < 0.7 and not any("\ud800" <= character <= "\udfff" for character in text)
    rendered = json.dumps(text, ensure_ascii=not is_raw)
    if chance.random() < 0.2 and text.isascii() and text.isalpha():
        at = chance.randrange(len(text))
        rendered = f'"{text[:at]}\\u{ord(text[at]):04{chance.choice("xX")}}{text[at + 1 :]}"'
    return rendered.replace("/", "\\/") if chance.random() < 0.1 else rendered


@settings(deadline=None, max_examples=EXAMPLES)
@given(DOCUMENTS, some.integers(0, 2**32))
def test_a_document_says_what_python_reads_in_it(document: Pairs, seed: int) -> None:
    chance = random.Random(seed)
    wire = chance.choice(["", " ", "\n"]) + render(document, chance) + chance.choice(["", " \r\n"])
    assert check(wire.encode())


@settings(deadline=None, max_examples=EXAMPLES)
@given(ANY | some.just(()), some.integers(0, 2**32))
def test_other_values_than_objects_are_refused(value: Json, seed: int) -> None:
    document = render(value, random.Random(seed)).encode()
    assert check(document) == isinstance(value, list)


ONE_CHOICE = b'{"choices":[{%s}]}'


@pytest.mark.parametrize(
    ("document", "kind", "content"),
    [
        (b'{"choices":[{"delta":{"content":"a b"}}]}', CONTENT_PLAIN, b"a b"),
        (b'{"choices":[{"delta":{"cont\\u0065nt":"a"}}]}', CONTENT_PLAIN, b"a"),
        (b'{"\\u0063hoices":[{"\\u0064elta":{"\\u0063ontent":"a"}}]}', CONTENT_PLAIN, b"a"),
        (b'{"choices":[{"delta":{"content":"a\\nb"}}]}', CONTENT_ESCAPED, b"a\\nb"),
        (b'{"choices":[{"delta":{"content":""}}]}', CONTENT_PLAIN, b""),
        (b'{"choices":[{"delta":{"content":null}}]}', CONTENT_NULL, None),
        (b'{"choices":[{"delta":{"content":["a"]}}]}', CONTENT_OTHER, None),
        (b'{"choices":[{"delta":{}}]}', CONTENT_ABSENT, None),
        (b'{"choices":[{"delta":null}]}', CONTENT_ABSENT, None),
        (b'{"choices":[]}', CONTENT_ABSENT, None),
        (b'{"choices":{"delta":{"content":"a"}}}', CONTENT_ABSENT, None),
        (b'{"content":"a","delta":{"content":"a"}}', CONTENT_ABSENT, None),
        (b'{"choices":[{"message":{"delta":{"content":"a"}}}]}', CONTENT_ABSENT, None),
        (b'{"choices":[{"delta":{"x":{"content":"a"}}}]}', CONTENT_ABSENT, None),
        (b'{"choices":[{},{"delta":{"content":"a"}}]}', CONTENT_ABSENT, None),
        (b'{"choices":[[{"delta":{"content":"a"}}]]}', CONTENT_ABSENT, None),
        (b'{"choices":[{"text":"a"}]}', CONTENT_PLAIN, b"a"),
        (b'{"choices":[{"text":"a","delta":{"content":"b"}}]}', CONTENT_PLAIN, b"b"),
        (b'{"choices":[{"delta":{"content":"b"}}],"choices":[]}', CONTENT_ABSENT, None),
        (b'{"choices":[{"delta":{"content":"b"},"delta":{"role":"a"}}]}', CONTENT_ABSENT, None),
        (b'{"choices":[{"delta":{"content":"b","content":"c"}}]}', CONTENT_PLAIN, b"c"),
        (b'{"choices":[{"delta":{"content\\u0000":"b","content\\n":"c"}}]}', CONTENT_ABSENT, None),
    ],
)
def test_content_is_found_where_it_belongs_and_only_there(document: bytes, kind: int, content: bytes | None) -> None:
    assert check(document)
    assert WALKED["content_kind"] == kind
    assert WALKED.span(document, "content") == content


WHERE = {
    "choices": b'{"%s":[{"delta":{"content":"a"}}],"object":1}',
    "delta": b'{"choices":[{"%s":{"content":"a"}}]}',
    "content": b'{"choices":[{"delta":{"%s":"a"}}]}',
    "text": b'{"choices":[{"%s":"a"}]}',
    "role": b'{"choices":[{"delta":{"%s":"a"}}]}',
    "finish_reason": b'{"choices":[{"%s":"a"}]}',
    "usage": b'{"%s":{"prompt_tokens":1}}',
    "prompt_tokens": b'{"usage":{"%s":1}}',
    "completion_tokens": b'{"usage":{"%s":1}}',
    "error": b'{"%s":1}',
    "model": b'{"%s":"a"}',
}


@pytest.mark.parametrize("name", WHERE)
def test_a_name_is_told_from_every_other_that_differs_in_one_bit(name: str) -> None:
    place = WHERE[name]
    assert check(place % name.encode())
    for at in range(len(name)):
        for bit in range(8):
            other = bytearray(name.encode())
            other[at] ^= 1 << bit
            if other[at] >= 32 and other[at] not in b'"\\':
                assert check(place % bytes(other))
    for near in (name[:-1], name + "s", name[1:], name + "\\u0000", name + "\\n", "\\u00e9" + name[1:]):
        assert check(place % near.encode())
    for at, letter in enumerate(name):
        assert check(place % f"{name[:at]}\\u{ord(letter):04x}{name[at + 1 :]}".encode())


@pytest.mark.parametrize(
    ("delta", "token"),
    [
        (b'{"role":"assistant"}', False),
        (b'{"role":"assistant","content":""}', False),
        (b'{"content":null,"refusal":null,"index":1}', False),
        (b'{"tool_calls":[ ]}', False),
        (b'{"content":" "}', True),
        (b'{"reasoning_content":"hm"}', True),
        (b'{"tool_calls":[{"index":0}]}', True),
        (b'{"content":"a","content":""}', False),
    ],
)
def test_a_token_is_what_says_something(delta: bytes, token: bool) -> None:
    assert check(ONE_CHOICE % (b'"delta":' + delta))
    assert WALKED["token"] == token


def test_what_stands_beside_the_text_is_found() -> None:
    document = (
        b'{"model":"m\\u0031","choices":[{"finish_reason":"stop"},{"finish_reason":null}],'
        b'"usage":{"prompt_tokens":7,"completion_tokens":0,"prompt_tokens_details":{"prompt_tokens":9}},'
        b'"error": {"message":"no"} }'
    )
    assert check(document)
    assert WALKED.span(document, "model") == b"m\\u0031"
    assert WALKED.span(document, "finish") == b"stop"
    assert WALKED.span(document, "error") == b'{"message":"no"}'
    assert (WALKED["choice_count"], WALKED["prompt_tokens"], WALKED["completion_tokens"]) == (2, 7, 0)
    for usage in (b'{"prompt_tokens":-1}', b'{"prompt_tokens":1.0}', b'{"prompt_tokens":"1"}', b"null", b"[]"):
        assert check(b'{"usage":{"prompt_tokens":5},"usage":' + usage + b"}")
        assert WALKED["prompt_tokens"] == -1


INVALID = [b"", b" ", b"{", b"}", b"[]", b"null", b'"a"', b"1", b"{}{}", b"{},", b"{}\0", b"\xef\xbb\xbf{}", b"{,}"]
INVALID_VALUES = [
    b",",
    b"01",
    b"-",
    b"-a",
    b"1.",
    b".5",
    b"1e",
    b"1e+",
    b"+1",
    b"1a",
    b"NaN",
    b"Infinity",
    b"nul",
    b"nulll",
    b"tru",
    b"falsy",
    b"False",
    b"'a'",
    b'"',
    b'"\\',
    b'"\\"',
    b'"\\x"',
    b'"\\u12g4"',
    b'"\\u123"',
    b'"\n"',
    b'"\0"',
    b'"\x1f"',
    b"[",
    b"]",
    b"[1",
    b"[1,",
    b"[,]",
    b"[1,]",
    b"[1 2]",
    b"[}",
    b"{",
    b"{]",
    b"{1:2}",
    b'{"a"}',
    b'{"a":}',
    b'{"a":1,}',
    b'{"a" 1}',
    b'{"a":1 "b":2}',
    b'{"a":1,,"b":2}',
    b"\xa0",
    b"\x0c1",
]
PLACES = [
    b'{"x":%s}',
    b'{"choices":%s}',
    b'{"choices":[%s]}',
    b'{"choices":[{"delta":%s}]}',
    b'{"choices":[{"delta":{"content":%s}}]}',
    b'{"choices":[{"text":%s}]}',
    b'{"usage":%s}',
    b'{"usage":{"prompt_tokens":%s}}',
    b'{"model":%s}',
    b'{"error":%s}',
    b'{"x":[[{"y":%s}]]}',
]


@pytest.mark.parametrize("value", INVALID_VALUES)
def test_invalid_values_are_refused_wherever_they_stand(value: bytes) -> None:
    for place in PLACES:
        document = place.replace(b"%s", value)
        assert not check(document), document


@pytest.mark.parametrize("document", INVALID)
def test_invalid_documents_are_refused(document: bytes) -> None:
    assert not check(document)


@pytest.mark.parametrize("place", PLACES)
def test_a_document_without_its_end_is_refused(place: bytes) -> None:
    document = place.replace(b"%s", b'{"a":[1,true,"\\u00e9"]}')
    assert check(document)
    for end in range(len(document)):
        assert not check(document[:end])


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":[', b"]}]")])
def test_depth_is_bounded(opening: bytes, closing: bytes) -> None:
    for place in PLACES:
        levels = sum(place.count(bracket) for bracket in (b"{", b"["))
        times = (DEPTH_MAX - levels) // len(closing)
        assert check(place.replace(b"%s", opening * times + b"1" + closing * times))
        times += 1
        assert not walk(place.replace(b"%s", opening * times + b"1" + closing * times))
    assert not walk(b'{"a":' + opening * 5_000)


# ---- strings


def rewrite(inside: bytes) -> bytes | None:
    """Rewrite into as much memory as is allowed, then in place, and to a place before the source in the same memory."""
    size = len(inside)
    destination = DESTINATION.at_end(bytes(size))
    written = int(rewrite_string(destination, MEMORY.at_end(inside), size))
    result = bytes_at(destination, written) if written >= 0 else None
    for distance in (0, 1, 20):
        address = MEMORY.at_end(bytes(distance) + inside)
        assert rewrite_string(address, address + distance, size) == written
        assert result is None or bytes_at(address, written) == result
    return result


RAW_TEXT = some.text(some.characters(exclude_categories=["Cs"]), max_size=60)


@settings(deadline=None, max_examples=EXAMPLES)
@given(some.text(max_size=60) | RAW_TEXT, some.booleans())
def test_a_rewritten_string_is_the_same_text_in_one_form(text: str, is_raw: bool) -> None:
    inside = json.dumps(text, ensure_ascii=not is_raw)[1:-1].encode("utf-8", "surrogatepass")
    written = rewrite(inside)
    assert written == rewrite_reference(inside)
    if written is not None:
        assert rewrite(written) == written
        assert len(written) <= len(inside)


PIECES = [
    b"a",
    b"\\",
    b"u",
    b"\\u",
    b"\\ud83d",
    b"\\ude00",
    b"\\uDFFF",
    b"\\u0000",
    b"\\u001F",
    b"\\u0022",
    b"\\u005c",
    b"\\u002f",
    b"\\n",
    b"\\/",
    b"\\b",
    b"\\f",
    b'\\"',
    b'"',
    b"\x01",
    b"\x7f",
    b"\xc3\xa9",
    b"\xc0\xaf",
    b"\xed",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
    b"\xf4\x90\x80\x80",
    b"\xe4\xb8",
    b"\x80",
    b"\xff",
    b"plain text " * 3,
    b"\\u000a",
    b"\\u000D",
    b"\\u0009",
    b"\\u0008",
    b"\\u000c",
    b"\\u000b",
    b"\\u4E2d",
    b"\\uffff",
    b"\\u00e9",
]


@settings(deadline=None, max_examples=EXAMPLES)
@given(some.lists(some.sampled_from(PIECES) | some.binary(max_size=4), max_size=12))
def test_any_bytes_are_rewritten_or_refused(pieces: list[bytes]) -> None:
    inside = b"".join(pieces)
    assert rewrite(inside) == rewrite_reference(inside)


@pytest.mark.parametrize(
    ("inside", "written"),
    [
        (b'\\/\\b\\f\\n\\r\\t\\"\\\\', b'/\\b\\f\\n\\r\\t\\"\\\\'),
        (b"\\u0022\\u005C", b'\\"\\\\'),
        (b"\\u001F\\u0000", b"\\u001f\\u0000"),
        (b"\\u000a\\u0008", b"\\n\\b"),
        (b"\\ud83d\\ude00", b"\xf0\x9f\x98\x80"),
        (b"\\ud83dx\\ude00", b"\xef\xbf\xbdx\xef\xbf\xbd"),
        (b"\\ud83d\\ud83d\\ude00", b"\xef\xbf\xbd\xf0\x9f\x98\x80"),
        (b"\\u4e2d\\u00e9\\u0041", b"\xe4\xb8\xad\xc3\xa9A"),
        (b"\xc1\xbf", None),
        (b"\xe0\x80\x80", None),
        (b"\xf8\x88\x80\x80\x80", None),
        (b'a"', None),
        (b"\\", None),
        (b"\\u12", None),
        (b"\\ud83d\\u12", None),
    ],
)
def test_known_strings(inside: bytes, written: bytes | None) -> None:
    assert rewrite(inside) == written


# ---- searches

SEARCHES = (line_bytes, string_bytes, text_bytes, control_bytes)


@settings(deadline=None, max_examples=EXAMPLES)
@given(some.binary(max_size=70) | some.text('ab"\\\n\ré', max_size=70).map(str.encode), some.integers(0, 255))
def test_searches_stop_at_the_first_byte_that_ends_them(data: bytes, byte: int) -> None:
    from tests.daemon.plane.compiled_searches import search_all

    for address in (MEMORY.at_end(data), MEMORY.at_start(data)):
        found = [int(value) for value in search_all(address, len(data), byte)]
        expected = [int(search(address, len(data))) for search in SEARCHES]
        assert found == [int(find_byte(address, len(data), byte)), *expected]
    assert found[0] == data.find(byte)
    assert expected[0] == next((at for at, value in enumerate(data) if value in b"\r\n"), len(data))
    assert expected[1] == next((at for at, value in enumerate(data) if value < 32 or value in b'"\\'), len(data))
    assert expected[2] == next(
        (at for at, value in enumerate(data) if value < 32 or value > 127 or value in b'"\\'), len(data)
    )
    assert expected[3] == next((at for at, value in enumerate(data) if value < 32 or value == 127), len(data))
