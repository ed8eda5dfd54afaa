"""Many clients of the HTTP front, and clients that leave or do not read: what it holds is bounded, and given back."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import LATE_S_MAX
from tests.behaviour.http_helpers import (
    CHAT,
    COMPLETIONS,
    Front,
    Wire,
    asking,
    get,
    http_config,
    post,
    relayed,
    serving,
)
from tests.upstream import Fault, Plan, Upstream, openai_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS_MAX = 40
ANSWERED = 'streaming_daemon_http_requests_total{method="POST",route="/v1/completions",status="200"}'
CUT = 'streaming_daemon_streams_ended_total{reason="write_timeout"}'
WORDS = ["The", " quick", " brown", " fox"]
MODELS = ("stalled-model", "slow-model")
GROWTH_BYTES_MAX = 12 << 20
KEPT = 3  # connections to upstreams


@pytest.fixture(name="front", scope="module")
def _front(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    http: dict[str, object] = {"connections_max": CONNECTIONS_MAX, "head_timeout_ms": 20_000}
    with Upstream() as upstream:
        begun = openai_stream(WORDS, finish=None, done=False)
        upstream.answer("stalled-model", Plan(begun, fault=Fault.STALL))
        upstream.answer("slow-model", Plan(openai_stream(WORDS), interval_s=0.004, head_delay_s=0.004))
        other = relayed(upstream, {model: model for model in MODELS}) + "\n[timeouts]\nwrite_timeout_ms = 1500"
        directory = tmp_path_factory.mktemp("crowds")
        with serving(kernel, directory, http_config(http, other, backend="openai")) as front:
            front.upstream = upstream
            for name, request in MOMENTS.items():  # what is made for the first request of a kind is there to stay
                with front.connect() as wire:
                    wire.send(request)
                    if not name.startswith("stalled"):
                        wire.reply()
            yield front


def chat(model: str, *, stream: bool = True) -> bytes:
    """A request to a relayed model."""
    return post(CHAT, {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": stream})


def reset(wire: Wire) -> None:
    """End it with a reset."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


def test_more_connections_than_are_allowed(front: Front) -> None:
    with front.leaves_nothing(), contextlib.ExitStack() as stack:
        kept = [stack.enter_context(front.connect()) for _ in range(CONNECTIONS_MAX)]
        for wire in kept:
            wire.send(get("/health"))
            assert wire.reply().status == 200
        for _ in range(20):
            with front.connect() as more:
                refused = more.reply()
                assert refused.status == 503
                assert refused.error["type"]
                assert more.rest() == b""
        kept[0].send(get("/health"))
        assert kept[0].reply().status == 200
        kept[1].socket.close()
        deadline_s = time.monotonic() + LATE_S_MAX  # for its going to be noticed
        while front.ask(get("/health")).status == 503:
            assert time.monotonic() < deadline_s, "a place that is free again is given to nobody"
            time.sleep(0.02)
    front.is_well()


def test_streams_do_not_count_as_connections(front: Front) -> None:
    with front.leaves_nothing(), contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MAX + 20):
            wire = stack.enter_context(front.connect())
            wire.send(chat("stalled-model"))
            assert wire.socket.recv(16) == b"HTTP/1.1 200 OK\r"
        assert front.daemon.metric("streaming_daemon_connections_active") == CONNECTIONS_MAX + 20
        assert front.ask(get("/ready")).json["ready"] is True


def test_a_flood_of_connections(front: Front) -> None:
    with front.leaves_nothing(kept=KEPT):
        for _ in range(6):
            begun = [front.connect() for _ in range(150)]
            for index, wire in enumerate(begun):
                with contextlib.suppress(OSError):  # those beyond the limit have been answered, and may be closed
                    wire.send((b"", b"GET /", get("/health"), chat("slow-model"))[index % 4])
            for index, wire in enumerate(begun):
                (reset if index % 2 else Wire.__exit__)(wire)
    front.is_well()


MOMENTS = {
    "streamed": post(COMPLETIONS, asking(max_tokens=300)),
    "whole": post(COMPLETIONS, asking(stream=False, max_tokens=300)),
    "relayed": chat("slow-model"),
    "relayed whole": chat("slow-model", stream=False),
    "stalled": chat("stalled-model"),
    "stalled whole": chat("stalled-model", stream=False),
    "several": post(COMPLETIONS, asking(max_tokens=50, n=3)),
    "refused": post(COMPLETIONS, asking(temperature=7)),
    "page": get("/metrics"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_clients_that_leave_at_any_moment_leave_nothing(front: Front, name: str) -> None:
    chance = random.Random(name)
    with front.leaves_nothing(kept=KEPT):
        for number in range(50):
            wire = front.connect()
            wire.send(MOMENTS[name])
            time.sleep(chance.random() * 0.03 * (number % 2))
            if number % 4 == 3 and name != "stalled whole":
                wire.socket.recv(chance.randrange(1, 3000))
            (reset if number % 3 else Wire.__exit__)(wire)
    front.is_well()


@pytest.mark.serial
def test_memory_does_not_grow_with_requests(front: Front) -> None:
    def crowd(count: int) -> None:
        for number in range(count):
            wire = front.connect()
            name, request = list(MOMENTS.items())[number % len(MOMENTS)]
            wire.send(request)
            if number % 2 and name != "stalled whole":
                wire.socket.recv(100)
            (reset if number % 3 else Wire.__exit__)(wire)
        front.daemon.wait_idle()

    with front.leaves_nothing(kept=KEPT):
        crowd(400)
        before = front.daemon.resident_bytes()
        crowd(800)
        grown = front.daemon.resident_bytes() - before
    print(f"{grown / 2**20:.1f} MiB more after 800 requests")
    assert grown < GROWTH_BYTES_MAX


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_its_answer(front: Front, stream: bool) -> None:
    with front.leaves_nothing(30):
        before = front.daemon.resident_bytes()
        answered, cut = front.daemon.metric(ANSWERED), front.daemon.metric(CUT)
        wires = [front.connect(receive_buffer_bytes=4096) for _ in range(4)]
        for wire in wires:
            wire.send(post(COMPLETIONS, asking(stream=stream, max_tokens=60_000)))
        front.daemon.wait_for_metric(ANSWERED, answered + 4)
        front.is_well()
        assert front.daemon.resident_bytes() - before < 256 << 20
        if stream:  # an answer in one piece is not as large as what the kernel keeps
            front.daemon.wait_for_metric(CUT, cut + 4)
        for wire in wires:
            wire.socket.close()


def test_a_client_that_pipelines_and_does_not_read(front: Front) -> None:
    with front.leaves_nothing():
        before = front.daemon.resident_bytes()
        wire = front.connect(receive_buffer_bytes=4096)
        wire.socket.settimeout(1)
        sent = 0
        flood = get("/openapi.json") * 100
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += wire.socket.send(flood)
        assert sent < 64 << 20, "the daemon reads what it cannot answer"
        assert front.daemon.resident_bytes() - before < 64 << 20
        front.is_well()
        wire.socket.close()


def test_a_slow_reader_gets_everything(front: Front) -> None:
    count = 5000
    with front.connect(receive_buffer_bytes=4096) as wire:
        wire.send(post(COMPLETIONS, asking(max_tokens=count)))
        time.sleep(0.3)
        reply = wire.reply()
    assert reply.is_whole
    events = [line for line in reply.body.split(b"\n\n") if line.startswith(b"data: {")]
    assert [json.loads(event[6:])["choices"][0]["text"] for event in events] == [f"token_{n} " for n in range(count)]
