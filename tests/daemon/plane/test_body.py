"""Chunked framing against a decoder of a few lines, in one piece, byte by byte and cut anywhere."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from daemon.plane.body import CHUNK_SIZE, COUNTED, DONE, MALFORMED, decode_body, hexadecimal
from tests.daemon.plane.small import empty_stream, small_plane

pytestmark = pytest.mark.plane

PLANE = small_plane()


def decode(pieces: list[bytes], state: int, remaining: int = 0) -> tuple[bytes, int]:
    """The body that comes out of the pieces, and the state at the end."""
    record = PLANE.streams[0]
    stream = empty_stream(PLANE, 0)
    record.body_state, record.body_remaining, record.body_line_bytes = state, remaining, 0
    body = b""
    for piece in pieces:
        buffer = ctypes.create_string_buffer(piece, max(len(piece), 1))
        count = int(decode_body(stream, ctypes.addressof(buffer), len(piece)))
        body += buffer.raw[:count]
    return body, int(record.body_state)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


CHUNKS = some.lists(some.binary(min_size=1, max_size=300), max_size=6)
EXTENSIONS = some.sampled_from([b"", b";a", b' ; name="value"', b"\t"])
TRAILERS = some.lists(some.sampled_from([b"A: b\r\n", b"Long-Name: " + b"x" * 50 + b"\r\n"]), max_size=3)
SIZES = some.lists(some.integers(0, 40), max_size=40)


@settings(deadline=None)
@given(CHUNKS, EXTENSIONS, TRAILERS, SIZES, some.booleans(), some.binary(max_size=20))
def test_a_chunked_body_comes_out_whole_however_it_is_cut(
    chunks: list[bytes],
    extension: bytes,
    trailers: list[bytes],
    sizes: list[int],
    upper: bool,
    pipelined: bytes,
) -> None:
    form = b"%X%s\r\n%s\r\n" if upper else b"%x%s\r\n%s\r\n"
    wire = b"".join(form % (len(chunk), extension, chunk) for chunk in chunks)
    wire += b"0" + extension + b"\r\n" + b"".join(trailers) + b"\r\n"
    expected = (b"".join(chunks), DONE)
    assert decode([wire], CHUNK_SIZE) == expected
    assert decode([wire[index : index + 1] for index in range(len(wire))], CHUNK_SIZE) == expected
    assert decode(cut(wire + pipelined, sizes), CHUNK_SIZE) == expected
    body, state = decode([wire[:-1]], CHUNK_SIZE)
    assert body == expected[0]
    assert state not in (DONE, MALFORMED)


@settings(deadline=None)
@given(some.binary(min_size=1, max_size=300), SIZES, some.binary(max_size=20))
def test_a_counted_body_ends_with_its_last_byte(body: bytes, sizes: list[int], pipelined: bytes) -> None:
    assert decode(cut(body + pipelined, sizes), COUNTED, len(body)) == (body, DONE)
    assert decode([body[:-1]], COUNTED, len(body)) == (body[:-1], COUNTED)


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"0x1\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\r\r\n",
        b"1\r\naX",
        b";a\r\n",
        b"1" * 17 + b"\r\n",
        b"1;" + b"x" * 5000,
        b"0\r\n" + b"A: b\r\n" * 1000,
        # a line ends with CR LF, and nothing else
        b"1\na\r\n0\r\n\r\n",
        b"1\ra",
        b"1\r\na\n0\r\n\r\n",
        b"1;a\na",
        b"1;a\rb\r\n",
        b"0\r\n\n",
        b"0\r\n\r\r\n",
        b"0\r\nA: b\n\r\n",
        # what stands in it
        b"1 2\r\n",
        b"1;\0\r\n",
        b"1\0\r\n",
        b"0\r\nA b\r\n\r\n",
        b"0\r\n: b\r\n\r\n",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"0\r\nA: \x7f\r\n\r\n",
    ],
)
def test_broken_framing_is_malformed_however_it_is_cut(wire: bytes) -> None:
    assert decode([wire], CHUNK_SIZE)[1] == MALFORMED
    assert decode([wire[index : index + 1] for index in range(len(wire))], CHUNK_SIZE)[1] == MALFORMED


@settings(deadline=None)
@given(some.binary(max_size=200), SIZES)
def test_any_bytes_give_the_same_result_however_they_are_cut(wire: bytes, sizes: list[int]) -> None:
    assert decode([wire], CHUNK_SIZE) == decode(cut(wire, sizes), CHUNK_SIZE)


def test_hexadecimal_digits() -> None:
    digits = {ord(digit): int(digit, 16) for digit in "0123456789abcdefABCDEF"}
    assert [int(hexadecimal(byte)) for byte in range(256)] == [digits.get(byte, -1) for byte in range(256)]
