"""The HTTP clients against a small server that goes wrong in every way a stream over HTTP can."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from scripts.bench import completion_events
from scripts.bench.completion_events import AFTER_LAST_NUMBER, AFTER_NUMBER, opening
from scripts.bench.http_load import HttpPlan, run_http_load

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
STAYING = HEAD.replace(b"Connection: close\r\n", b"")
TOKENS = 12
BEGINNING = opening("0123456789abcdef01234567", 1_795_269_625)
OTHER = opening("0123456789abcdef01234568", 1_795_269_625)
EVENTS = [f"{BEGINNING}{number}{AFTER_NUMBER}" for number in range(TOKENS - 1)]
LAST = f"{BEGINNING}{TOKENS - 1}{AFTER_LAST_NUMBER}"
END = b"0\r\n\r\n"
DONE = "data: [DONE]\n\n"
ERROR = 'event: error\ndata: {"error":{}}\n\n'


def chunked(*pieces: str) -> bytes:
    """Each piece as a chunk of its own."""
    encoded = [piece.encode() for piece in pieces]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in encoded)


def cut_into(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def changed(index: int, event: str) -> bytes:
    """A whole answer with another event in the place of one."""
    return HEAD + chunked(*EVENTS[:index], event, *EVENTS[index + 1 :], LAST) + END


GOOD = HEAD + chunked(*EVENTS, LAST) + END

# What the server answers to stream i, and what the clients must say of it.
ANSWERS: dict[str, tuple[str, bytes]] = {
    "one event a chunk": ("complete", GOOD),
    "one chunk": ("complete", HEAD + chunked("".join([*EVENTS, LAST])) + END),
    "chunks of 7": ("complete", HEAD + chunked(*cut_into("".join([*EVENTS, LAST]), 7)) + END),
    "a connection that stays": ("complete", STAYING + chunked(*EVENTS, LAST) + END),
    "a token is missing": ("wrong_bytes", HEAD + chunked(*EVENTS[:4], *EVENTS[5:], LAST) + END),
    "a token comes twice": ("wrong_bytes", HEAD + chunked(*EVENTS[:5], *EVENTS[4:], LAST) + END),
    "two change places": ("wrong_bytes", HEAD + chunked(EVENTS[1], EVENTS[0], *EVENTS[2:], LAST) + END),
    "a byte is wrong": ("wrong_bytes", changed(3, EVENTS[3].replace("null", "nuIl"))),
    "another stream's event": ("wrong_bytes", changed(6, f"{OTHER}6{AFTER_NUMBER}")),
    "the first event is none": ("wrong_bytes", changed(0, DONE)),
    "the end comes early": ("wrong_bytes", HEAD + chunked(*EVENTS[:5], DONE) + END),
    "an error event": ("wrong_bytes", HEAD + chunked(*EVENTS[:5], ERROR) + END),
    "one event too many": ("wrong_bytes", HEAD + chunked(*EVENTS, LAST, EVENTS[0]) + END),
    "no [DONE]": ("wrong_count", HEAD + chunked(*EVENTS, LAST.removesuffix(DONE)) + END),
    "an event is cut": ("wrong_count", HEAD + chunked(*EVENTS[:5], EVENTS[5][:50]) + END),
    "nothing": ("wrong_count", HEAD + END),
    "no last chunk": ("truncated", HEAD + chunked(*EVENTS, LAST)),
    "a chunk is cut": ("truncated", GOOD[:700]),
    "a size that is none": ("wrong_bytes", HEAD + b"xyz\r\n" + chunked(*EVENTS, LAST) + END),
    "a chunk without its line end": ("wrong_bytes", GOOD.replace(b"\n\n\r\n", b"\n\n", 1)),
    "more behind the end": ("after_end", GOOD + b"x"),
    "a refusal": ("refused", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"),
    "not chunked": ("not_chunked", HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"")),
    "no answer": ("empty", b""),
    "half a head": ("head_truncated", GOOD[:30]),
}
RESET = b"reset"


class Server:
    """Answers one connection after another, in the order of the table."""

    def __init__(self, answers: Sequence[bytes], *, piece_bytes: int = 0, is_held: bool = False) -> None:
        self._answers = answers
        self._piece_bytes = piece_bytes
        self._is_held = is_held
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.requests: list[bytes] = []
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            client, _ = self._listener.accept()
            self._held.append(client)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = b""
            while not asked.endswith(b"}"):
                asked += client.recv(65_536)
            self.requests.append(asked)
            if answer == RESET:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self._answer(client, answer)
            if not self._is_held:
                client.close()

    def _answer(self, client: socket.socket, answer: bytes) -> None:
        size = self._piece_bytes or max(1, len(answer))
        with contextlib.suppress(ConnectionError):  # the clients leave where an answer is wrong
            for at in range(0, len(answer), size):
                client.sendall(answer[at : at + size])

    def stop(self) -> None:
        self._thread.join(10)
        for held in (*self._held, self._listener):
            held.close()


@contextlib.contextmanager
def serving(answers: Sequence[bytes], *, piece_bytes: int = 0, is_held: bool = False) -> Generator[Server]:
    server = Server(answers, piece_bytes=piece_bytes, is_held=is_held)
    try:
        yield server
    finally:
        server.stop()


def plan(total: int, stall_timeout_s: float = 60.0) -> HttpPlan:
    return HttpPlan(streams=1, total=total, tokens=TOKENS, stall_timeout_s=stall_timeout_s)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_judged(name: str) -> None:
    outcome, answer = ANSWERS[name]
    with serving([answer]) as server:
        figures = run_http_load(plan(1), server.port)
    assert figures["outcomes"] == {outcome: 1}
    assert server.requests == [completion_events.request(TOKENS, server.port)]
    assert figures["failed"] == (outcome != "complete")
    assert [fault["outcome"] for fault in figures["faults"]] == ([] if outcome == "complete" else [outcome])


@pytest.mark.parametrize("name", ["one event a chunk", "a token is missing", "chunks of 7", "no [DONE]"])
def test_byte_by_byte_the_same(name: str) -> None:
    outcome, answer = ANSWERS[name]
    with serving([answer], piece_bytes=1) as server:
        figures = run_http_load(plan(1), server.port)
    assert figures["outcomes"] == {outcome: 1}


def test_streams_one_after_another_are_counted() -> None:
    with serving([GOOD] * 30) as server:
        figures = run_http_load(plan(30), server.port)
    assert (figures["complete"], figures["messages"], figures["open_max"]) == (30, 30 * TOKENS, 1)
    assert figures["bytes"] == 30 * len(GOOD)
    assert figures["statuses"] == {"200": 30}
    assert figures["latencies_ns"]["first_token"]["count"] == 30
    first, whole = figures["latencies_ns"]["first_token"], figures["latencies_ns"]["whole_stream"]
    assert 0 < first["p50"] <= whole["p50"] <= whole["max"] < figures["wall_s"] * 1e9


def test_where_it_went_wrong_is_told() -> None:
    _, wrong = ANSWERS["a token is missing"]
    with serving([GOOD, wrong, GOOD]) as server:
        figures = run_http_load(plan(3), server.port)
    (fault,) = figures["faults"]
    assert (fault["stream"], fault["message_count"]) == (1, 4)
    assert fault["differs_at"] == len("".join(EVENTS[:4])) + len(BEGINNING)
    assert fault["shown"].startswith("5 ")


def test_a_reset_and_a_server_that_is_not_there() -> None:
    with serving([RESET]) as server:
        figures = run_http_load(plan(1), server.port)
    assert figures["outcomes"] == {"reset": 1}
    figures = run_http_load(plan(2), server.port)
    assert figures["outcomes"] == {"connect_failed": 2}


def test_silence_ends_the_run() -> None:
    begin = time.monotonic()
    with serving([GOOD[:900]], is_held=True) as server:
        figures = run_http_load(plan(1, stall_timeout_s=0.5), server.port)
    assert figures["outcomes"] == {"stalled": 1}
    assert 0.5 <= time.monotonic() - begin < 5
