"""What the memory of one run consists of: records of 64-bit integers, and the arrays that compiled code is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


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
    # over HTTP; addresses and sizes of what is sent, and of what an event consists of
    "is_http",
    "late_ns_max",
    "request_address",
    "before_bytes",  # of an event: before, what is learnt, middle, the token's number, rest
    "middle_address",
    "middle_bytes",
    "rest_address",
    "rest_bytes",
    "tail_address",  # behind the last number
    "tail_bytes",
    "learnt_address",
    "digits_address",
    "chunked_line_bytes",
    "close_line_bytes",
)

RESPONSE = _record(
    "framing",
    "chunk_left",
    "size_digits",
    "part",
    "part_bytes",  # how much of the part has come
    "learnt_bytes",  # an event up to its number, as this stream has it
    "digit_count",
    "body_bytes",
    "is_chunked",
    "is_closing",  # the connection ends with the response
    "chunked_matched",
    "close_matched",
    "shown_bytes",
)

FAULT = _record(
    "stream", "outcome", "error_number", "status", "message_count", "byte_count", "differs_at", "shown_bytes"
)


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
    tcp_name: NDArray[np.uint8]  # sockaddr_in of our own listener, or of the HTTP server
    # over HTTP
    responses: NDArray[Any]  # slots x RESPONSE
    blank_response: NDArray[Any]  # 1 x RESPONSE, as a response begins
    learnt: NDArray[np.uint8]  # slots x LEARNT_BYTES_MAX
    digits: NDArray[np.uint8]  # slots x DIGITS_MAX: the number of the next token
    shown: NDArray[np.uint8]  # slots x SHOWN_BYTES_MAX: what came where it was wrong
    fault_shown: NDArray[np.uint8]  # the same, of each fault
    request: NDArray[np.uint8]
    event_text: NDArray[np.uint8]  # before, middle, rest and tail
    head_lines: NDArray[np.uint8]  # two lines of a head, which are looked for
