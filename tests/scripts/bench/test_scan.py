"""The compiled scanner against a naive parser, the response cut anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.bench.probe import STANDARD_HEAD, message_count, without_comments
from scripts.bench.scanning import BETWEEN, LATENESS, NUMBER_FIRST, scan
from scripts.bench.tables import NUMBER_PLACEHOLDER, allocate, render, template

if TYPE_CHECKING:
    from scripts.bench.records import Tables

INTERVAL_NS = 1_000_000
DONE = "data: [DONE]\n\n"

lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
messages = st.one_of(
    lines.map("data: {}\n\n".format),
    lines.map("event: token\ndata: {}\n\n".format),
    lines.map("event: erro\ndata: {}\n\n".format),
    st.just("data: [DON\n\n"),
    st.just("data: [DONE] \n\n"),
    st.just("data: crlf\r\n\r\n"),
)
comments = lines.map(":{}\n\n".format)
errors = lines.map("event: error\ndata: {}\n\n".format)
strays = st.sampled_from(["\n", "\r\n"])
blocks = st.one_of(messages, messages, messages, comments, errors, strays)


class Found(NamedTuple):
    """What both parsers say of a body."""

    messages: int
    comments: int
    errors: int
    is_done: bool
    after_done_bytes: int


def naive(body: str) -> Found:
    """Split at blank lines, the slow and plain way."""
    counts = {"messages": 0, "comments": 0, "errors": 0}
    is_done, after_done_bytes = False, 0
    rest = body
    while rest:
        if rest.startswith(("\n", "\r\n")):  # a stray empty line is no message
            stray, rest = rest[: rest.index("\n") + 1], rest[rest.index("\n") + 1 :]
            after_done_bytes += len(stray) if is_done else 0
            continue
        ends = [rest.find(end) + len(end) for end in ("\n\n", "\n\r\n") if end in rest]
        cut = min(ends) if ends else len(rest)
        block, rest = rest[:cut], rest[cut:]
        if block.startswith(":"):
            counts["comments"] += bool(ends)
            continue
        after_done_bytes += len(block.encode()) if is_done else 0
        if not ends:
            break
        if block == DONE:
            is_done = True
        elif block.startswith("event: error"):
            counts["errors"] += 1
        else:
            counts["messages"] += 1
    return Found(**counts, is_done=is_done, after_done_bytes=after_done_bytes)


def feed(tables: Tables, data: bytes | bytearray, now_ns: int) -> None:
    tables.buffer[: len(data)] = np.frombuffer(data, np.uint8)
    scan(tables, 0, len(data), now_ns)


def fresh(expected: bytes = b"") -> Tables:
    tables = allocate(1, "/nowhere", b"", expected)
    tables.run[0].interval_ns = INTERVAL_NS
    tables.streams[0].number = NUMBER_FIRST
    return tables


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(blocks, max_size=12), st.booleans(), lines)
def test_any_cut_gives_what_the_naive_parser_finds(
    data: st.DataObject, before: list[str], ends_with_done: bool, rest: str
) -> None:
    body = "".join(before) + (DONE if ends_with_done else "") + rest
    response = STANDARD_HEAD + body.encode()
    tables = fresh()
    cuts = data.draw(st.lists(st.integers(0, len(response)), max_size=8).map(sorted))
    for start, end in zip([0, *cuts], [*cuts, len(response)], strict=True):
        feed(tables, response[start:end], 1)
    stream, run = tables.streams[0], tables.run[0]
    found = Found(
        int(stream.message_count), int(run.comment_count), int(stream.error_count), bool(stream.is_done),
        int(stream.after_done_bytes),
    )  # fmt: skip
    assert found == naive(body)
    assert stream.status == 200
    assert stream.byte_count == len(response)


def test_byte_by_byte_is_the_same_as_at_once() -> None:
    response = STANDARD_HEAD + b": hello\n\ndata: a\n\ndata: b\n\n" + DONE.encode()
    whole, bytewise = fresh(), fresh()
    feed(whole, response, 5)
    for byte in response:
        feed(bytewise, bytes([byte]), 5)
    assert whole.streams[0] == bytewise.streams[0]


def test_messages_of_one_recv_share_its_time() -> None:
    tables = fresh()
    feed(tables, STANDARD_HEAD, 10)
    feed(tables, b"data: 0\n\nda", 1_000)
    feed(tables, b"ta: 1\n\ndata: 2\n\n", 1_000 + 3 * INTERVAL_NS)
    feed(tables, b"data: [DONE]\n\n", 10**12)
    stream = tables.streams[0]
    assert (stream.first_message_ns, stream.message_count) == (1_000, 3)
    assert tables.histograms[BETWEEN].sum() == tables.histograms[LATENESS].sum() == 2
    assert (tables.least[BETWEEN], tables.most[BETWEEN]) == (0, 3 * INTERVAL_NS)
    assert (tables.least[LATENESS], tables.most[LATENESS]) == (INTERVAL_NS, 2 * INTERVAL_NS)


def test_early_messages_are_reported_and_count_as_on_time() -> None:
    tables = fresh()
    feed(tables, STANDARD_HEAD + b"data: 0\n\ndata: 1\n\n", 77)
    assert tables.most[LATENESS] == 0
    assert tables.run[0].early_ns_max == INTERVAL_NS


@settings(deadline=None)
@given(st.integers(0, 70_000_000), st.integers(0, 200), st.integers(1, 255))
def test_every_byte_is_compared_with_the_stream_s_own_number(number: int, at: int, change: int) -> None:
    expected = STANDARD_HEAD + b"data: {number}, again {number}\n\n" + DONE.encode()
    right = bytearray(render(expected, NUMBER_FIRST + number))
    tables = fresh(expected)
    tables.streams[0].number = NUMBER_FIRST + number
    feed(tables, right, 1)
    assert tables.streams[0].differs_at == -1
    assert tables.streams[0].position == len(right) == tables.expected.size
    wrong = fresh(expected)
    wrong.streams[0].number = NUMBER_FIRST + number
    at %= len(right)
    right[at] = (right[at] + change) % 256
    feed(wrong, right, 1)
    # Bytes 9 to 11 hold the status; a head that is broken, or a comment where there was none, ends the comparison.
    if at > len(STANDARD_HEAD):
        assert wrong.streams[0].differs_at == at


def test_comments_are_no_part_of_what_is_expected() -> None:
    expected = STANDARD_HEAD + b"data: {number}\n\n" + DONE.encode()
    tables = fresh(expected)
    feed(tables, render(STANDARD_HEAD + b": keep-alive\n\ndata: {number}\n\n: \n\n" + DONE.encode(), NUMBER_FIRST), 1)
    assert tables.streams[0].differs_at == -1
    assert tables.run[0].comment_count == 2


def test_a_longer_answer_differs_where_the_expected_one_ends() -> None:
    expected = STANDARD_HEAD + DONE.encode()
    tables = fresh(expected)
    feed(tables, expected + b"x", 1)
    assert tables.streams[0].differs_at == len(expected)


def test_other_statuses_are_read_and_their_bodies_left() -> None:
    tables = fresh(STANDARD_HEAD)
    feed(tables, b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\ndata: no\n\n", 1)
    assert (tables.streams[0].status, tables.streams[0].message_count) == (503, 0)


def test_a_template_is_the_text_with_marks_for_the_digits() -> None:
    assert template(b"a{number}b").tolist() == [97, *range(256, 264), 98]
    assert template(b"").size == 0


def test_what_is_learnt_has_no_comments() -> None:
    response = STANDARD_HEAD + b": x\n\ndata: a\n\ndata: b\n\n" + DONE.encode()
    assert without_comments(response) == STANDARD_HEAD + b"data: a\n\ndata: b\n\n" + DONE.encode()
    assert message_count(response) == 2
    assert NUMBER_PLACEHOLDER == b"{number}"
