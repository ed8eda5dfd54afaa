"""The least a relay can do on epoll: take a handoff, ask the upstream, then recv() from one and send() to the other.

    python -m scripts.bench.relayfloor SOCKET PORT|/UPSTREAM_SOCKET

It parses nothing and checks nothing: the handoff's JSON goes to the upstream as the request's body, what the upstream
says goes to the client as it is, chunked framing and all, and a [DONE] is put at its end where the client looks for
one. Compiled like the daemon, so what is compared is the work and not the language. A client that leaves is not
noticed before a send to it fails.
"""

from __future__ import annotations

import platform
import socket
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compiler.just_in_time import compiled, foreign, inlined, types
from scripts.bench.floor_serving import raise_descriptor_limit, serve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: upstream\r\nContent-Type: application/json\r\n"
    b"Content-Length: 00000000\r\n\r\n"
)
_LENGTH_DIGITS = 8
_LENGTH_AT = len(_REQUEST) - 4 - _LENGTH_DIGITS
_DONE = np.frombuffer(b"data: [DONE]\n\n", np.uint8)
_LAST_CHUNK = np.frombuffer(b"0\r\n\r\n", np.uint8)
_DONE_BYTES, _LAST_CHUNK_BYTES = 14, 5
_DATA_BYTES_MAX = 131_072
_BUFFER_BYTES = 65_536
_ACCEPTS_PER_TURN = 256

EVENTS_MAX = 512
# struct epoll_event is packed on x86-64 and nowhere else.
EVENT_WORDS, _DATA_WORD = (3, 1) if platform.machine() == "x86_64" else (4, 2)
_SOCK_STREAM, _SOCK_CLOEXEC, _EPOLL_CTL_ADD, _EPOLLIN, _ZERO = 1, 0o2000000, 1, 1, 48
_MSG_NOSIGNAL_DONTWAIT, _MSG_CMSG_CLOEXEC = 0x4040, 1 << 30

_int, _address = types.int32, types.intp
_accept4 = foreign("accept4", _int, _int, _address, _address, _int)
_socket = foreign("socket", _int, _int, _int, _int)
_connect = foreign("connect", _int, _int, _address, types.uint32)
_recvmsg = foreign("recvmsg", types.intp, _int, _address, _int)
_recv = foreign("recv", types.intp, _int, _address, types.intp, _int)
_send = foreign("send", types.intp, _int, _address, types.intp, _int)
_close = foreign("close", _int, _int)
_epoll_ctl = foreign("epoll_ctl", _int, _int, _int, _int, _address)
_epoll_wait = foreign("epoll_wait", _int, _int, _address, _int, _int)
_clock_gettime = foreign("clock_gettime", _int, _int, _address)


class Floor(NamedTuple):
    """All of its memory."""

    numbers: NDArray[np.int64]  # LISTENER ... below
    client_of: NDArray[np.int64]  # by the upstream's descriptor
    message: NDArray[np.int64]  # msghdr (7 words), iovec (2), control message (3)
    words: NDArray[np.int64]  # 2
    event: NDArray[np.uint32]
    events: NDArray[np.uint32]
    request: NDArray[np.uint8]  # head, then the handoff's data
    buffer: NDArray[np.uint8]
    upstream: NDArray[np.uint8]  # sockaddr


_LISTENER, _EPOLL, _FAMILY, _WORDS, _EVENT, _EVENTS, _RECEIVE, _BUFFER, _ADDRESS = 0, 1, 2, 3, 4, 5, 6, 7, 8


@inlined
def _clock_ns(floor: Floor) -> int:
    _clock_gettime(1, floor.numbers[_WORDS])
    now_ns: int = floor.words[0] * 1_000_000_000 + floor.words[1]
    return now_ns


@inlined
def _ask(floor: Floor, client: int, data_bytes: int) -> None:
    """A connection of its own for each stream; the handoff's data is the body."""
    upstream = np.int64(_socket(floor.numbers[_FAMILY], _SOCK_STREAM | _SOCK_CLOEXEC, 0))
    if upstream < 0 or _connect(upstream, floor.numbers[_ADDRESS], floor.upstream.size) != 0:
        if upstream >= 0:
            _close(upstream)
        _close(client)
        return
    rest = data_bytes
    for index in range(_LENGTH_DIGITS):
        floor.request[_LENGTH_AT + _LENGTH_DIGITS - 1 - index] = _ZERO + rest % 10
        rest //= 10
    floor.client_of[upstream] = client
    _send(upstream, floor.message[7] - len(_REQUEST), len(_REQUEST) + data_bytes, _MSG_NOSIGNAL_DONTWAIT)
    floor.event[0] = _EPOLLIN
    floor.event[_DATA_WORD] = upstream
    _epoll_ctl(floor.numbers[_EPOLL], _EPOLL_CTL_ADD, upstream, floor.numbers[_EVENT])


