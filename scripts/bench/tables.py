"""The memory of one run, allocated before it starts: a row per stream, histograms, and the structs that libc reads.

The compiled side (`reading`) gets it as one tuple of arrays. Addresses in it stay valid as long as the `Tables` do.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scripts.bench.reading import (
    BUCKET_COUNT,
    EVENT_WORDS,
    EVENTS_MAX,
    METRICS,
    NUMBER_DIGITS,
    NUMBER_FIRST,
    NUMBER_MARK,
    OUTCOMES,
)

NUMBER_PLACEHOLDER = b"{number}"
RECEIVE_BYTES = 65_536
FAULTS_KEPT_MAX = 64
_MESSAGE_FD_WORD = 11


def _record(*names: str) -> np.dtype[Any]:
    """A struct of 64-bit integers: `np.record`, so that the fields read alike compiled and interpreted."""
    return np.dtype((np.record, [(name, np.int64) for name in names]))


STREAM = _record(
    "number",
    "is_used",
    "is_open",
    "read_fd",
    "sent_fd",
    "started_ns",
    "first_byte_ns",
    "first_message_ns",
    "last_message_ns",
    "byte_count",
    "message_count",
    "error_count",
    "after_done_bytes",
    "position",  # bytes so far, without comments
    "differs_at",  # position of the first wrong byte, or -1
    "status",
    "head_matched",  # of \r\n\r\n; 4: the head is over
    "block_bytes",  # since the last blank line
    "line_bytes",  # since the last line feed, carriage returns not counted
    "done_matched",  # how much of "data: [DONE]" the block has matched
    "error_matched",
    "is_comment",
    "is_done",
)

RUN = _record(
    "total_count",
    "number_first",
    "interval_ns",  # 0: no lateness is measured
    "messages_expected",  # -1: any number
    "start_interval_ns",
    "connect_timeout_ns",
    "socket_type",
    "epoll_fd",
    "listener_fd",  # -1: socketpairs
    "begin_ns",
    "started_count",
    "finished_count",
    "open_count",
    "open_count_max",
    "spare_count",
    "pending_slot",  # connects again on the next turn; -1: none
    "fault_count",
    "message_count",
    "comment_count",
    "byte_count",
    "receive_count",
    "early_ns_max",
    "words_address",
    "event_address",
    "events_address",
    "buffer_address",
    "message_address",
    "message_fd_word",
    "daemon_address",
    "daemon_address_bytes",
    "tcp_address",
    "tcp_address_bytes",
)

FAULT = _record("stream", "outcome", "error_number", "status", "message_count", "byte_count", "differs_at")


class Tables(NamedTuple):
    """All arrays of a run. Times are nanoseconds of CLOCK_MONOTONIC."""

    run: NDArray[Any]  # 1 x RUN
    streams: NDArray[Any]  # slots x STREAM
    blank: NDArray[Any]  # 1 x STREAM, as a stream begins
    spare: NDArray[np.int64]  # slots, a stack of `run.spare_count`
    faults: NDArray[Any]  # the first FAULTS_KEPT_MAX faulty streams
    histograms: NDArray[np.int64]  # metrics x buckets
    least: NDArray[np.int64]  # metrics
    most: NDArray[np.int64]  # metrics
    outcomes: NDArray[np.int64]
    statuses: NDArray[np.int64]  # by status
    expected: NDArray[np.int16]  # the whole response as a template; empty: not checked
    handoff: NDArray[np.int16]  # the handoff as a template
    handoff_bytes: NDArray[np.uint8]  # the handoff of the stream that is starting
    message: NDArray[np.int64]  # msghdr, iovec and control message
    buffer: NDArray[np.uint8]
    words: NDArray[np.int64]  # 2 words that libc fills: a timespec, a pair of descriptors, errno
    event: NDArray[np.uint32]
    events: NDArray[np.uint32]
    daemon_name: NDArray[np.uint8]  # sockaddr_un
    tcp_name: NDArray[np.uint8]  # sockaddr_in of our own listener


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


def allocate(slot_count: int, path: str, handoff: bytes, expected: bytes, tcp_port: int = 0) -> Tables:
    """Tables for `slot_count` streams open at a time; the caller fills in the numbers of `run` that are its own."""
    handoff_template = template(handoff)
    handoff_bytes = np.zeros(max(1, handoff_template.size), np.uint8)  # no data: one NUL byte, as Apache's module does
    tables = Tables(
        run=np.zeros(1, RUN),
        streams=np.zeros(slot_count, STREAM),
        blank=np.zeros(1, STREAM),
        spare=np.arange(slot_count - 1, -1, -1, dtype=np.int64),
        faults=np.zeros(FAULTS_KEPT_MAX, FAULT),
        histograms=np.zeros((len(METRICS), BUCKET_COUNT), np.int64),
        least=np.full(len(METRICS), np.iinfo(np.int64).max, np.int64),
        most=np.zeros(len(METRICS), np.int64),
        outcomes=np.zeros(len(OUTCOMES), np.int64),
        statuses=np.zeros(1000, np.int64),
        expected=template(expected),
        handoff=handoff_template,
        handoff_bytes=handoff_bytes,
        message=_message(handoff_bytes),
        buffer=np.zeros(RECEIVE_BYTES, np.uint8),
        words=np.zeros(2, np.int64),
        event=np.zeros(EVENT_WORDS, np.uint32),
        events=np.zeros(EVENTS_MAX * EVENT_WORDS, np.uint32),
        daemon_name=sockaddr_un(path),
        tcp_name=sockaddr_in(tcp_port),
    )
    tables.blank["differs_at"] = tables.blank["read_fd"] = tables.blank["sent_fd"] = -1
    tables.streams[:] = tables.blank[0]
    _fill_run(tables)
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
