"""The compiled half of our own OpenAI-compatible upstream: one loop that streams events at a pace.

Every request is answered alike: a head, TOKENS chat.completion.chunk events INTERVAL apart (0: as fast as the socket
takes them), [DONE]; chunked HTTP/1.1 with keep-alive, on TCP and on a Unix socket at once. The stream's own number,
the first run of eight digits in the request's body, stands in every token, so a token in the wrong stream is seen. It
keeps for each number when the request came, when its first token left, and when the connection closed before the end.
`upstreams` starts it.

The answer is a function of number and position, so nothing is kept of what a full socket did not take but how far it
got. One file, like `reading` and for the same reason: Numba's cache on disk notices a change in a function's own file
only.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compiler.just_in_time import compiled, foreign, inlined, types

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBER_DIGITS = 8
NUMBER_MARK = 256  # NUMBER_MARK + k in the answer's template stands for digit k
STORIES_MAX = 65_536
SCRATCH_BYTES = 65_536
EVENTS_MAX = 512
_POWERS = np.array([10**exponent for exponent in range(NUMBER_DIGITS - 1, -1, -1)], np.int64)
_LENGTH_NAME = np.frombuffer(b"content-length:", np.uint8)
_LENGTH_NAME_BYTES = 15

# struct epoll_event is packed on x86-64 and nowhere else.
EVENT_WORDS, _DATA_WORD = (3, 1) if platform.machine() == "x86_64" else (4, 2)
_ACCEPTS_PER_TURN = 64
_IDLE_WAIT_MS = 50
_SOCK_NONBLOCK, _SOCK_CLOEXEC, _MSG_NOSIGNAL, _EAGAIN, _EINTR = 0o4000, 0o2000000, 0x4000, 11, 4
_EPOLL_CTL_ADD, _EPOLL_CTL_MOD, _EPOLLIN, _EPOLLOUT = 1, 3, 1, 4
_IPPROTO_TCP, _TCP_NODELAY, _CLOCK_MONOTONIC = 6, 1, 1
_CR, _LF, _ZERO, _NINE, _CAPITAL_A, _CAPITAL_Z, _SPACE = 13, 10, 48, 57, 65, 90, 32

_int, _address = types.int32, types.intp
_accept4 = foreign("accept4", _int, _int, _address, _address, _int)
_setsockopt = foreign("setsockopt", _int, _int, _int, _int, _address, _int)
_recv = foreign("recv", types.intp, _int, _address, types.intp, _int)
_send = foreign("send", types.intp, _int, _address, types.intp, _int)
_close = foreign("close", _int, _int)
_epoll_ctl = foreign("epoll_ctl", _int, _int, _int, _int, _address)
_epoll_wait = foreign("epoll_wait", _int, _int, _address, _int, _int)
_clock_gettime = foreign("clock_gettime", _int, _int, _address)
_errno_location = foreign("__errno_location", _address)
_memmove = foreign("memmove", _address, _address, _address, types.intp)


def _record(*names: str) -> np.dtype[Any]:
    """A struct of 64-bit integers: `np.record`, so that the fields read alike compiled and interpreted."""
    return np.dtype((np.record, [(name, np.int64) for name in names]))


STATE = _record(
    "epoll_fd",
    "tcp_fd",
    "unix_fd",
    "interval_ns",  # 0: all tokens at once
    "token_count",
    "is_holding",  # requests are taken and not answered
    "is_endless",  # the last token but one comes again and again
    "queue_head",
    "queue_tail",
    "words_address",
    "event_address",
    "events_address",
    "scratch_address",
    "accepted_count",
    "request_count",
    "complete_count",
    "aborted_count",  # connections that closed in the midst of an answer
    "token_sent_count",
    "late_ns_max",
)

CONNECTION = _record(
    "generation",
    "is_open",
    "is_answering",
    "is_full",  # waits for room
    "number",
    "token",  # how many may be sent by now
    "position",  # bytes of the answer sent
    "due_ns",  # when the next token may leave
    "head_matched",  # of \r\n\r\n; 4: the head is over
    "name_matched",  # of content-length: in this line; -1: another header
    "content_length",
    "body_bytes",
    "digit_count",  # of the run of digits that the body is in
    "digit_value",
)

STORY = _record("request_ns", "first_token_ns", "closed_ns", "token")


class Upstream(NamedTuple):
    """All of its memory. A descriptor is its connection's index; a number's story lies at `_story_of`."""

    state: NDArray[Any]  # 1 x STATE
    connections: NDArray[Any]
    stories: NDArray[Any]
    answer: NDArray[np.int16]  # the whole response as a template
    ends: NDArray[np.int64]  # position after the head and k tokens; the last one is the answer's end
    queue: NDArray[np.int64]  # descriptor + generation << 32, in the order in which they are due
    words: NDArray[np.int64]
    event: NDArray[np.uint32]
    events: NDArray[np.uint32]
    scratch: NDArray[np.uint8]


@inlined
def _clock_ns(upstream: Upstream) -> int:
    _clock_gettime(_CLOCK_MONOTONIC, upstream.state[0].words_address)
    now_ns: int = upstream.words[0] * 1_000_000_000 + upstream.words[1]
    return now_ns


@inlined
def _errno(upstream: Upstream) -> int:
    upstream.words[0] = 0
    _memmove(upstream.state[0].words_address, _errno_location(), 4)
    error: int = upstream.words[0]
    return error


@inlined
def _story_of(number: int) -> int:
    """Where a number's story lies; one row is for all that have none."""
    return number % STORIES_MAX if number >= 0 else STORIES_MAX


