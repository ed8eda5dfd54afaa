"""The load generator, compiled: it starts streams, reads them, checks every byte, and counts into histograms.

One thread without the GIL does everything, as 180,000 messages a second leave no time for a Python call on each
of them; it comes back to Python a few times a second (`turns_until`) for signals and for samples of the daemon.

A stream is a handoff, whose response scripts/bench/scanning.py reads, or a request over HTTP, whose response
scripts/bench/http_scanning.py reads. They are pure; here are the system calls, through libc by name.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.just_in_time import compiled, foreign, inlined, types
from scripts.bench.http_scanning import ENDED, OVER, scan_response
from scripts.bench.scanning import (
    CONNECT,
    FIRST_BYTE,
    FIRST_TOKEN,
    HANDOFF,
    TOKENS_PER_S,
    WHOLE,
    ZERO,
    count_value,
    digit_or_byte,
    scan,
)

if TYPE_CHECKING:
    from scripts.bench.records import Tables

# How a stream ended. One outcome each; the first that applies in the order of `_judge`.
COMPLETE, PAIR_FAILED, CONNECT_FAILED, HANDOFF_FAILED, RESET, EMPTY, HEAD_TRUNCATED = 0, 1, 2, 3, 4, 5, 6
REFUSED, ERROR_EVENT, TRUNCATED, NO_DONE, AFTER_DONE, WRONG_COUNT, WRONG_BYTES, STALLED = 7, 8, 9, 10, 11, 12, 13, 14
REQUEST_FAILED, NOT_CHUNKED, AFTER_END = 15, 16, 17
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
    "request_failed",
    "not_chunked",
    "after_end",  # bytes after the last chunk
)

EVENTS_MAX = 512
# struct epoll_event is packed on x86-64 and nowhere else.
EVENT_WORDS, _DATA_WORD = (3, 1) if platform.machine() == "x86_64" else (4, 2)
_STARTS_PER_TURN = 32  # then the streams that are open are read again
_IDLE_WAIT_MS = 50

_AF_UNIX, _AF_INET, _SOCK_STREAM, _SOCK_NONBLOCK, _SOCK_CLOEXEC = 1, 2, 1, 0o4000, 0o2000000
_EPOLL_CTL_ADD, _EPOLLIN, _MSG_NOSIGNAL, _MSG_DONTWAIT, _CLOCK_MONOTONIC = 1, 1, 0x4000, 0x40, 1
_IPPROTO_TCP, _TCP_NODELAY = 6, 1
_ENOENT, _EINTR, _EAGAIN, _ETOOMANYREFS, _ECONNREFUSED = 2, 4, 11, 109, 111

_int, _address = types.int32, types.intp
_socketpair = foreign("socketpair", _int, _int, _int, _int, _address)
_socket = foreign("socket", _int, _int, _int, _int)
_connect = foreign("connect", _int, _int, _address, types.uint32)
_accept4 = foreign("accept4", _int, _int, _address, _address, _int)
_setsockopt = foreign("setsockopt", _int, _int, _int, _int, _address, types.uint32)
_send = foreign("send", types.intp, _int, _address, types.intp, _int)
_sendmsg = foreign("sendmsg", types.intp, _int, _address, _int)
_recv = foreign("recv", types.intp, _int, _address, types.intp, _int)
_close = foreign("close", _int, _int)
_epoll_ctl = foreign("epoll_ctl", _int, _int, _int, _int, _address)
_epoll_wait = foreign("epoll_wait", _int, _int, _address, _int, _int)
_clock_gettime = foreign("clock_gettime", _int, _int, _address)
_errno_location = foreign("__errno_location", _address)
_memmove = foreign("memmove", _address, _address, _address, types.intp)


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
def _judge_response(tables: Tables, slot: int) -> int:
    """The outcome of a stream over HTTP that has ended, and in which nothing was wrong so far."""
    stream, response = tables.streams[slot], tables.responses[slot]
    outcome = COMPLETE
    if stream.byte_count == 0:
        outcome = EMPTY
    elif stream.head_matched < 4:
        outcome = HEAD_TRUNCATED
    elif stream.status != 200:
        outcome = REFUSED
    elif not response.is_chunked:
        outcome = NOT_CHUNKED
    elif response.framing != ENDED:
        outcome = TRUNCATED
    elif response.part != OVER:
        outcome = WRONG_COUNT
    return outcome


@inlined
def _count_tokens(tables: Tables, slot: int) -> None:
    stream = tables.streams[slot]
    count_value(tables, FIRST_TOKEN, stream.first_message_ns - stream.started_ns)
    took_ns = stream.last_message_ns - stream.first_message_ns
    if took_ns > 0:
        count_value(tables, TOKENS_PER_S, (stream.message_count - 1) * 1_000_000_000 // took_ns)


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
        if run.is_http:
            _count_tokens(tables, slot)
    elif run.fault_count < tables.faults.size:
        fault: Any = tables.faults[run.fault_count]
        fault.stream = stream.number - run.number_first
        fault.outcome = outcome
        fault.error_number = error_number
        fault.status = stream.status
        fault.message_count = stream.message_count
        fault.byte_count = stream.byte_count
        fault.differs_at = stream.differs_at
        if run.is_http:
            fault.shown_bytes = tables.responses[slot].shown_bytes
            for index in range(fault.shown_bytes):
                tables.fault_shown[run.fault_count, index] = tables.shown[slot, index]
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


@inlined
def _take_slot(tables: Tables) -> int:
    run = tables.run[0]
    run.spare_count -= 1
    slot: Any = tables.spare[run.spare_count]
    tables.streams[slot] = tables.blank[0]
    stream: Any = tables.streams[slot]
    stream.is_used = 1
    stream.number = run.number_first + run.started_count
    run.started_count += 1
    taken: int = slot
    return taken


@inlined
def _watch(tables: Tables, slot: int) -> None:
    """The stream is open: read it whenever something comes."""
    run = tables.run[0]
    stream = tables.streams[slot]
    tables.event[0] = _EPOLLIN
    tables.event[_DATA_WORD] = slot
    _epoll_ctl(run.epoll_fd, _EPOLL_CTL_ADD, stream.read_fd, run.event_address)
    stream.is_open = 1
    run.open_count += 1
    run.open_count_max = max(run.open_count_max, run.open_count)


@compiled
def _request(tables: Tables) -> None:
    """Take a slot, connect, and send the request."""
    run = tables.run[0]
    slot = _take_slot(tables)
    stream: Any = tables.streams[slot]
    tables.responses[slot] = tables.blank_response[0]
    tables.digits[slot, 0] = ZERO
    stream.started_ns = _clock_ns(tables)
    stream.read_fd = _socket(_AF_INET, _SOCK_STREAM | _SOCK_CLOEXEC, 0)
    if stream.read_fd < 0 or _connect(stream.read_fd, run.tcp_address, run.tcp_address_bytes) != 0:
        finish(tables, slot, CONNECT_FAILED, _errno(tables))
        return
    tables.words[0] = 1
    _setsockopt(stream.read_fd, _IPPROTO_TCP, _TCP_NODELAY, run.words_address, 4)
    if _send(stream.read_fd, run.request_address, tables.request.size, _MSG_NOSIGNAL) != tables.request.size:
        finish(tables, slot, REQUEST_FAILED, _errno(tables))
        return
    _watch(tables, slot)


@compiled
def _prepare(tables: Tables) -> int:
    """Take a slot, make the stream's pair of sockets and its handoff. The slot, or -1 where there are no sockets."""
    slot = _take_slot(tables)
    stream: Any = tables.streams[slot]
    if not _make_pair(tables, slot):
        finish(tables, slot, PAIR_FAILED, _errno(tables))
        return -1
    for index in range(tables.handoff.size):
        tables.handoff_bytes[index] = digit_or_byte(np.int64(tables.handoff[index]), stream.number)
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
    _watch(tables, slot)
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
            if run.is_http:
                _request(tables)
                continue
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
def _receive_response(tables: Tables, slot: int) -> None:
    """As `_receive`, over HTTP. One recv: a server that is faster than we are must not keep us at one stream."""
    run = tables.run[0]
    stream, response = tables.streams[slot], tables.responses[slot]
    received = _recv(stream.read_fd, run.buffer_address, tables.buffer.size, _MSG_DONTWAIT)
    if received < 0:
        error = _errno(tables)
        if error not in (_EAGAIN, _EINTR):
            finish(tables, slot, RESET, error)
        return
    run.receive_count += 1
    if received == 0:
        finish(tables, slot, _judge_response(tables, slot), 0)
        return
    now_ns = _clock_ns(tables)
    if stream.first_byte_ns == 0:
        stream.first_byte_ns = now_ns
    scan_response(tables, slot, received, now_ns)
    has_ended = response.framing == ENDED
    if stream.differs_at >= 0:
        finish(tables, slot, AFTER_END if has_ended else WRONG_BYTES, 0)
    elif has_ended and not response.is_closing:
        finish(tables, slot, _judge_response(tables, slot), 0)


@compiled
def turns_until(tables: Tables, until_ns: int) -> bool:
    """Start and read streams until that time (CLOCK_MONOTONIC) or until all have ended, which is what it returns."""
    run = tables.run[0]
    now_ns = _clock_ns(tables)
    while now_ns < until_ns and run.finished_count < run.total_count:
        wait_ms = _start_due(tables, now_ns)
        ready_count = _epoll_wait(run.epoll_fd, run.events_address, EVENTS_MAX, wait_ms)
        for index in range(ready_count):
            slot = tables.events[index * EVENT_WORDS + _DATA_WORD]
            if run.is_http:
                _receive_response(tables, slot)
            else:
                _receive(tables, slot)
        now_ns = _clock_ns(tables)
    return bool(run.finished_count >= run.total_count)
