"""All that runs compiled: starting streams, reading them, checking every byte, counting into histograms.

One file, because Numba's cache on disk notices a change in a function's own file only, not in the files of what it
calls. One thread without the GIL does everything, as 180,000 messages a second leave no time for a Python call on each
of them; it comes back to Python a few times a second (`turns_until`) for signals and for samples of the daemon.

`scan` is pure: bytes and a time in, counts out. The rest makes system calls through libc by name.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compiler.just_in_time import compiled, foreign, inlined, types

if TYPE_CHECKING:
    from scripts.bench.records import Tables

Integer: TypeAlias = "int | np.int64"

# Rows of the histograms.
CONNECT, HANDOFF, FIRST_BYTE, BETWEEN, LATENESS, WHOLE = 0, 1, 2, 3, 4, 5
METRICS = ("connect", "handoff", "first_byte", "between_messages", "lateness", "whole_stream")

# How a stream ended. One outcome each; the first that applies in the order of `_judge`.
COMPLETE, PAIR_FAILED, CONNECT_FAILED, HANDOFF_FAILED, RESET, EMPTY, HEAD_TRUNCATED = 0, 1, 2, 3, 4, 5, 6
REFUSED, ERROR_EVENT, TRUNCATED, NO_DONE, AFTER_DONE, WRONG_COUNT, WRONG_BYTES, STALLED = 7, 8, 9, 10, 11, 12, 13, 14
OUTCOMES = (
    "complete",
    "pair_failed",  # no descriptors or ports left here
    "connect_failed",
    "handoff_failed",
    "reset",  # the read failed
    "empty",  # the end before the first byte
    "head_truncated",
    "refused",  # a status other than 200
    "error_event",
    "truncated",  # the end inside a message
    "no_done",  # the end after a message, and no [DONE]
    "after_done",  # bytes after [DONE]
    "wrong_count",
    "wrong_bytes",
    "stalled",  # open when the run was given up
)

# A bucket is at most 1/512 of its lower bound wide, and its middle is reported: 0.1 % off at most.
LINEAR_BITS = 10
HALF = 1 << (LINEAR_BITS - 1)
VALUE_BITS = 42  # 73 minutes in nanoseconds
BUCKET_COUNT = (VALUE_BITS - LINEAR_BITS) * HALF + 2 * HALF

# A stream's own number stands in its handoff and in what is expected of it: always eight digits, no leading zero.
NUMBER_FIRST = 10_000_000
NUMBER_DIGITS = 8
NUMBER_MARK = 256  # NUMBER_MARK + k in a template stands for digit k
_POWERS = np.array([10**exponent for exponent in range(NUMBER_DIGITS - 1, -1, -1)], np.int64)

_CR, _LF, _COLON, _ZERO = 13, 10, 58, 48
_DONE = np.frombuffer(b"data: [DONE]\n\n", np.uint8)
_ERROR = np.frombuffer(b"event: error", np.uint8)
_DONE_BYTES, _ERROR_BYTES = 14, 12

EVENTS_MAX = 512
# struct epoll_event is packed on x86-64 and nowhere else.
EVENT_WORDS, _DATA_WORD = (3, 1) if platform.machine() == "x86_64" else (4, 2)
_STARTS_PER_TURN = 32  # then the streams that are open are read again
_IDLE_WAIT_MS = 50

_AF_UNIX, _AF_INET, _SOCK_STREAM, _SOCK_NONBLOCK, _SOCK_CLOEXEC = 1, 2, 1, 0o4000, 0o2000000
_EPOLL_CTL_ADD, _EPOLLIN, _MSG_NOSIGNAL, _MSG_DONTWAIT, _CLOCK_MONOTONIC = 1, 1, 0x4000, 0x40, 1
_ENOENT, _EINTR, _EAGAIN, _ETOOMANYREFS, _ECONNREFUSED = 2, 4, 11, 109, 111

_int, _address = types.int32, types.intp
_socketpair = foreign("socketpair", _int, _int, _int, _int, _address)
_socket = foreign("socket", _int, _int, _int, _int)
_connect = foreign("connect", _int, _int, _address, types.uint32)
_accept4 = foreign("accept4", _int, _int, _address, _address, _int)
_sendmsg = foreign("sendmsg", types.intp, _int, _address, _int)
_recv = foreign("recv", types.intp, _int, _address, types.intp, _int)
_close = foreign("close", _int, _int)
_epoll_ctl = foreign("epoll_ctl", _int, _int, _int, _int, _address)
_epoll_wait = foreign("epoll_wait", _int, _int, _address, _int, _int)
_clock_gettime = foreign("clock_gettime", _int, _int, _address)
_errno_location = foreign("__errno_location", _address)
_memmove = foreign("memmove", _address, _address, _address, types.intp)


@inlined
def bucket_of(value: int) -> int:
    """The bucket of a value of at least 0: as it is below 1,024, then 512 buckets for each power of two."""
    value = min(value, (1 << VALUE_BITS) - 1)
    shift = 0
    for step in (32, 16, 8, 4, 2, 1):
        if value >> (shift + step - 1) >= 1 << LINEAR_BITS:
            shift += step
    return shift * HALF + (value >> shift)


@inlined
def count_value(tables: Tables, metric: int, value: int) -> None:
    """Add one value in nanoseconds to a metric's histogram."""
    value = max(value, 0)
    tables.histograms[metric, bucket_of(value)] += 1
    tables.least[metric] = min(tables.least[metric], value)
    tables.most[metric] = max(tables.most[metric], value)