@inlined
def _watch(upstream: Upstream, descriptor: int, operation: int, events: int) -> None:
    upstream.event[0] = events
    upstream.event[_DATA_WORD] = descriptor
    _epoll_ctl(upstream.state[0].epoll_fd, operation, descriptor, upstream.state[0].event_address)


@inlined
def _enqueue(upstream: Upstream, descriptor: int) -> None:
    state = upstream.state[0]
    connection = upstream.connections[descriptor]
    upstream.queue[state.queue_tail % upstream.queue.size] = descriptor | connection.generation << 32
    state.queue_tail += 1


@inlined
def _begin_request(upstream: Upstream, descriptor: int) -> None:
    """The connection is ready to read a request."""
    connection = upstream.connections[descriptor]
    connection.is_answering = connection.is_full = connection.token = connection.position = 0
    connection.head_matched = connection.name_matched = connection.content_length = 0
    connection.body_bytes = connection.digit_count = connection.digit_value = 0
    connection.number = -1


@compiled
def _drop(upstream: Upstream, descriptor: int, now_ns: int) -> None:
    """The peer has closed, or must be."""
    state = upstream.state[0]
    connection = upstream.connections[descriptor]
    if connection.is_answering:
        state.aborted_count += 1
        story: Any = upstream.stories[_story_of(connection.number)]
        story.closed_ns = now_ns
        story.token = connection.token
    connection.is_open = connection.is_answering = 0
    connection.generation = (connection.generation + 1) & 0x7FFFFFFF
    _close(descriptor)


@inlined
def _render(upstream: Upstream, number: int, start: int, stop: int) -> None:
    """Bytes `start` to `stop` of the answer to one stream, into the scratch buffer."""
    for index in range(start, stop):
        mark = np.int64(upstream.answer[index])
        if mark >= NUMBER_MARK:
            mark = _ZERO + number // _POWERS[mark - NUMBER_MARK] % 10
        upstream.scratch[index - start] = mark


@compiled
def _pump(upstream: Upstream, descriptor: int, now_ns: int) -> None:
    """Send what is due and not sent yet."""
    state = upstream.state[0]
    connection = upstream.connections[descriptor]
    due: Any = upstream.ends[connection.token]
    while connection.position < due:
        stop: Any = min(due, connection.position + SCRATCH_BYTES)
        _render(upstream, max(connection.number, 0), connection.position, stop)
        sent = _send(descriptor, state.scratch_address, stop - connection.position, _MSG_NOSIGNAL)
        if sent < 0:
            if _errno(upstream) != _EAGAIN:
                _drop(upstream, descriptor, now_ns)
            elif connection.is_full == 0:
                connection.is_full = 1
                _watch(upstream, descriptor, _EPOLL_CTL_MOD, _EPOLLIN | _EPOLLOUT)
            return
        connection.position += sent
    if connection.is_full:
        connection.is_full = 0
        _watch(upstream, descriptor, _EPOLL_CTL_MOD, _EPOLLIN)
    if connection.position == upstream.ends[state.token_count]:
        state.complete_count += 1
        _begin_request(upstream, descriptor)


