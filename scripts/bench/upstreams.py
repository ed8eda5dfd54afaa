"""Runs our own upstream on a thread of this process, and says what it answers.

On a thread, because then what it knows of a stream (when its request came, when its connection closed) can be read at
any time, by the clock that the clients use. It holds no GIL while it serves, and comes back a few times a second.
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.bench import upstream as loop
from scripts.bench.tables import NUMBER_PLACEHOLDER, render, template

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_SLICE_NS = 100_000_000
_BACKLOG = 4096
_COUNTS = ("accepted_count", "request_count", "complete_count", "aborted_count", "token_sent_count", "late_ns_max")
_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def token_text(index: int) -> str:
    """What token `index` of a stream says; {number} is the stream's own."""
    return f"{NUMBER_PLACEHOLDER.decode()}-{index} "


def _event(index: int) -> bytes:
    """One chunk of the body with one event in it."""
    choice = {"index": 0, "delta": {"content": token_text(index)}, "finish_reason": None}
    whole = {
        "id": f"chatcmpl-{NUMBER_PLACEHOLDER.decode()}",
        "object": "chat.completion.chunk",
        "created": 1763686800,
        "model": "bench",
        "choices": [choice],
    }
    event = b"data: " + json.dumps(whole, separators=(",", ":")).encode() + b"\n\n"
    # Its length as it will be, with eight digits in each number's place.
    return b"%x\r\n%s\r\n" % (len(render(event, 10**loop.NUMBER_DIGITS - 1)), event)


def answer_of(token_count: int) -> tuple[bytes, list[int]]:
    """The whole response with {number}, and where it stands after its head and k tokens; the last one is its end."""
    pieces = [_HEAD, *(_event(index) for index in range(token_count))]
    pieces[-1] += _END
    ends = np.cumsum([len(template(piece)) for piece in pieces])
    return b"".join(pieces), [int(end) for end in ends]


@dataclass(frozen=True)
class Story:
    """What the upstream knows of one stream. Times are CLOCK_MONOTONIC in ns, 0 for what has not been."""

    request_ns: int
    first_token_ns: int
    closed_ns: int  # before the answer's end
    token: int  # how many had been let go of by then


class Upstream:
    """A running upstream."""

    def __init__(self, memory: loop.Upstream, port: int, path: str) -> None:
        self.port = port
        self.path = path  # of its Unix socket
        self._memory = memory
        self._is_stopping = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="upstream")

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Compile, or load from the cache, then serve."""
        loop.turns_until(self._memory, 0)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. RuntimeError where it ended by itself."""
        self._is_stopping = True
        self._thread.join()
        if self._error is not None:
            raise RuntimeError("the upstream's loop failed") from self._error

    def story(self, number: int) -> Story:
        """What is known of the stream with this number."""
        found = self._memory.stories[number % loop.STORIES_MAX]
        return Story(*(int(found[name]) for name in loop.STORY.names or ()))

    def counts(self) -> dict[str, int]:
        """Connections, requests and tokens so far, and how late the latest token left."""
        state = self._memory.state[0]
        return {name: int(state[name]) for name in _COUNTS}

    def forget_lateness(self) -> None:
        """Begin again to look for the latest token."""
        self._memory.state[0].late_ns_max = 0

    def hold(self, *, is_holding: bool) -> None:
        """Take requests and answer none; those that came meanwhile are never answered."""
        self._memory.state[0].is_holding = is_holding

    def go_on(self, *, is_endless: bool) -> None:
        """Have streams that are open then go on until their clients leave, at their pace. For two tokens or more."""
        self._memory.state[0].is_endless = is_endless

    def _serve(self) -> None:
        try:
            while not self._is_stopping:
                loop.turns_until(self._memory, time.monotonic_ns() + _SLICE_NS)
        except BaseException as error:  # noqa: BLE001 (told to whoever stops it)
            self._error = error


@contextlib.contextmanager
def running(folder: Path, token_count: int, interval_ms: float) -> Generator[Upstream]:
    """An upstream that streams so many tokens at that pace, on a port of its own and on a socket in `folder`."""
    assert token_count >= 1, "an answer has a token at least"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    answer, ends = answer_of(token_count)
    memory = loop.allocate(min(hard, 1 << 16), template(answer), np.array(ends, np.int64), interval_ms)
    with contextlib.ExitStack() as stack:
        epoll = stack.enter_context(contextlib.closing(select.epoll()))
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG))
        local = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        path = str(folder / "upstream.sock")
        local.bind(path)
        local.listen(_BACKLOG)
        state: Any = memory.state[0]
        state.epoll_fd, state.tcp_fd, state.unix_fd = epoll.fileno(), tcp.fileno(), local.fileno()
        for listener in (tcp, local):
            listener.setblocking(False)
            epoll.register(listener.fileno(), select.EPOLLIN)
        running_upstream = Upstream(memory, int(tcp.getsockname()[1]), path)
        running_upstream.start()
        try:
            yield running_upstream
        finally:
            running_upstream.stop()
            _close_connections(memory)


def _close_connections(memory: loop.Upstream) -> None:
    for descriptor in np.flatnonzero(memory.connections["is_open"]):
        socket.close(int(descriptor))