@inlined
def _digit_or_byte(mark: Integer, number: Integer) -> Integer:
    if mark < NUMBER_MARK:
        return mark
    digit: Integer = number // _POWERS[mark - NUMBER_MARK] % 10
    return _ZERO + digit


@inlined
def _message_arrived(tables: Tables, stream: np.record, now_ns: int) -> None:
    """Times of one message. All messages of one recv share its time; [DONE] has no pace and is not counted."""
    run = tables.run[0]
    if stream.message_count == 0:
        stream.first_message_ns = now_ns
    else:
        count_value(tables, BETWEEN, now_ns - stream.last_message_ns)
        if run.interval_ns > 0:
            late_ns = now_ns - stream.first_message_ns - stream.message_count * run.interval_ns
            run.early_ns_max = max(run.early_ns_max, -late_ns)
            count_value(tables, LATENESS, late_ns)
    stream.last_message_ns = now_ns
    stream.message_count += 1
    run.message_count += 1


@inlined
def _block_ended(tables: Tables, stream: np.record, now_ns: int) -> None:
    """A blank line: what was the block before it? A block that begins with a colon is a comment (keep-alive)."""
    if stream.is_comment:
        tables.run[0].comment_count += 1
    elif stream.done_matched == _DONE_BYTES and stream.block_bytes == _DONE_BYTES:
        stream.is_done = 1
    elif stream.error_matched == _ERROR_BYTES:
        stream.error_count += 1
    elif stream.block_bytes > 2:  # more than a stray empty line
        _message_arrived(tables, stream, now_ns)
    stream.block_bytes = 0
    stream.done_matched = 0
    stream.error_matched = 0
    stream.is_comment = 0


@inlined
def _head_byte(stream: np.record, byte: Integer) -> None:
    r"""The head ends with \r\n\r\n; its status stands at bytes 9 to 11."""
    if 9 <= stream.position < 12:
        stream.status = stream.status * 10 + byte - _ZERO
    if byte == (_CR if stream.head_matched % 2 == 0 else _LF):
        stream.head_matched += 1
    else:
        stream.head_matched = 1 if byte == _CR else 0


@inlined
def _body_byte(tables: Tables, stream: np.record, byte: Integer, now_ns: int) -> None:
    at = stream.block_bytes
    if at == 0:
        stream.is_comment = byte == _COLON
    if at < _DONE_BYTES and stream.done_matched == at and byte == _DONE[at]:
        stream.done_matched += 1
    if at < _ERROR_BYTES and stream.error_matched == at and byte == _ERROR[at]:
        stream.error_matched += 1
    stream.block_bytes += 1
    if byte == _LF:
        if stream.line_bytes == 0:
            _block_ended(tables, stream, now_ns)
        stream.line_bytes = 0
    elif byte != _CR:
        stream.line_bytes += 1


@compiled
def scan(tables: Tables, slot: int, byte_count: int, now_ns: int) -> None:
    """Take the first `byte_count` bytes of `tables.buffer` as the next bytes of the stream in `slot`."""
    stream = tables.streams[slot]
    buffer = tables.buffer
    expected = tables.expected
    for index in range(byte_count):
        byte = np.int64(buffer[index])
        if stream.head_matched < 4:
            _head_byte(stream, byte)
        elif stream.status != 200:
            break  # a refusal's body: nothing to learn from it
        else:
            is_comment = stream.is_comment if stream.block_bytes > 0 else byte == _COLON
            was_done = stream.is_done
            _body_byte(tables, stream, byte, now_ns)
            if is_comment:
                continue  # a keep-alive may come anywhere between messages, and is no part of what is expected
            stream.after_done_bytes += was_done
        if stream.differs_at < 0 and expected.size > 0:
            at = stream.position
            if at >= expected.size or byte != _digit_or_byte(np.int64(expected[at]), stream.number):
                stream.differs_at = at
        stream.position += 1
    stream.byte_count += byte_count
    tables.run[0].byte_count += byte_count