@compiled
def _answer(upstream: Upstream, descriptor: int, now_ns: int) -> None:
    """A request has come whole: its first token leaves at once."""
    state = upstream.state[0]
    connection = upstream.connections[descriptor]
    state.request_count += 1
    connection.is_answering = 1
    story: Any = upstream.stories[_story_of(connection.number)]
    story.request_ns = now_ns
    story.first_token_ns = story.closed_ns = story.token = 0
    if state.is_holding:
        return
    connection.token = 1 if state.interval_ns > 0 else state.token_count
    state.token_sent_count += connection.token
    story.first_token_ns = _clock_ns(upstream)
    connection.due_ns = now_ns + state.interval_ns
    is_paced = connection.token < state.token_count
    _pump(upstream, descriptor, now_ns)
    if is_paced and connection.is_open:
        _enqueue(upstream, descriptor)


@inlined
def _head_byte(connection: np.record, byte: int) -> None:
    r"""Looks for content-length, whatever its case, and for \r\n\r\n."""
    if byte == (_CR if connection.head_matched % 2 == 0 else _LF):
        connection.head_matched += 1
    else:
        connection.head_matched = 1 if byte == _CR else 0
    if byte == _LF:
        connection.name_matched = 0
    elif connection.name_matched == _LENGTH_NAME_BYTES:
        if _ZERO <= byte <= _NINE:
            connection.content_length = connection.content_length * 10 + byte - _ZERO
    elif connection.name_matched >= 0:
        lower = byte + _SPACE if _CAPITAL_A <= byte <= _CAPITAL_Z else byte
        is_matched = lower == _LENGTH_NAME[connection.name_matched]
        connection.name_matched = connection.name_matched + 1 if is_matched else -1


@inlined
def _body_byte(connection: np.record, byte: int) -> None:
    """Looks for the first run of eight digits."""
    connection.body_bytes += 1
    if _ZERO <= byte <= _NINE:
        connection.digit_count += 1
        connection.digit_value = (connection.digit_value * 10 + byte - _ZERO) % 10**NUMBER_DIGITS
    else:
        if connection.digit_count == NUMBER_DIGITS and connection.number < 0:
            connection.number = connection.digit_value
        connection.digit_count = connection.digit_value = 0


@compiled
def _receive(upstream: Upstream, descriptor: int, now_ns: int) -> None:
    """Read a part of a request, or learn that the peer is gone."""
    connection = upstream.connections[descriptor]
    received = _recv(descriptor, upstream.state[0].scratch_address, SCRATCH_BYTES, 0)
    if received <= 0:
        if received == 0 or _errno(upstream) not in (_EAGAIN, _EINTR):
            _drop(upstream, descriptor, now_ns)
        return
    if connection.is_answering:
        return  # pipelining is not understood, and nobody does it
    for index in range(received):
        byte: Any = np.int64(upstream.scratch[index])
        if connection.head_matched < 4:
            _head_byte(connection, byte)
        else:
            _body_byte(connection, byte)
    if connection.head_matched == 4 and connection.body_bytes >= connection.content_length:
        _answer(upstream, descriptor, now_ns)


@compiled
def _accept(upstream: Upstream, listener: int) -> None:
    state = upstream.state[0]
    for _ in range(_ACCEPTS_PER_TURN):
        descriptor: Any = np.int64(_accept4(listener, 0, 0, _SOCK_NONBLOCK | _SOCK_CLOEXEC))
        if descriptor < 0:
            return
        if descriptor >= upstream.connections.size:
            _close(descriptor)
            return
        if listener == state.tcp_fd:
            upstream.words[0] = 1
            _setsockopt(descriptor, _IPPROTO_TCP, _TCP_NODELAY, state.words_address, 4)
        state.accepted_count += 1
        connection: Any = upstream.connections[descriptor]
        connection.is_open = 1
        _begin_request(upstream, descriptor)
        _watch(upstream, descriptor, _EPOLL_CTL_ADD, _EPOLLIN)


