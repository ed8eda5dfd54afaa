"""Bodies, the other direction: an upload is received, its framing undone, and handed to the stream's worker.

A stream with a body holds one body buffer from OPEN on. It is filled, decoded in place, lent to the worker with a
BODY event, and filled again when BODY_RETURN comes: so a slow worker stops the client, and no buffer grows.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import messages as m
from daemon.plane.counters import BODY_BYTES
from daemon.plane.entries import EAGAIN, EINTR, POLLIN, POLLRDHUP
from daemon.plane.events import WORKER_BODY, raise_worker
from daemon.plane.http_fields import COLON, CR, LF, is_blank, is_control, is_token_byte
from daemon.plane.lists import ready_push
from daemon.plane.memory import copy_bytes
from daemon.plane.records import load_byte
from daemon.plane.submissions import prepare_poll, prepare_receive
from daemon.plane.table import count, stream_of
from daemon.plane.tag import POLL_READABLE, RECEIVE, pack

# `body_state`
NONE = 0
COUNTED = 1  # Content-Length: `body_remaining` bytes follow
CHUNK_SIZE = 2  # inside the line with a chunk's size
CHUNK_BLANK = 3  # behind the size, before a chunk extension or the end of the line
CHUNK_EXTENSION = 4  # in that line, behind a semicolon
CHUNK_SIZE_END = 5  # the LF of that line
CHUNK_DATA = 6
CHUNK_DATA_END = 7  # the line end after a chunk's data
TRAILER = 8  # the name of a field after the last chunk, or the line end after all of them
TRAILER_VALUE = 9  # the rest of such a line
TRAILER_END = 10  # its LF
DONE = 11
MALFORMED = 12

_SEMICOLON = 59
CHUNK_LINE_BYTES_MAX = 4096  # size line with extensions, and all trailers together
_DIGITS_MAX = 15


@inlined
def hexadecimal(byte: int) -> int:
    """The value of a hexadecimal digit, or -1."""
    if 48 <= byte <= 57:
        return byte - 48
    lower = byte | 32
    if 97 <= lower <= 102:
        return lower - 87
    return -1


@inlined
def _size_known(stream: Any) -> None:
    stream.body_state = CHUNK_DATA if stream.body_remaining > 0 else TRAILER
    if stream.body_remaining > 0:
        stream.body_line_bytes = 0


@inlined
def _size_byte(stream: Any, byte: int) -> None:
    """One byte of a chunk's size, or the first one behind it."""
    digit = hexadecimal(byte)
    if digit >= 0 and stream.body_line_bytes <= _DIGITS_MAX:
        stream.body_remaining = stream.body_remaining * 16 + digit
    elif stream.body_line_bytes == 1 or digit >= 0:
        stream.body_state = MALFORMED
    else:
        _behind_size(stream, byte)


@inlined
def _behind_size(stream: Any, byte: int) -> None:
    if byte == CR:
        stream.body_state = CHUNK_SIZE_END
    elif byte == _SEMICOLON:
        stream.body_state = CHUNK_EXTENSION
    else:
        stream.body_state = CHUNK_BLANK if is_blank(byte) else MALFORMED


@inlined
def _text_byte(stream: Any, byte: int, end_state: int) -> None:
    """One byte of an extension or of a trailer's value, which go up to a CR and mean nothing here."""
    if byte == CR:
        stream.body_state = end_state
    elif is_control(byte):
        stream.body_state = MALFORMED


@inlined
def _line_end_byte(stream: Any, byte: int) -> None:
    """What follows the CR of a line, or a chunk's data."""
    state = int(stream.body_state)
    if state == CHUNK_DATA_END and stream.body_line_bytes == 1:
        if byte != CR:
            stream.body_state = MALFORMED
    elif byte != LF:
        stream.body_state = MALFORMED
    elif state == CHUNK_SIZE_END:
        _size_known(stream)
    elif state == CHUNK_DATA_END:
        stream.body_state = CHUNK_SIZE
        stream.body_line_bytes = 0
        stream.body_remaining = 0
    else:
        stream.body_state = TRAILER if stream.body_remaining > 0 else DONE
        stream.body_remaining = 0


@inlined
def _trailer_byte(stream: Any, byte: int) -> None:
    """One byte of a trailer's name, whose bytes `body_remaining` counts, or of the empty line behind all trailers."""
    if is_token_byte(byte):
        stream.body_remaining += 1
    elif byte == COLON and stream.body_remaining > 0:
        stream.body_state = TRAILER_VALUE
    else:
        stream.body_state = TRAILER_END if byte == CR and stream.body_remaining == 0 else MALFORMED