@inlined
def _clock_ns(tables: Tables) -> int:
    run = tables.run[0]
    _clock_gettime(_CLOCK_MONOTONIC, run.words_address)
    now_ns: int = tables.words[0] * 1_000_000_000 + tables.words[1]
    return now_ns


@inlined
def _errno(tables: Tables) -> int:
    run = tables.run[0]
    tables.words[0] = 0
    _memmove(run.words_address, _errno_location(), 4)
    error: int = tables.words[0]
    return error


@compiled
def _judge(tables: Tables, slot: int) -> int:
    """The outcome of a stream whose end was read."""
    stream = tables.streams[slot]
    run = tables.run[0]
    outcome = COMPLETE
    if stream.byte_count == 0:
        outcome = EMPTY
    elif stream.head_matched < 4:
        outcome = HEAD_TRUNCATED
    elif stream.status != 200:
        outcome = REFUSED
    elif stream.error_count > 0:
        outcome = ERROR_EVENT
    elif stream.block_bytes > 0 and stream.is_done == 0:
        outcome = TRUNCATED
    elif stream.is_done == 0:
        outcome = NO_DONE
    elif stream.after_done_bytes > 0:
        outcome = AFTER_DONE
    elif 0 <= run.messages_expected != stream.message_count:
        outcome = WRONG_COUNT
    elif stream.differs_at >= 0 or 0 < tables.expected.size != stream.position:
        outcome = WRONG_BYTES
    return outcome


@compiled
def finish(tables: Tables, slot: int, outcome: int, error_number: int) -> None:
    """Close a stream's descriptors, record how it ended, and give its slot back."""
    stream = tables.streams[slot]
    run = tables.run[0]
    now_ns = _clock_ns(tables)
    if stream.status > 0:
        tables.statuses[min(stream.status, 999)] += 1
    if outcome == COMPLETE:
        count_value(tables, FIRST_BYTE, stream.first_byte_ns - stream.started_ns)
        count_value(tables, WHOLE, now_ns - stream.started_ns)
    elif run.fault_count < tables.faults.size:
        fault: Any = tables.faults[run.fault_count]
        fault.stream = stream.number - run.number_first
        fault.outcome = outcome
        fault.error_number = error_number
        fault.status = stream.status
        fault.message_count = stream.message_count
        fault.byte_count = stream.byte_count
        fault.differs_at = stream.differs_at
        run.fault_count += 1
    tables.outcomes[outcome] += 1
    run.finished_count += 1
    if stream.read_fd >= 0:
        _close(stream.read_fd)
    if stream.sent_fd >= 0:
        _close(stream.sent_fd)
    if stream.is_open:
        run.open_count -= 1
    stream.is_used = 0
    tables.spare[run.spare_count] = slot
    run.spare_count += 1


@inlined
def _make_pair(tables: Tables, slot: int) -> bool:
    """The end that is sent does not block, like Apache's."""
    run = tables.run[0]
    stream = tables.streams[slot]
    flags = _SOCK_STREAM | _SOCK_NONBLOCK | _SOCK_CLOEXEC
    stream.read_fd = stream.sent_fd = -1
    if run.listener_fd < 0:
        if _socketpair(_AF_UNIX, flags, 0, run.words_address) != 0:
            return False
        stream.read_fd = tables.words[0] & 0xFFFFFFFF
        stream.sent_fd = tables.words[0] >> 32
        return True
    # This end blocks, so that its connection stands when accept4 is called; `_receive` asks not to wait.
    stream.read_fd = _socket(_AF_INET, _SOCK_STREAM | _SOCK_CLOEXEC, 0)
    if stream.read_fd < 0 or _connect(stream.read_fd, run.tcp_address, run.tcp_address_bytes) != 0:
        return False
    stream.sent_fd = _accept4(run.listener_fd, 0, 0, _SOCK_NONBLOCK | _SOCK_CLOEXEC)
    return bool(stream.sent_fd >= 0)


