"""The memory of one run, allocated before it starts: a row per stream, histograms, and the structs that libc reads.

The compiled side (`reading`) gets it as one tuple of arrays. Addresses in it stay valid as long as the `Tables` do.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.bench.http_scanning import DIGITS_MAX, LEARNT_BYTES_MAX, SHOWN_BYTES_MAX
from scripts.bench.reading import EVENT_WORDS, EVENTS_MAX, OUTCOMES
from scripts.bench.records import FAULT, RESPONSE, RUN, STREAM, Tables
from scripts.bench.scanning import BUCKET_COUNT, HTTP_METRICS, METRICS, NUMBER_DIGITS, NUMBER_FIRST, NUMBER_MARK

NUMBER_PLACEHOLDER = b"{number}"
RECEIVE_BYTES = 65_536
HTTP_RECEIVE_BYTES = 1 << 18
_HEAD_LINES = (b"\r\ntransfer-encoding: chunked\r\n", b"\r\nconnection: close\r\n")
FAULTS_KEPT_MAX = 64
_MESSAGE_FD_WORD = 11


def template(text: bytes) -> NDArray[np.int16]:
    """Bytes with {number} in them, as the compiled side reads them: each placeholder becomes eight digit marks."""
    pieces: list[int] = []
    for index, part in enumerate(text.split(NUMBER_PLACEHOLDER)):
        if index:
            pieces.extend(range(NUMBER_MARK, NUMBER_MARK + NUMBER_DIGITS))
        pieces.extend(part)
    return np.array(pieces, np.int16)


def render(text: bytes, number: int) -> bytes:
    """The same in Python for one stream: what `template` means."""
    return text.replace(NUMBER_PLACEHOLDER, b"%d" % number)


def sockaddr_un(path: str) -> NDArray[np.uint8]:
    """The address of a Unix socket, NUL at its end."""
    encoded = path.encode()
    if len(encoded) > 107:
        raise ValueError(f"the socket's path is {len(encoded)} bytes long; a Unix socket's may have 107: {path}")
    return np.frombuffer(struct.pack("=H", socket.AF_UNIX) + encoded + b"\0", np.uint8).copy()


def sockaddr_in(port: int) -> NDArray[np.uint8]:
    """127.0.0.1 and a port."""
    packed = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton("127.0.0.1") + bytes(8)
    return np.frombuffer(packed, np.uint8).copy()


def _message(payload: NDArray[np.uint8]) -> NDArray[np.int64]:
    """One msghdr (7 words), its iovec (2) and its control message with one descriptor (3), in one piece of memory."""
    words = np.zeros(12, np.int64)
    start = words.ctypes.data
    words[2], words[3] = start + 7 * 8, 1
    words[4], words[5] = start + 9 * 8, socket.CMSG_SPACE(4)
    words[7], words[8] = payload.ctypes.data, payload.size
    words[9] = socket.CMSG_LEN(4)
    words[10] = socket.SOL_SOCKET | socket.SCM_RIGHTS << 32
    return words


@dataclass(frozen=True)
class Exchange:
    """What is sent over HTTP, and the pieces of the events that are to come (scripts/bench/http_scanning.py)."""

    request: bytes
    before: bytes
    middle: bytes
    rest: bytes
    tail: bytes


_NO_EXCHANGE = Exchange(b"", b"", b"", b"", b"")


def allocate(
    slot_count: int,
    path: str,
    handoff: bytes,
    expected: bytes,
    tcp_port: int = 0,
    exchange: Exchange = _NO_EXCHANGE,
) -> Tables:
    """Tables for `slot_count` streams open at a time; the caller fills in the numbers of `run` that are its own."""
    is_http = exchange is not _NO_EXCHANGE
    response_count = slot_count if is_http else 1
    head_lines = [np.frombuffer(line.ljust(48, b"\0"), np.uint8) for line in _HEAD_LINES]
    metric_count = len(METRICS) + len(HTTP_METRICS)
    handoff_template = template(handoff)
    handoff_bytes = np.zeros(max(1, handoff_template.size), np.uint8)  # no data: one NUL byte, as Apache's module does
    tables = Tables(
        run=np.zeros(1, RUN),
        streams=np.zeros(slot_count, STREAM),
        blank=np.zeros(1, STREAM),
        spare=np.arange(slot_count - 1, -1, -1, dtype=np.int64),
        faults=np.zeros(FAULTS_KEPT_MAX, FAULT),
        histograms=np.zeros((metric_count, BUCKET_COUNT), np.int64),
        least=np.full(metric_count, np.iinfo(np.int64).max, np.int64),
        most=np.zeros(metric_count, np.int64),
        outcomes=np.zeros(len(OUTCOMES), np.int64),
        statuses=np.zeros(1000, np.int64),
        expected=template(expected),
        handoff=handoff_template,
        handoff_bytes=handoff_bytes,
        message=_message(handoff_bytes),
        buffer=np.zeros(HTTP_RECEIVE_BYTES if is_http else RECEIVE_BYTES, np.uint8),
        words=np.zeros(2, np.int64),
        event=np.zeros(EVENT_WORDS, np.uint32),
        events=np.zeros(EVENTS_MAX * EVENT_WORDS, np.uint32),
        daemon_name=sockaddr_un(path),
        tcp_name=sockaddr_in(tcp_port),
        responses=np.zeros(response_count, RESPONSE),
        blank_response=np.zeros(1, RESPONSE),
        learnt=np.zeros((response_count, LEARNT_BYTES_MAX), np.uint8),
        digits=np.zeros((response_count, DIGITS_MAX), np.uint8),
        shown=np.zeros((response_count, SHOWN_BYTES_MAX), np.uint8),
        fault_shown=np.zeros((FAULTS_KEPT_MAX, SHOWN_BYTES_MAX), np.uint8),
        request=np.frombuffer(exchange.request, np.uint8).copy(),
        event_text=np.frombuffer(exchange.before + exchange.middle + exchange.rest + exchange.tail, np.uint8).copy(),
        head_lines=np.stack(head_lines),
    )
    tables.blank_response["digit_count"] = 1
    tables.blank["differs_at"] = tables.blank["read_fd"] = tables.blank["sent_fd"] = -1
    tables.streams[:] = tables.blank[0]
    _fill_run(tables)
    if is_http:
        _fill_exchange(tables, exchange)
    return tables


def _fill_run(tables: Tables) -> None:
    run = tables.run[0]
    run.number_first = NUMBER_FIRST
    run.messages_expected = run.pending_slot = run.listener_fd = run.epoll_fd = -1
    run.spare_count = tables.spare.size
    run.message_fd_word = _MESSAGE_FD_WORD
    run.words_address = tables.words.ctypes.data
    run.event_address = tables.event.ctypes.data
    run.events_address = tables.events.ctypes.data
    run.buffer_address = tables.buffer.ctypes.data
    run.message_address = tables.message.ctypes.data
    run.daemon_address, run.daemon_address_bytes = tables.daemon_name.ctypes.data, tables.daemon_name.size
    run.tcp_address, run.tcp_address_bytes = tables.tcp_name.ctypes.data, tables.tcp_name.size


def _fill_exchange(tables: Tables, exchange: Exchange) -> None:
    assert len(exchange.before) + len(exchange.middle) + 128 <= LEARNT_BYTES_MAX, "an event's beginning is too long"
    run = tables.run[0]
    run.is_http = 1
    run.request_address = tables.request.ctypes.data
    run.before_bytes, run.middle_bytes = len(exchange.before), len(exchange.middle)
    run.rest_bytes, run.tail_bytes = len(exchange.rest), len(exchange.tail)
    run.middle_address = tables.event_text.ctypes.data + run.before_bytes
    run.rest_address = run.middle_address + run.middle_bytes
    run.tail_address = run.rest_address + run.rest_bytes
    run.learnt_address, run.digits_address = tables.learnt.ctypes.data, tables.digits.ctypes.data
    run.chunked_line_bytes, run.close_line_bytes = map(len, _HEAD_LINES)
