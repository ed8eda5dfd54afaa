"""Clients of relayed streams that leave, read slowly, or not at all: the upstream is stopped, or held back."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import DONE, HEAD, LATE_S_MAX, read_all
from tests.behaviour.relay_helpers import (
    CANCEL_S_MAX,
    TRANSPORTS,
    Relay,
    assert_complete,
    by,
    by_all,
    content_of,
    ended,
    held,
    refusal,
    relaying,
    stalled_bytes,
)
from tests.upstream import Fault, Gate, Plan, Upstream, ask_usage, full_backlog, openai_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = ["The", " quick", " brown", " fox"]
BEGUN = openai_stream(TOKENS, finish=None, done=False)
ROUNDS = 15
HELD_BYTES_MAX = 16 << 20  # the kernel's buffers between two TCP sockets of this host can grow to 10 MiB


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("relay")
    backlog = str(directory / "full.sock")
    with full_backlog() as port, full_backlog(backlog):
        hung = {"connect_timeout_ms": 60_000}

        def tables(upstream: Upstream) -> list[dict[str, object]]:
            return [
                *by_all(upstream),
                *by_all(upstream, "-drain", on_disconnect="drain", drain_timeout_s=60),
                *by_all(upstream, "-brief-drain", on_disconnect="drain", drain_timeout_s=1),
                by("tcp", upstream, "patient"),
                {"name": "hung", "api_base": f"http://127.0.0.1:{port}/v1", **hung},
                {"name": "hung-tls", "api_base": f"https://127.0.0.1:{port}/v1", **hung},
                {"name": "hung-unix", "api_socket": backlog, **hung},
            ]

        with relaying(kernel, directory, tables, breaker_failures=0) as relay:
            yield relay


def p99_ms(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1000


def leave(client: socket.socket) -> float:
    """Close it: when."""
    now_s = time.monotonic()
    client.close()
    return now_s


# ---- leaving


MOMENTS = {
    "before the head": Plan(fault=Fault.STALL, fault_in_head=True, fault_at=0),
    "before the first token": Plan(BEGUN[:1], fault=Fault.STALL),
    "in mid-stream": Plan(BEGUN, fault=Fault.STALL),
    "between paced tokens": Plan(openai_stream(TOKENS * 500), interval_s=0.01),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("tcp", [True, False])
def test_the_upstream_stops_when_the_client_leaves(relay: Relay, transport: str, moment: str, tcp: bool) -> None:
    plan = MOMENTS[moment]
    waits: list[float] = []
    measured = f'streaming_daemon_upstream_cancel_seconds_count{{upstream="{transport}"}}'
    before = relay.daemon.metric(measured)
    with relay.ends("client_gone", ROUNDS):
        for _ in range(ROUNDS):
            client, model = relay.open(plan, by=transport, tcp=tcp)
            (request,) = relay.upstream.wait_for_requests(1, model)
            if moment == "before the first token":
                relay.upstream.wait_sent(request, len(BEGUN[0]))
            elif moment != "before the head":
                client.settimeout(30)
                client.recv(len(HEAD) + 10)
            left_s = leave(client)
            waits.append(relay.upstream.wait_gone(request) - left_s)
    relay.daemon.wait_for_metric(measured, before + ROUNDS)
    print(f"{transport}, {moment}: p99 {p99_ms(waits):.1f} ms, median {sorted(waits)[ROUNDS // 2] * 1000:.1f} ms")
    assert max(waits) < CANCEL_S_MAX


@pytest.mark.parametrize("transport", ["tcp", "h2"])
def test_a_hundred_that_leave_at_once_stop_as_many(relay: Relay, transport: str) -> None:
    model = f"hundred {transport}"
    begun = [relay.open(MOMENTS["in mid-stream"], by=transport, model=model, request_id=f"{n}")[0] for n in range(100)]
    relay.upstream.wait_for_requests(100, model)
    for client in begun:
        client.settimeout(30)
        client.recv(1)
    left_s = time.monotonic()
    for client in begun:
        client.close()
    waits = [relay.upstream.wait_gone(request) - left_s for request in relay.upstream.requests(model)]
    print(f"{transport}, 100 at once: p99 {p99_ms(waits):.1f} ms")
    assert max(waits) < 4 * CANCEL_S_MAX


@pytest.mark.parametrize("name", ["hung", "hung-tls", "hung-unix"])
def test_leaving_while_connecting_ends_at_once(relay: Relay, name: str) -> None:
    assert_complete(relay.ask(Plan(openai_stream(TOKENS)), by="tls"), TOKENS)  # what TLS needs once is there
    relay.daemon.wait_idle()
    sockets = relay.daemon.socket_count()  # libcurl has one or two eventfds for each origin besides
    with relay.ends("client_gone", 5):
        begun = [relay.open(by=name)[0] for _ in range(5)]
        relay.daemon.wait_for_metric("streaming_daemon_connections_active", 5)
        time.sleep(0.05)
        left_s = time.monotonic()
        for client in begun:
            client.close()
        relay.daemon.wait_idle()
        assert time.monotonic() - left_s < LATE_S_MAX  # and not when the connect is given up
    deadline_s = time.monotonic() + LATE_S_MAX  # libcurl says goodbye to a TLS connection for two seconds
    while relay.daemon.socket_count() > sockets + 1:
        assert time.monotonic() < deadline_s, "sockets are left behind"
        time.sleep(0.01)


def test_leaving_while_a_retry_waits_asks_nobody_again(relay: Relay) -> None:
    client, model = relay.open(refusal(503, Retry_After="1"), Plan(BEGUN), by="patient")
    relay.upstream.wait_for_requests(1, model)
    with relay.ends("client_gone"):
        client.close()
    time.sleep(1.3)
    assert len(relay.upstream.requests(model)) == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_that_leaves_is_in_the_ledger(relay: Relay, transport: str) -> None:
    client, name = relay.open(MOMENTS["in mid-stream"], by=transport)
    (request,) = relay.upstream.wait_for_requests(1, name)
    client.settimeout(30)
    expected = HEAD + content_of(TOKENS)
    got = b""
    while len(got) < len(expected):
        got += client.recv(4096)
    assert got == expected
    client.close()
    relay.upstream.wait_gone(request)
    row = relay.row(name)
    assert (row["end_reason"], row["completion_tokens"], row["estimated"]) == ("client_gone", len(TOKENS), True)


# ---- drain


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_drain_reads_on_and_learns_the_usage(relay: Relay, transport: str) -> None:
    gate = Gate()
    events = openai_stream(TOKENS, usage=ask_usage(21, 4))
    client, name = relay.open(Plan([*events[:2], gate, *events[2:]]), by=f"{transport}-drain")
    (request,) = relay.upstream.wait_for_requests(1, name)
    client.settimeout(30)
    client.recv(1)
    client.close()
    time.sleep(0.1)
    assert request.left_s is None
    gate.open()
    row = relay.row(name)
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (21, 4, False)
    assert row["end_reason"] == "client_gone"
    assert request.left_s is None


def test_a_drain_has_an_end(relay: Relay) -> None:
    plan = Plan(openai_stream(TOKENS * 1000), interval_s=0.02)
    left: dict[str, float] = {}
    for transport in TRANSPORTS:
        client, name = relay.open(plan, by=f"{transport}-brief-drain")
        client.settimeout(30)
        client.recv(1)
        left[name] = leave(client)
    for name, left_s in left.items():
        (request,) = relay.upstream.requests(name)
        assert 0.8 < relay.upstream.wait_gone(request) - left_s < LATE_S_MAX
        assert relay.row(name)["end_reason"] == "client_gone"


# ---- slow clients


@pytest.mark.parametrize("style", ["content", "openai"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_slow_client_holds_its_upstream_back_and_gets_everything(relay: Relay, transport: str, style: str) -> None:
    tokens = [f"{number} " + "x" * 20_000 for number in range(1500)]
    client, model = relay.open(Plan(openai_stream(tokens)), by=transport, format=style)
    (request,) = relay.upstream.wait_for_requests(1, model)
    relay.upstream.wait_sent(request, 30_000)
    sent = stalled_bytes(request)
    print(f"{transport}: {sent} bytes sent to a client that does not read")
    assert sent < HELD_BYTES_MAX
    # Others are served meanwhile, by the same way.
    assert_complete(relay.ask(Plan(openai_stream(TOKENS)), by=transport), TOKENS)
    with client:
        answer = read_all(client)
    assert answer.body == (b"".join(openai_stream(tokens)) if style == "openai" else content_of(tokens) + DONE)
    assert relay.row(model)["end_reason"] == "complete"


@pytest.mark.parametrize("transport", ["tcp", "h2"])
def test_a_client_that_reads_in_drops_gets_every_byte(relay: Relay, transport: str) -> None:
    tokens = [f"{number} " + "y" * (number % 700) for number in range(3000)]
    client, _ = relay.open(Plan([b"".join(openai_stream(tokens))], piece_bytes=9000), by=transport)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    pieces: list[bytes] = []
    with client:
        while piece := client.recv(7777):
            pieces.append(piece)
            if len(pieces) % 10 == 0:
                time.sleep(0.001)
    assert b"".join(pieces) == HEAD + content_of(tokens) + DONE


def test_a_client_that_never_reads_is_cut_and_so_is_its_upstream(kernel: str, tmp_path: Path) -> None:
    def tables(upstream: Upstream) -> list[dict[str, object]]:
        return [*by_all(upstream), *by_all(upstream, "-drain", on_disconnect="drain", drain_timeout_s=1)]

    endless = Plan([b"".join(openai_stream(["x" * 20_000], done=False, finish=None))] * 5000)
    with relaying(kernel, tmp_path, tables, "[timeouts]\nwrite_timeout_ms = 500\n") as relay:
        names = [f"{transport}{suffix}" for transport in TRANSPORTS for suffix in ("", "-drain")]
        for name in names:
            client, model = relay.open(endless, by=name)
            (request,) = relay.upstream.wait_for_requests(1, model)
            began_s = time.monotonic()
            assert relay.upstream.wait_gone(request) - began_s < LATE_S_MAX
            with client:
                assert not read_all(client).raw.endswith(DONE)
        relay.daemon.wait_for_metric(ended("write_timeout"), len(names))


def test_a_slow_client_that_leaves_stops_its_upstream(relay: Relay) -> None:
    for transport in TRANSPORTS:
        client, model = relay.open(Plan(openai_stream(["x" * 20_000] * 1500)), by=transport)
        (request,) = relay.upstream.wait_for_requests(1, model)
        relay.upstream.wait_sent(request, 30_000)
        stalled_bytes(request)
        left_s = leave(client)
        assert relay.upstream.wait_gone(request) - left_s < CANCEL_S_MAX


def test_nothing_is_left_of_clients_that_leave(relay: Relay) -> None:
    def held_count() -> float:
        """Descriptors that are not connections kept for the next stream."""
        kept = relay.daemon.metric("streaming_daemon_upstream_connections_idle")
        return relay.daemon.descriptor_count() - kept

    relay.daemon.wait_idle()
    descriptors = held_count()
    for number in range(60):
        plan = (*MOMENTS.values(), held(TOKENS, Gate(), 2))[number % 5]
        client, _ = relay.open(plan, by="tcp", tcp=number % 2 == 0)
        time.sleep(0.001 * (number % 7))
        client.close()
    relay.daemon.wait_idle()
    deadline_s = time.monotonic() + LATE_S_MAX
    while (count := held_count()) > descriptors + 1:
        assert time.monotonic() < deadline_s, f"{count} descriptors are held, {descriptors} before"
        time.sleep(0.02)