@inlined
def _line_byte(stream: Any, byte: int) -> None:
    """One byte of chunked framing (RFC 9112, 7.1). Lines end with CR LF and nothing else; everything is bounded."""
    stream.body_line_bytes += 1
    state = int(stream.body_state)
    if stream.body_line_bytes > CHUNK_LINE_BYTES_MAX:
        stream.body_state = MALFORMED
    elif state == CHUNK_SIZE:
        _size_byte(stream, byte)
    elif state == CHUNK_BLANK:
        _behind_size(stream, byte)
    elif state == CHUNK_EXTENSION:
        _text_byte(stream, byte, CHUNK_SIZE_END)
    elif state == TRAILER:
        _trailer_byte(stream, byte)
    elif state == TRAILER_VALUE:
        _text_byte(stream, byte, TRAILER_END)
    else:
        _line_end_byte(stream, byte)


@compiled
def decode_body(stream: Any, address: int, raw_bytes: int) -> int:
    """Undo the framing of `raw_bytes` at `address`, in place; how many bytes of body now stand there.

    Bytes after the body's end (pipelined requests) are dropped.
    """
    read = 0
    written = 0
    while read < raw_bytes and stream.body_state < DONE:
        if stream.body_state == COUNTED or stream.body_state == CHUNK_DATA:
            size = min(int(stream.body_remaining), raw_bytes - read)
            if written != read and size > 0:
                copy_bytes(address + written, address + read, size)
            read += size
            written += size
            stream.body_remaining -= size
            if stream.body_remaining == 0:
                stream.body_state = DONE if stream.body_state == COUNTED else CHUNK_DATA_END
                stream.body_line_bytes = 0
        else:
            _line_byte(stream, load_byte(address + read))
            read += 1
    if stream.body_state == DONE:
        stream.body_line_bytes = raw_bytes - read  # how many stand behind it
    return written


@compiled
def take_body_bytes(plane: Any, slot: int, raw_bytes: int) -> None:
    """Bytes have arrived in the body buffer: decode them, and lend what is body (or the end) to the worker."""
    stream = stream_of(plane, slot)
    address = plane.bodies + stream.body_buffer * plane.body_buffer_bytes
    stream.body_bytes = decode_body(stream, address, raw_bytes)
    count(plane, BODY_BYTES, stream.body_bytes)
    stream.body_flags = 0
    if stream.body_state == DONE:
        stream.body_flags = m.BODY_LAST
    elif stream.body_state == MALFORMED:
        stream.body_flags = m.BODY_MALFORMED
    if stream.body_bytes > 0 or stream.body_flags:
        _lend(plane, slot)


@inlined
def _lend(plane: Any, slot: int) -> None:
    stream = stream_of(plane, slot)
    stream.flags |= m.FLAG_BODY_LENT
    raise_worker(plane, slot, WORKER_BODY)


@compiled
def end_body_early(plane: Any, slot: int) -> None:
    """The client stopped sending before the body's end."""
    stream = stream_of(plane, slot)
    stream.body_state = MALFORMED
    stream.body_bytes = 0
    stream.body_flags = m.BODY_TRUNCATED
    _lend(plane, slot)


@inlined
def wants_body(stream: Any) -> bool:
    """Whether the client is to be read from now."""
    return NONE < stream.body_state < DONE and not stream.flags & m.FLAG_BODY_LENT and stream.channel > 0


@compiled
def service_body(plane: Any, slot: int) -> None:
    """Ask for more of the upload where its buffer is free. Submits at most one."""
    stream = stream_of(plane, slot)
    if not wants_body(stream) or stream.in_flight & ((1 << RECEIVE) | (1 << POLL_READABLE)):
        return
    empty = stream.body_state == COUNTED and stream.body_remaining == 0
    if empty:
        stream.body_state = DONE
    if stream.body_raw_bytes > 0 or empty:  # what the HTTP front had already read, or a body of no bytes at all
        raw_bytes = int(stream.body_raw_bytes)
        stream.body_raw_bytes = 0
        take_body_bytes(plane, slot, raw_bytes)
        ready_push(plane, slot)
        return
    generation = stream.generation
    if stream.must_poll:
        stream.must_poll = 0
        prepare_poll(plane, stream.client_fd, POLLIN | POLLRDHUP, pack(POLL_READABLE, slot, generation))
        stream.in_flight |= 1 << POLL_READABLE
        return
    address = plane.bodies + stream.body_buffer * plane.body_buffer_bytes
    prepare_receive(plane, stream.client_fd, address, plane.body_buffer_bytes, 0, pack(RECEIVE, slot, generation))
    stream.in_flight |= 1 << RECEIVE


@compiled
def handle_body_received(plane: Any, slot: int, result: int) -> None:
    """A piece of the upload, its premature end, or nothing yet."""
    stream = stream_of(plane, slot)
    if result > 0:
        take_body_bytes(plane, slot, result)
    elif result == -EAGAIN:
        stream.must_poll = 1
    elif result != -EINTR:
        end_body_early(plane, slot)
    ready_push(plane, slot)