@compiled
def _send_due(upstream: Upstream, now_ns: int) -> None:
    """One token more for each stream that is due. All have the same pace, so the queue stays in order."""
    state = upstream.state[0]
    for _ in range(state.queue_tail - state.queue_head):
        entry: Any = upstream.queue[state.queue_head % upstream.queue.size]
        descriptor: Any = entry & 0xFFFFFFFF
        connection: Any = upstream.connections[descriptor]
        is_stale = connection.generation != entry >> 32 or connection.is_answering == 0
        if not is_stale and connection.due_ns > now_ns:
            return
        state.queue_head += 1
        if is_stale:
            continue
        state.late_ns_max = max(state.late_ns_max, now_ns - connection.due_ns)
        if state.is_endless == 0 or connection.token < state.token_count - 1:
            connection.token += 1
        elif connection.position == upstream.ends[connection.token]:
            connection.position = upstream.ends[connection.token - 1]
        state.token_sent_count += 1
        connection.due_ns += state.interval_ns
        is_paced = connection.token < state.token_count
        _pump(upstream, descriptor, now_ns)
        if is_paced and connection.is_open:
            _enqueue(upstream, descriptor)


@compiled
def turns_until(upstream: Upstream, until_ns: int) -> None:
    """Serve until that time of CLOCK_MONOTONIC."""
    state = upstream.state[0]
    now_ns = _clock_ns(upstream)
    while now_ns < until_ns:
        wait_ms = 1 if state.queue_tail > state.queue_head else _IDLE_WAIT_MS
        ready_count = _epoll_wait(state.epoll_fd, state.events_address, EVENTS_MAX, wait_ms)
        now_ns = _clock_ns(upstream)
        # Before new streams join the queue: behind a turn that came late they would stand before those due earlier.
        _send_due(upstream, now_ns)
        for index in range(ready_count):
            events: Any = np.int64(upstream.events[index * EVENT_WORDS])
            descriptor: Any = np.int64(upstream.events[index * EVENT_WORDS + _DATA_WORD])
            if descriptor in (state.tcp_fd, state.unix_fd):
                _accept(upstream, descriptor)
                continue
            connection: Any = upstream.connections[descriptor]
            if events & _EPOLLOUT and connection.is_open:
                _pump(upstream, descriptor, now_ns)
            if events & ~_EPOLLOUT and connection.is_open:
                _receive(upstream, descriptor, now_ns)


def allocate(connection_count: int, answer: NDArray[np.int16], ends: NDArray[np.int64], interval_ms: float) -> Upstream:
    """Memory for as many connections as there may be descriptors."""
    upstream = Upstream(
        state=np.zeros(1, STATE),
        connections=np.zeros(connection_count, CONNECTION),
        stories=np.zeros(STORIES_MAX + 1, STORY),
        answer=answer,
        ends=ends,
        # A connection may leave one entry for every answer that it lost, until their time has come.
        queue=np.zeros(4 * connection_count, np.int64),
        words=np.zeros(2, np.int64),
        event=np.zeros(EVENT_WORDS, np.uint32),
        events=np.zeros(EVENTS_MAX * EVENT_WORDS, np.uint32),
        scratch=np.zeros(SCRATCH_BYTES, np.uint8),
    )
    state = upstream.state[0]
    state.epoll_fd = state.tcp_fd = state.unix_fd = -1
    state.interval_ns = round(interval_ms * 1e6)
    state.token_count = ends.size - 1
    state.words_address, state.event_address = upstream.words.ctypes.data, upstream.event.ctypes.data
    state.events_address, state.scratch_address = upstream.events.ctypes.data, upstream.scratch.ctypes.data
    return upstream