@compiled
def _prepare(tables: Tables) -> int:
    """Take a slot, make the stream's pair of sockets and its handoff. The slot, or -1 where there are no sockets."""
    run = tables.run[0]
    run.spare_count -= 1
    slot: Any = tables.spare[run.spare_count]
    stream: Any = tables.streams[slot]
    tables.streams[slot] = tables.blank[0]
    stream.is_used = 1
    stream.number = run.number_first + run.started_count
    run.started_count += 1
    if not _make_pair(tables, slot):
        finish(tables, slot, PAIR_FAILED, _errno(tables))
        return -1
    for index in range(tables.handoff.size):
        tables.handoff_bytes[index] = _digit_or_byte(np.int64(tables.handoff[index]), stream.number)
    stream.started_ns = _clock_ns(tables)
    prepared: int = slot
    return prepared


@compiled
def _hand_over(tables: Tables, slot: int) -> bool:
    """Connect to the daemon and send one end. False: its backlog is full or it is not there, so try again soon."""
    run = tables.run[0]
    stream = tables.streams[slot]
    outcome = CONNECT_FAILED
    connected_ns = 0
    peer = _socket(_AF_UNIX, run.socket_type | _SOCK_NONBLOCK | _SOCK_CLOEXEC, 0)
    sent = -1
    if peer >= 0 and _connect(peer, run.daemon_address, run.daemon_address_bytes) == 0:
        outcome = HANDOFF_FAILED
        connected_ns = _clock_ns(tables)
        tables.message[run.message_fd_word] = stream.sent_fd
        sent = _sendmsg(peer, run.message_address, _MSG_NOSIGNAL)
    if sent < 0:
        error = _errno(tables)
        if peer >= 0:
            _close(peer)
        is_passing = error in (_EAGAIN, _ECONNREFUSED, _ENOENT, _ETOOMANYREFS)
        if is_passing and _clock_ns(tables) - stream.started_ns < run.connect_timeout_ns:
            return False
        finish(tables, slot, outcome, error)
        return True
    handed_ns = _clock_ns(tables)
    _close(peer)
    _close(stream.sent_fd)
    stream.sent_fd = -1
    count_value(tables, CONNECT, connected_ns - stream.started_ns)
    count_value(tables, HANDOFF, handed_ns - stream.started_ns)
    tables.event[0] = _EPOLLIN
    tables.event[_DATA_WORD] = slot
    _epoll_ctl(run.epoll_fd, _EPOLL_CTL_ADD, stream.read_fd, run.event_address)
    stream.is_open = 1
    run.open_count += 1
    run.open_count_max = max(run.open_count_max, run.open_count)
    return True


@compiled
def _start_due(tables: Tables, now_ns: int) -> int:
    """Start the streams that are due. Returns how many milliseconds may pass before the next one is."""
    run = tables.run[0]
    for _ in range(_STARTS_PER_TURN):
        if run.pending_slot < 0:
            if run.started_count >= run.total_count or run.spare_count == 0:
                return _IDLE_WAIT_MS
            if now_ns < run.begin_ns + run.started_count * run.start_interval_ns:
                return 1
            run.pending_slot = _prepare(tables)
        if run.pending_slot >= 0:
            if not _hand_over(tables, run.pending_slot):
                return 1
            run.pending_slot = -1
    return 0


@compiled
def _receive(tables: Tables, slot: int) -> None:
    """Read what a stream has. The time is taken after each recv, and is that of every message in it."""
    run = tables.run[0]
    stream = tables.streams[slot]
    while True:
        received = _recv(stream.read_fd, run.buffer_address, tables.buffer.size, _MSG_DONTWAIT)
        if received <= 0:
            break
        now_ns = _clock_ns(tables)
        if stream.first_byte_ns == 0:
            stream.first_byte_ns = now_ns
        run.receive_count += 1
        scan(tables, slot, received, now_ns)
        if received < tables.buffer.size:
            return
    if received == 0:
        finish(tables, slot, _judge(tables, slot), 0)
        return
    error = _errno(tables)
    if error not in (_EAGAIN, _EINTR):
        finish(tables, slot, RESET, error)


@compiled
def turns_until(tables: Tables, until_ns: int) -> bool:
    """Start and read streams until that time (CLOCK_MONOTONIC) or until all have ended, which is what it returns."""
    run = tables.run[0]
    now_ns = _clock_ns(tables)
    while now_ns < until_ns and run.finished_count < run.total_count:
        wait_ms = _start_due(tables, now_ns)
        ready_count = _epoll_wait(run.epoll_fd, run.events_address, EVENTS_MAX, wait_ms)
        for index in range(ready_count):
            _receive(tables, tables.events[index * EVENT_WORDS + _DATA_WORD])
        now_ns = _clock_ns(tables)
    return bool(run.finished_count >= run.total_count)
