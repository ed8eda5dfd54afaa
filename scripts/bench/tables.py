"""The memory of one run, allocated before it starts: a row per stream, histograms, and the structs that libc reads.

The compiled side (`reading`) gets it as one tuple of arrays. Addresses in it stay valid as long as the `Tables` do.
"""

from __future__ import annotations

import socket
import struct

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
from scripts.bench.records import FAULT, RUN, STREAM, Tables

NUMBER_PLACEHOLDER = b"{number}"
RECEIVE_BYTES = 65_536
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
