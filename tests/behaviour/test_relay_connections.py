"""Connections to upstreams: kept and used again, let go of in time, noticed when they die."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import LATE_S_MAX, read_all
from tests.behaviour.relay_helpers import (
    PLAIN,
    TRANSPORTS,
    Relay,
    assert_complete,
    by_all,
    error_at_end,
    held,
    relaying,
)
from tests.upstream import Fault, Framing, Gate, Plan, Upstream, Wait, openai_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.upstream.plan import Step

TOKENS = ["The", " quick", " brown"]
FINE = Plan(openai_stream(TOKENS))


def tables(upstream: Upstream) -> list[dict[str, object]]:
    return [
        *by_all(upstream),
        *by_all(upstream, "-few", idle_connections_max=2),
        *by_all(upstream, "-none", idle_connections_max=0),
        *by_all(upstream, "-brief", idle_timeout_s=1),
    ]


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relaying(kernel, tmp_path_factory.mktemp("relay"), tables, attempts_max=1, breaker_failures=0) as relay:
        yield relay


def connections_of(relay: Relay, model: str) -> set[int]:
    return {request.connection for request in relay.upstream.requests(model)}


def wait_open(relay: Relay, model: str, count: int, timeout_s: float = LATE_S_MAX) -> None:
    """Until so many connections are open, of those that this model was asked for on."""
    mine = connections_of(relay, model)
    relay.upstream.journal.wait(
        lambda: sum(one.closed_s is None for one in relay.upstream.connections() if one.number in mine) == count,
        f"{count} of {len(mine)} connections open",
        timeout_s,
    )


@pytest.mark.pairwise
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("framing", [Framing.CHUNKED, Framing.LENGTH])
def test_a_connection_serves_one_stream_after_another(relay: Relay, transport: str, framing: Framing) -> None:
    model = f"reuse {transport} {framing.value}"
    for number in range(20):
        answer = relay.ask(
            Plan(openai_stream(TOKENS), framing=framing), by=transport, model=model, request_id=f"{number}"
        )
        assert_complete(answer, TOKENS)
        # The client is through at [DONE]; a connection is kept only once the body's own end has come behind it.
        relay.upstream.journal.wait(lambda: relay.upstream.requests(model)[-1].ended_s is not None, "the body's end", 5)
        time.sleep(0.05)
    count = len(connections_of(relay, model))
    if transport == "tls" and framing is Framing.LENGTH:
        # libcurl keeps what stands behind a body with a length: after the first such answer no connection is kept.
        assert count <= 20
        return
    # On a busy machine the daemon may not have read that end yet when the next stream asks for a connection.
    assert count <= 5, f"{count} connections for 20 streams"


@pytest.mark.parametrize("transport", ["h2", "h2c"])
def test_http2_streams_share_connections(relay: Relay, transport: str) -> None:
    model, gate = f"shared {transport}", Gate()
    begun = [relay.open(held(TOKENS, gate, 1), by=transport, model=model, request_id=f"{n}")[0] for n in range(40)]
    relay.upstream.wait_for_requests(40, model)
    gate.open()
    for client in begun:
        assert_complete(read_all(client), TOKENS)
        client.close()
    assert len(connections_of(relay, model)) < 10


@pytest.mark.parametrize("transport", PLAIN)
def test_streams_at_once_have_connections_of_their_own(relay: Relay, transport: str) -> None:
    model, gate = f"own {transport}", Gate()
    begun = [relay.open(held(TOKENS, gate, 1), by=transport, model=model, request_id=f"{n}")[0] for n in range(20)]
    relay.upstream.wait_for_requests(20, model)
    assert len(connections_of(relay, model)) == 20
    gate.open()
    for client in begun:
        assert_complete(read_all(client), TOKENS)
        client.close()


@pytest.mark.parametrize("name", ["tcp-few", "unix-few"])
def test_only_so_many_connections_are_kept(relay: Relay, name: str) -> None:
    model, gate = f"few {name}", Gate()
    begun = [relay.open(held(TOKENS, gate, 1), by=name, model=model, request_id=f"{n}")[0] for n in range(10)]
    relay.upstream.wait_for_requests(10, model)
    gate.open()
    for client in begun:
        assert_complete(read_all(client), TOKENS)
        client.close()
    wait_open(relay, model, 2)


UNCLEAN = {
    "client leaves": Plan(openai_stream(TOKENS, finish=None, done=False)[:2], fault=Fault.STALL),
    "done without an end": Plan(openai_stream(TOKENS), fault=Fault.STALL),
    "more than the length": Plan(openai_stream(TOKENS), framing=Framing.LENGTH, length_extra=-5),
    "malformed chunk": Plan(openai_stream(TOKENS), size_lines={1: b"zz\r\n"}),
    "told to close": Plan(openai_stream(TOKENS), framing=Framing.LENGTH, headers=(("Connection", "close"),)),
}


@pytest.mark.parametrize("name", UNCLEAN)
@pytest.mark.parametrize("transport", PLAIN)
def test_a_connection_that_is_not_clean_is_not_used_again(relay: Relay, transport: str, name: str) -> None:
    client, model = relay.open(UNCLEAN[name], by=transport)
    with client:
        client.settimeout(30)
        client.recv(1)
        if name != "client leaves":
            read_all(client)
    (first,) = relay.upstream.requests(model)
    relay.daemon.wait_idle()
    assert_complete(relay.ask(FINE, by=transport, model=model, request_id="after"), TOKENS)
    assert relay.upstream.requests(model)[-1].connection != first.connection


@pytest.mark.parametrize("pause_s", [0, 0.03])
@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
def test_bytes_behind_an_answer_never_reach_another_client(relay: Relay, transport: str, pause_s: float) -> None:
    body = b"".join(openai_stream(["FORGED"]))
    forged = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    items: list[Step] = [*openai_stream(TOKENS), *([Wait(pause_s)] if pause_s else []), forged]
    plan = Plan(items, framing=Framing.LENGTH, length_extra=-len(forged))
    for _ in range(5):
        assert_complete(relay.ask(plan, by=transport), TOKENS)
        time.sleep(2 * pause_s)
        assert_complete(relay.ask(FINE, by=transport), TOKENS)


@pytest.mark.parametrize("transport", PLAIN)
def test_a_kept_connection_that_is_closed_is_noticed_while_idle(relay: Relay, transport: str) -> None:
    client, model = relay.open(FINE, by=transport)
    with client:
        assert_complete(read_all(client), TOKENS)
    relay.daemon.wait_idle()
    stale = f'streaming_daemon_upstream_stale_connections_total{{upstream="{transport}"}}'
    before, descriptors = relay.daemon.metric(stale), relay.daemon.descriptor_count()
    # libcurl looks at its connections when it needs one; the data plane's are watched.
    spoken = {request.connection for request in relay.upstream.requests() if request.protocol == "HTTP/1.1"}
    kept = [one for one in relay.upstream.connections() if one.closed_s is None and one.kind != "tls"]
    count = len(spoken & {one.number for one in kept})
    assert count
    relay.upstream.close_idle()
    deadline_s = time.monotonic() + LATE_S_MAX
    while relay.daemon.descriptor_count() > descriptors - count:
        assert time.monotonic() < deadline_s, "a dead connection's descriptor is kept"
        time.sleep(0.01)
    assert_complete(relay.ask(FINE, by=transport, model=model, request_id="after"), TOKENS)
    assert relay.daemon.metric(stale) == before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_idle_connections_are_let_go_of_in_time(relay: Relay, transport: str) -> None:
    began_s = time.monotonic()
    client, model = relay.open(FINE, by=f"{transport}-brief")
    with client:
        assert_complete(read_all(client), TOKENS)
    wait_open(relay, model, 0)
    assert time.monotonic() - began_s > 0.9


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_connection_is_kept_where_none_shall_be(relay: Relay, transport: str) -> None:
    model = f"none {transport}"
    for number in range(3):
        assert_complete(relay.ask(FINE, by=f"{transport}-none", model=model, request_id=f"{number}"), TOKENS)
    if transport in {"h2", "h2c"}:  # by HTTP/2 one is kept, or streams could not share it
        assert len(connections_of(relay, model)) <= 3
        return
    wait_open(relay, model, 0)
    assert len(connections_of(relay, model)) == 3


def test_shutdown_lets_relayed_streams_finish_and_tells_those_that_cannot(kernel: str, tmp_path: Path) -> None:
    limit = "[timeouts]\nshutdown_timeout_s = 1\n"
    with relaying(kernel, tmp_path, by_all, limit) as relay:
        gate, never = Gate(), Gate()
        good = [relay.open(held(TOKENS, gate, 1), by=transport)[0] for transport in ("tcp", "h2")]
        bad = [relay.open(held(TOKENS, never, 1), by=transport)[0] for transport in ("tcp", "h2")]
        queued = [relay.open(Plan(head_delay_s=30), by=transport)[0] for transport in ("tcp", "h2")]
        for client in (*good, *bad):
            client.settimeout(30)
            client.recv(1)
        relay.upstream.wait_for_requests(6)
        assert relay.daemon.process is not None
        relay.daemon.process.terminate()
        gate.open()
        for client in good:
            answer = read_all(client)
            assert answer.raw.endswith(b"data: [DONE]\n\n")
        for client in bad:
            answer = read_all(client)
            answer.raw = b"H" + answer.raw
            error_at_end(answer)
        for client in queued:
            assert read_all(client).status == 503
        assert relay.daemon.process.wait(10) == 0


def test_connections_that_are_kept_give_way_to_streams(relay: Relay) -> None:
    gate = Gate()
    kept = [relay.open(held(TOKENS, gate, 1), by="tcp")[0] for _ in range(20)]
    gate.open()
    for client in kept:
        assert_complete(read_all(client), TOKENS)
    relay.daemon.wait_idle()
    soft, hard = resource.prlimit(relay.daemon.pid, resource.RLIMIT_NOFILE)
    # Descriptors are numbered, and gaps are filled: room for what hands a client over, and for that client.
    used = {int(path.name) for path in Path(f"/proc/{relay.daemon.pid}/fd").iterdir()}
    limit = next(number for number in range(soft) if len(set(range(number)) - used) == 2)
    resource.prlimit(relay.daemon.pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        # Elsewhere, so that none of those that are kept serves.
        begun = [relay.open(held(TOKENS, gate, 1), by="unix-none")[0] for _ in range(1)]
        for client in begun:
            assert_complete(read_all(client), TOKENS)
    finally:
        resource.prlimit(relay.daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
