"""Event streams against a parser of a few lines: whole, byte by byte and cut anywhere, in guarded memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from config.compilation import INTERPRETED
from daemon.plane.sse import is_done, skip_bom
from tests.daemon.plane.event_feeding import MEMORY, SCANNED, event_of, events, scan
from tests.daemon.plane.guarded import cut
from tests.daemon.plane.parser_reference import events_reference

pytestmark = pytest.mark.plane

EXAMPLES = 40 if INTERPRETED else 300
SIZES = some.lists(some.integers(0, 40), max_size=40)
LINE_ENDS = some.sampled_from([b"\n", b"\r", b"\r\n"])
VALUES = some.binary(max_size=60).map(lambda value: value.replace(b"\n", b"").replace(b"\r", b""))
FIELDS = some.sampled_from(
    [b"data", b"event", b"id", b"retry", b"", b"dat", b"datas", b"Data", b"even", b"events", b" data"]
)
COLONS = some.sampled_from([b":", b": ", b":  ", b"", b" :", b"::"])
LINES = (
    some.tuples(FIELDS, COLONS, VALUES | some.sampled_from([b"error", b" error", b"Error", b"errors", b""])).map(
        b"".join
    )
    | VALUES
    | some.sampled_from([b"event: error", b"event:error", b"data", b"data:", b": note", b""])
)
STREAMS = some.lists(some.tuples(LINES, LINE_ENDS, some.just(b"") | LINE_ENDS), max_size=16).map(
    lambda lines: b"".join(map(b"".join, lines))
)


@settings(deadline=None, max_examples=EXAMPLES)
@given(STREAMS, SIZES)
def test_a_stream_gives_the_same_events_however_it_is_cut(stream: bytes, sizes: list[int]) -> None:
    body = stream.removeprefix(b"\xef\xbb\xbf")
    expected = events_reference(body)
    assert events([stream]) == expected
    assert events(cut(stream, sizes)) == expected
    assert events([b"\xef\xbb\xbf" + body]) == expected


@settings(deadline=None, max_examples=EXAMPLES // 2)
@given(some.text("\r\n:dat ev", max_size=50).map(str.encode) | STREAMS)
def test_a_stream_gives_the_same_events_byte_by_byte(stream: bytes) -> None:
    stream = stream[:300]
    body = stream.removeprefix(b"\xef\xbb\xbf")
    assert events([stream[at : at + 1] for at in range(len(stream))]) == events_reference(body)


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\r\n\r\n", b"x"),
        (b"data:  x\r\r\n", b" x"),
        (b"data\n\n", b""),
        (b"data:\n\n", b""),
        (b"data: \n\n", b""),
        (b": note\nid: 1\ndata: x\n\n", b"x"),
        (b"event: error\ndata: x\nretry: 1\n\n", b"x"),
    ],
)
def test_the_only_data_field_is_found_in_place(stream: bytes, data: bytes) -> None:
    following = b"data: y"
    assert scan(stream + following, 0, False)
    assert (SCANNED["end"], SCANNED["data_count"]) == (len(stream), 1)
    assert SCANNED.span(stream, "data") == data
    assert SCANNED["is_error"] == (b"error" in stream)


def test_several_data_fields_are_joined() -> None:
    stream = b"data: {\ndata\ndata:  a\r\ndat: b\rdata:}\n\n"
    assert scan(stream, 0, False)
    assert event_of(stream).data == [b"{", b"", b" a", b"}"]


@pytest.mark.parametrize(
    ("name", "is_error"),
    [
        (b"event: error", True),
        (b"event:error", True),
        (b"event: error\nevent: message", False),
        (b"event: message\nevent: error", True),
        (b"event: errors", False),
        (b"event: erros", False),
        (b"event:  error", False),
        (b"event: Error", False),
        (b"events: error", False),
        (b"event", False),
        (b": event: error", False),
        (b"data: event: error", False),
    ],
)
def test_an_error_is_told_by_the_name_of_the_event(name: bytes, is_error: bool) -> None:
    assert scan(name + b"\n\n", 0, False)
    assert SCANNED["is_error"] == is_error


@pytest.mark.parametrize("stream", [b"data: x\n\r", b"\r", b"data: x\r\r"])
def test_a_carriage_return_at_the_end_waits_for_what_follows(stream: bytes) -> None:
    assert not scan(stream, 0, False)
    resume = SCANNED["resume"]
    assert resume == len(stream) - 1
    assert scan(stream, resume, True)
    assert SCANNED["end"] == len(stream)
    assert scan(stream + b"\n", resume, False)
    assert SCANNED["end"] == len(stream) + 1
    assert scan(stream + b"d", resume, False)
    assert SCANNED["end"] == len(stream)


@pytest.mark.parametrize("stream", [b"", b"d", b"data: x", b"data: x\n", b"data: x\r\n"])
def test_an_event_without_its_blank_line_never_ends(stream: bytes) -> None:
    assert not scan(stream, 0, False)
    assert not scan(stream, 0, True)


def test_a_blank_line_alone_is_an_event_without_data() -> None:
    for line_end in (b"\n", b"\r\n"):
        assert scan(line_end + b"data: x", 0, False)
        assert [SCANNED[name] for name in ("end", "data_count", "line_count", "is_error")] == [len(line_end), 0, 0, 0]


def test_a_long_line_in_many_pieces_is_looked_at_once() -> None:
    # `scan` asserts that everything that has come is behind `resume`.
    line = b"data: " + b"x" * 30_000
    resume = 0
    for end in range(100, len(line), 5_000):
        assert not scan(line[:end], resume, False)
        resume = SCANNED["resume"]
    assert scan(line + b"\n\n", resume, False)
    assert SCANNED["data_bytes"] == 30_000


def test_the_byte_order_mark_is_skipped_once() -> None:
    mark = b"\xef\xbb\xbf"
    for data, is_last, expected in (
        (b"", False, -1),
        (b"", True, 0),
        (mark[:1], False, -1),
        (mark[:2], False, -1),
        (mark[:2], True, 0),
        (mark, False, 3),
        (mark + b"data", True, 3),
        (b"d", False, 0),
        (b"\xef\xbb ", False, 0),
        (b"\xfe\xff", False, 0),
    ):
        assert skip_bom(MEMORY.at_end(data), len(data), is_last) == expected
    assert events([mark + mark + b"data: x\n\n"])[0].data == []


@pytest.mark.parametrize(
    ("data", "done"),
    [
        (b"[DONE]", True),
        (b" [DONE]  ", True),
        (b"", False),
        (b"    ", False),
        (b"[DONE", False),
        (b"[DONE]]", False),
        (b"[done]", False),
        (b"[DONX]", False),
        (b"[DON]]", False),
        (b"x[DONE]", False),
        (b'"[DONE]"', False),
    ],
)
def test_done_is_told_exactly(data: bytes, done: bool) -> None:
    assert is_done(MEMORY.at_end(data), len(data)) == done
    assert is_done(MEMORY.at_start(data), len(data)) == done
