"""The least a handoff server can do on epoll: accept, recvmsg, then one send per message. A baseline to compare with.

    python -m scripts.bench.floor SOCKET INTERVAL_MS [MESSAGES]

No JSON, no limits, no deadlines, no metrics; compiled like the daemon, so what is compared is the work and not the
language. Each stream gets the standard head, MESSAGES (18) messages INTERVAL_MS apart (0: back to back, the streams
taken in turn), then [DONE]. Its CPU time per message is nearly all the kernel's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compiler.just_in_time import compiled, foreign, inlined, types
from scripts.bench.floor_serving import raise_descriptor_limit, serve
from scripts.bench.probe import STANDARD_HEAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MESSAGE = b'data: {"content":"This is one of the messages, sent by the bare sender loop."}\n\n'
_DONE = b"data: [DONE]\n\n"
_ACCEPTS_PER_TURN = 256
_DATA_BYTES_MAX = 131_072
_EAGAIN, _SOCK_CLOEXEC, _MSG_NOSIGNAL_DONTWAIT, _MSG_CMSG_CLOEXEC = 11, 0o2000000, 0x4040, 1 << 30

_int, _address = types.int32, types.intp
_accept4 = foreign("accept4", _int, _int, _address, _address, _int)
_recvmsg = foreign("recvmsg", types.intp, _int, _address, _int)
_send = foreign("send", types.intp, _int, _address, types.intp, _int)
_close = foreign("close", _int, _int)
_epoll_wait = foreign("epoll_wait", _int, _int, _address, _int, _int)
_clock_gettime = foreign("clock_gettime", _int, _int, _address)
_errno_location = foreign("__errno_location", _address)
_memmove = foreign("memmove", _address, _address, _address, types.intp)


class Floor(NamedTuple):
    """All of its memory. Streams wait in `queue` in the order in which they are due; a descriptor is its index."""

    numbers: NDArray[np.int64]  # LISTENER ... below
    queue: NDArray[np.int64]
    due_ns: NDArray[np.int64]
    next_message: NDArray[np.int64]
    text_address: NDArray[np.int64]  # of head, message, [DONE]
    text_bytes: NDArray[np.int64]
    message: NDArray[np.int64]  # msghdr (7 words), iovec (2), control message (3)
    words: NDArray[np.int64]  # 2
    events: NDArray[np.uint8]
    text: NDArray[np.uint8]
    data: NDArray[np.uint8]


_LISTENER, _EPOLL, _INTERVAL_NS, _MESSAGES, _HEAD, _TAIL, _WORDS, _EVENTS, _RECEIVE = 0, 1, 2, 3, 4, 5, 6, 7, 8


@inlined
def _clock_ns(floor: Floor) -> int:
    _clock_gettime(1, floor.numbers[_WORDS])
    now_ns: int = floor.words[0] * 1_000_000_000 + floor.words[1]
    return now_ns


@inlined
def _enqueue(floor: Floor, descriptor: int, due_ns: int) -> None:
    floor.due_ns[descriptor] = due_ns
    floor.queue[floor.numbers[_TAIL] % floor.queue.size] = descriptor
    floor.numbers[_TAIL] += 1


@compiled
def _receive(floor: Floor, now_ns: int) -> None:
    """Take what waits on the listener: a peer, its message, the client's descriptor; send the head."""
    for _ in range(_ACCEPTS_PER_TURN):
        peer = _accept4(floor.numbers[_LISTENER], 0, 0, _SOCK_CLOEXEC)
        if peer < 0:
            return
        floor.message[5] = 24  # room for one descriptor
        received = _recvmsg(peer, floor.numbers[_RECEIVE], _MSG_CMSG_CLOEXEC)
        _close(peer)
        if received <= 0 or floor.message[5] == 0:
            continue
        descriptor: Any = floor.message[11] & 0xFFFFFFFF
        _send(descriptor, floor.text_address[0], floor.text_bytes[0], _MSG_NOSIGNAL_DONTWAIT)
        # The first message at once too: in the queue it would stand behind all that are due within the interval.
        what = 1 if floor.numbers[_MESSAGES] > 0 else 2
        _send(descriptor, floor.text_address[what], floor.text_bytes[what], _MSG_NOSIGNAL_DONTWAIT)
        if what == 2:
            _close(descriptor)
        else:
            floor.next_message[descriptor] = 2
            _enqueue(floor, descriptor, now_ns + floor.numbers[_INTERVAL_NS])


