"""What is measured one stream at a time: how soon the first token comes, how soon upstream knows that a client left.

In plain Python, beside an upstream on a thread of this process, so that both ends of a stream are timed by one clock.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scripts.bench.probe import ProbeError, hand_over
from scripts.bench.tables import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts.bench.comparing import Server
    from scripts.bench.upstreams import Upstream

_FIRST_NUMBER = 90_000_000  # no stream of a run has these
_TIMEOUT_S = 10.0
_POLL_S = 0.0005
_BATCH = 50  # streams that are open at once before their clients leave, one after the other
_BETWEEN_LEAVES_S = 0.003


def _client_of(server: Server, number: int) -> socket.socket:
    """Hand one stream over; the client's end."""
    plan = server.plan
    if plan.tcp:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            sent, _ = listener.accept()
    else:
        client, sent = socket.socketpair()
    client.settimeout(_TIMEOUT_S)
    with sent:
        sent.setblocking(False)
        hand_over(server.path, plan.socket_type, render(plan.handoff, number), sent.fileno())
    return client


def _first_token_ns(client: socket.socket) -> int:
    """Read until the first event is there; when it was."""
    received = b""
    while b"data: " not in received:
        piece = client.recv(65_536)
        if not piece:
            raise ProbeError(f"a stream ended before its first token: {received[:300]!r}")
        received += piece
    return time.monotonic_ns()


def added_to_first_token_ns(server: Server, upstream: Upstream, count: int) -> list[int]:
    """What the server adds to the time to the first token, for `count` streams one after another.

    From the handoff to the request at the upstream, and from the upstream's first token to the client's. The stream is
    read to its end, so a server that keeps connections finds one for the next.
    """
    found: list[int] = []
    for number in range(_FIRST_NUMBER, _FIRST_NUMBER + count):
        started_ns = time.monotonic_ns()
        with _client_of(server, number) as client:
            arrived_ns = _first_token_ns(client)
            while client.recv(65_536):
                pass
        story = upstream.story(number)
        found.append(story.request_ns - started_ns + arrived_ns - story.first_token_ns)
    return found


def _wait_for(upstream: Upstream, number: int, moment: Literal["request_ns", "closed_ns"]) -> int:
    """When that was for the stream with this number; waits until it has been."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not (at_ns := int(getattr(upstream.story(number), moment))):
        if time.monotonic() > deadline_s:
            raise ProbeError(f"the upstream has seen no {moment.removesuffix('_ns')} of a stream in {_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    return at_ns


def _leave(clients: Sequence[tuple[int, socket.socket]], upstream: Upstream) -> list[int]:
    """Close one client after another; from each close to the closing of the upstream's connection."""
    left_ns: dict[int, int] = {}
    for number, client in clients:
        left_ns[number] = time.monotonic_ns()
        client.close()
        time.sleep(_BETWEEN_LEAVES_S)
    return [_wait_for(upstream, number, "closed_ns") - at_ns for number, at_ns in left_ns.items()]


def gone_to_closed_ns(server: Server, upstream: Upstream, count: int, *, before_first_token: bool) -> list[int]:
    """From a client's close to the closing of its connection at the upstream, for `count` streams."""
    found: list[int] = []
    upstream.hold(is_holding=before_first_token)
    upstream.go_on(is_endless=True)  # a stream that ended by itself would say nothing about its client
    try:
        first = _FIRST_NUMBER + (500_000 if before_first_token else 250_000)
        for batch in range(0, count, _BATCH):
            with contextlib.ExitStack() as stack:
                numbers = range(first + batch, first + min(batch + _BATCH, count))
                clients = [(number, stack.enter_context(_client_of(server, number))) for number in numbers]
                for number, client in clients:
                    _wait_for(upstream, number, "request_ns")
                    if not before_first_token:
                        _first_token_ns(client)
                found += _leave(clients, upstream)
    finally:
        upstream.hold(is_holding=False)
        upstream.go_on(is_endless=False)
    return found


def percentiles_ms(values_ns: Sequence[int]) -> dict[str, Any]:
    """Count, p50, p99 and max in milliseconds; a percentile is a value that occurred."""
    if not values_ns:
        return {"count": 0}
    p50, p99, most = np.percentile(values_ns, [50, 99, 100], method="inverted_cdf") / 1e6
    return {"count": len(values_ns), "p50": float(p50), "p99": float(p99), "max": float(most)}
