"""Silence counts where it is the source's: a client that does not read makes nobody else look silent."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, Daemon, read_all
from tests.behaviour.relay_helpers import (
    TRANSPORTS,
    Relay,
    by_all,
    content_of,
    ended,
    error_at_end,
    relaying,
    stalled_bytes,
)
from tests.behaviour.test_backends import BACKENDS
from tests.upstream import Fault, Plan, Upstream, chunk, event, openai_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


SILENCE_MS = 2000  # also of a machine that is busy with other things
HELD_S = 1.5 * SILENCE_MS / 1000  # for which a client does not read
SHORT = f"[timeouts]\nsilence_timeout_ms = {SILENCE_MS}\n"
SECONDS = 400  # of audio, which is more than the kernel keeps for a client


# ---- relayed streams


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("relay")

    def tables(upstream: Upstream) -> list[dict[str, object]]:
        return [
            *by_all(upstream, silence_timeout_ms=SILENCE_MS),
            *by_all(upstream, "-patient", first_token_timeout_ms=SILENCE_MS, silence_timeout_ms=3_600_000),
        ]

    with relaying(kernel, directory, tables, attempts_max=1) as relay:
        yield relay


def test_a_client_that_does_not_read_does_not_make_its_upstream_silent(relay: Relay) -> None:
    tokens = [f"{number} " + "x" * 20_000 for number in range(600)]
    begun = {transport: relay.open(Plan(openai_stream(tokens)), by=transport) for transport in TRANSPORTS}
    with relay.ends("complete", len(begun)):
        for _, name in begun.values():
            (request,) = relay.upstream.wait_for_requests(1, name)
            relay.upstream.wait_sent(request, 30_000)
            stalled_bytes(request)
        time.sleep(HELD_S)
        for transport, (client, name) in begun.items():
            with client:
                assert read_all(client).body == content_of(tokens) + DONE, transport
            assert relay.row(name)["end_reason"] == "complete"


def test_the_first_token_has_its_own_limit_after_an_event_that_held_the_reading_up(relay: Relay) -> None:
    """An event so large that it is sent from where it lies, without a token, and nothing after it."""
    said = chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], x="y" * 40_000)
    names = [f"{transport}-patient" for transport in TRANSPORTS]
    with relay.ends("first_token_timeout", len(names)):
        answers = relay.ask_all(Plan([event(json.dumps(said))], fault=Fault.STALL), names, format="openai")
    for answer in answers.values():
        error_at_end(answer)


# ---- streams of worker threads


def test_a_client_that_does_not_read_does_not_make_a_backend_silent(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + SHORT)
    with daemon.open({"backend": "large"}) as client:
        assert client.recv(1)
        time.sleep(HELD_S)
        answer = read_all(client)
    assert answer.body.endswith(DONE), answer.body[-300:]
    assert answer.body.count(b"x") == 8 << 20
    daemon.wait_for_metric(ended("complete"), 1)


def test_a_client_that_never_reads_is_cut_by_its_own_limit(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + SHORT + f"write_timeout_ms = {3 * SILENCE_MS // 2}\n")
    with daemon.open({"backend": "large"}) as client:
        daemon.wait_for_metric(ended("write_timeout"), 1)
        assert not read_all(client).body.endswith(DONE)


def test_a_backend_that_falls_silent_after_a_held_client_is_still_cut(start: Callable[..., Daemon]) -> None:
    daemon = start(BACKENDS + SHORT)
    with daemon.open({"backend": "large", "prompt": "hang"}) as client:
        assert client.recv(1)
        time.sleep(HELD_S)
        answer = read_all(client)
    assert answer.body.count(b"x") == 8 << 20
    assert b"event: error" in answer.body
    daemon.wait_for_metric(ended("silence_timeout"), 1)


def test_an_upload_that_waits_for_its_client_to_read_is_not_silent(start: Callable[..., Daemon]) -> None:
    """The daemon does not read on while nobody takes the features: that is no silence of the upload."""
    samples = bytes(2 * 16_000 * SECONDS)
    daemon = start('[http]\nlisten = "127.0.0.1:0"\n[backend.mel]\nenabled = true\n' + SHORT)
    found = re.search(r"http=\"?http://([0-9.]+):([0-9]+)", daemon.log)
    assert found, daemon.log
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.connect((found[1], int(found[2])))
    path = "/audio/stream?sample_format=s16le"
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(samples)}\r\n\r\n"

    def send() -> None:
        with suppress(ConnectionError):  # what the answer says is looked at below
            client.sendall(head.encode() + samples)

    sender = threading.Thread(target=send)
    with client:
        sender.start()
        wait_until_nothing_leaves(daemon)
        time.sleep(HELD_S)
        answer = read_all(client)
        sender.join(30)
    assert not sender.is_alive()
    assert answer.status == 200
    assert b"event: error" not in answer.body
    assert sum(map(int, re.findall(rb'"count":(\d+),', answer.body))) == 1 + 100 * SECONDS
    daemon.wait_for_metric(ended("complete"), 1)


def wait_until_nothing_leaves(daemon: Daemon) -> None:
    """Until a stream has begun and its client takes no more."""
    quiet, sent = 0, 0.0
    deadline_s = time.monotonic() + 30
    while quiet < 5:
        assert time.monotonic() < deadline_s, f"after {sent} bytes still more is taken"
        time.sleep(0.05)
        before, sent = sent, daemon.metric("streaming_daemon_bytes_total")
        quiet = quiet + 1 if sent == before > 0 else 0