@compiled
def _send_due(floor: Floor, now_ns: int) -> None:
    """One send to each stream that is due; a full socket keeps its place in time and waits for the next turn."""
    interval_ns: Any = floor.numbers[_INTERVAL_NS]
    messages: Any = floor.numbers[_MESSAGES]
    for _ in range(floor.numbers[_TAIL] - floor.numbers[_HEAD]):
        descriptor: Any = floor.queue[floor.numbers[_HEAD] % floor.queue.size]
        due_ns: Any = floor.due_ns[descriptor]
        number: Any = floor.next_message[descriptor]
        if interval_ns > 0 and due_ns > now_ns:
            return
        floor.numbers[_HEAD] += 1
        what = 1 if number <= messages else 2
        if _send(descriptor, floor.text_address[what], floor.text_bytes[what], _MSG_NOSIGNAL_DONTWAIT) < 0:
            _memmove(floor.numbers[_WORDS], _errno_location(), 4)
            if floor.words[0] & 0xFFFFFFFF == _EAGAIN:
                _enqueue(floor, descriptor, due_ns)
            else:
                _close(descriptor)
        elif what == 2:
            _close(descriptor)
        else:
            floor.next_message[descriptor] = number + 1
            _enqueue(floor, descriptor, due_ns + (interval_ns if number < messages else 0))


@compiled
def turns_until(floor: Floor, until_ns: int) -> None:
    """Serve until that time of CLOCK_MONOTONIC."""
    now_ns = _clock_ns(floor)
    while now_ns < until_ns:
        is_idle = floor.numbers[_TAIL] == floor.numbers[_HEAD]
        wait_ms = 100 if is_idle else 1 if floor.numbers[_INTERVAL_NS] > 0 else 0
        ready_count = _epoll_wait(floor.numbers[_EPOLL], floor.numbers[_EVENTS], 1, wait_ms)
        now_ns = _clock_ns(floor)
        if ready_count > 0:
            _receive(floor, now_ns)
        _send_due(floor, now_ns)


def allocate(descriptor_count: int, interval_ms: float, messages: int) -> Floor:
    """Memory for as many streams as there may be descriptors."""
    texts = (STANDARD_HEAD, _MESSAGE, _DONE)
    floor = Floor(
        numbers=np.zeros(9, np.int64),
        queue=np.zeros(descriptor_count, np.int64),
        due_ns=np.zeros(descriptor_count, np.int64),
        next_message=np.zeros(descriptor_count, np.int64),
        text_address=np.zeros(3, np.int64),
        text_bytes=np.array([len(text) for text in texts], np.int64),
        message=np.zeros(12, np.int64),
        words=np.zeros(2, np.int64),
        events=np.zeros(64, np.uint8),
        text=np.frombuffer(b"".join(texts), np.uint8).copy(),
        data=np.zeros(_DATA_BYTES_MAX, np.uint8),
    )
    floor.text_address[:] = floor.text.ctypes.data + np.cumsum([0, len(STANDARD_HEAD), len(_MESSAGE)])
    start = floor.message.ctypes.data
    floor.message[2:5] = start + 7 * 8, 1, start + 9 * 8
    floor.message[7:9] = floor.data.ctypes.data, _DATA_BYTES_MAX
    floor.numbers[_INTERVAL_NS : _MESSAGES + 1] = round(interval_ms * 1e6), messages
    floor.numbers[_WORDS : _RECEIVE + 1] = floor.words.ctypes.data, floor.events.ctypes.data, start
    return floor


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal ends the process."""
    if len(arguments) not in (2, 3):
        print("python -m scripts.bench.floor SOCKET INTERVAL_MS [MESSAGES]", file=sys.stderr)
        return 2
    messages = int(arguments[2]) if len(arguments) == 3 else 18
    floor = allocate(min(raise_descriptor_limit(), 1 << 20), float(arguments[1]), messages)
    turns_until(floor, 0)  # compiled before anybody can connect

    def attach(listener: int, epoll: int) -> None:
        floor.numbers[_LISTENER], floor.numbers[_EPOLL] = listener, epoll

    serve(arguments[0], attach, lambda end_ns: turns_until(floor, end_ns))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