@compiled
def _receive(floor: Floor) -> None:
    """Take what waits on the listener: a peer, its message, the client's descriptor."""
    for _ in range(_ACCEPTS_PER_TURN):
        peer = _accept4(floor.numbers[_LISTENER], 0, 0, _SOCK_CLOEXEC)
        if peer < 0:
            return
        floor.message[5] = 24  # room for one descriptor
        received = _recvmsg(peer, floor.numbers[_RECEIVE], _MSG_CMSG_CLOEXEC)
        _close(peer)
        if received <= 0 or floor.message[5] == 0:
            continue
        _ask(floor, floor.message[11] & 0xFFFFFFFF, received)


@inlined
def _is_over(floor: Floor, received: int) -> bool:
    """Whether the answer's last chunk ends here. Our upstream sends it in one piece."""
    if received < _LAST_CHUNK_BYTES:
        return received <= 0
    for index in range(_LAST_CHUNK_BYTES):
        if floor.buffer[received - _LAST_CHUNK_BYTES + index] != _LAST_CHUNK[index]:
            return False
    return True


@compiled
def _relay(floor: Floor, upstream: int) -> None:
    """One recv and one send; both are closed at the end, and when the client is gone."""
    client: Any = floor.client_of[upstream]
    received = _recv(upstream, floor.numbers[_BUFFER], _BUFFER_BYTES - _DONE_BYTES, 0)
    is_over = _is_over(floor, received)
    if is_over and received > 0:
        for index in range(_DONE_BYTES):
            floor.buffer[received + index] = _DONE[index]
        received += _DONE_BYTES
    sent = received
    if received > 0:
        sent = _send(client, floor.numbers[_BUFFER], received, _MSG_NOSIGNAL_DONTWAIT)
    if is_over or sent < 0:
        _close(client)
        _close(upstream)


@compiled
def turns_until(floor: Floor, until_ns: int) -> None:
    """Relay until that time of CLOCK_MONOTONIC."""
    now_ns = _clock_ns(floor)
    while now_ns < until_ns:
        ready_count = _epoll_wait(floor.numbers[_EPOLL], floor.numbers[_EVENTS], EVENTS_MAX, 100)
        for index in range(ready_count):
            descriptor: Any = np.int64(floor.events[index * EVENT_WORDS + _DATA_WORD])
            if descriptor == floor.numbers[_LISTENER]:
                _receive(floor)
            else:
                _relay(floor, descriptor)
        now_ns = _clock_ns(floor)


def sockaddr(upstream: str) -> tuple[int, bytes]:
    """Family and address of a port on 127.0.0.1 or of a Unix socket's path."""
    if upstream.startswith("/"):
        return socket.AF_UNIX, np.uint16(socket.AF_UNIX).tobytes() + upstream.encode() + b"\0"
    family = np.uint16(socket.AF_INET).tobytes()
    return socket.AF_INET, family + int(upstream).to_bytes(2, "big") + socket.inet_aton("127.0.0.1") + bytes(8)


def allocate(descriptor_count: int, upstream: str) -> Floor:
    """Memory for as many streams as there may be descriptors."""
    family, address = sockaddr(upstream)
    floor = Floor(
        numbers=np.zeros(9, np.int64),
        client_of=np.zeros(descriptor_count, np.int64),
        message=np.zeros(12, np.int64),
        words=np.zeros(2, np.int64),
        event=np.zeros(EVENT_WORDS, np.uint32),
        events=np.zeros(EVENTS_MAX * EVENT_WORDS, np.uint32),
        request=np.zeros(len(_REQUEST) + _DATA_BYTES_MAX, np.uint8),
        buffer=np.zeros(_BUFFER_BYTES, np.uint8),
        upstream=np.frombuffer(address, np.uint8).copy(),
    )
    floor.request[: len(_REQUEST)] = np.frombuffer(_REQUEST, np.uint8)
    start = floor.message.ctypes.data
    floor.message[2:5] = start + 7 * 8, 1, start + 9 * 8
    floor.message[7:9] = floor.request.ctypes.data + len(_REQUEST), _DATA_BYTES_MAX
    floor.numbers[_FAMILY] = family
    floor.numbers[_WORDS], floor.numbers[_EVENT] = floor.words.ctypes.data, floor.event.ctypes.data
    floor.numbers[_EVENTS], floor.numbers[_RECEIVE] = floor.events.ctypes.data, start
    floor.numbers[_BUFFER], floor.numbers[_ADDRESS] = floor.buffer.ctypes.data, floor.upstream.ctypes.data
    return floor


def main(arguments: Sequence[str]) -> int:
    """Relay until a signal ends the process."""
    if len(arguments) != 2:
        print("python -m scripts.bench.relayfloor SOCKET PORT|/UPSTREAM_SOCKET", file=sys.stderr)
        return 2
    floor = allocate(min(raise_descriptor_limit(), 1 << 20), arguments[1])
    turns_until(floor, 0)  # compiled before anybody can connect

    def attach(listener: int, epoll: int) -> None:
        floor.numbers[_LISTENER], floor.numbers[_EPOLL] = listener, epoll

    serve(arguments[0], attach, lambda end_ns: turns_until(floor, end_ns))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
