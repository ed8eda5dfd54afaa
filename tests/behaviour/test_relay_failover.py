"""Who is asked when an upstream fails before the first token: another, the same again, or nobody.

One daemon for all: each test has a model of its own, and upstreams that serve only that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import LATE_S_MAX, Answer, read_all
from tests.behaviour.relay_helpers import Relay, assert_complete, by, error_at_end, refusal, relaying
from tests.ports import unused_port
from tests.upstream import (
    After,
    Fault,
    Gate,
    Plan,
    Request,
    Upstream,
    delta,
    error_event,
    openai_stream,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENS = ["The", " quick", " brown"]
FINE = Plan(openai_stream(TOKENS))
# Not repeated, and counted by the breaker.
BROKEN = refusal(501)
OPEN_S = 4  # longer than what happens while it is open takes on a busy machine
ON_REQUEST = (After.CLOSE_ON_REQUEST, After.RESET_ON_REQUEST)


def group(upstream: Upstream, model: str, *transports: str, **options: object) -> list[dict[str, object]]:
    """Upstreams for one model, the first preferred."""
    options = {"models": [model], "breaker_failures": 0, **options}
    return [
        by(transport, upstream, f"{model}-{transport}", **{"priority": index, **options})
        for index, transport in enumerate(transports)
    ]


def tables(upstream: Upstream, other: Upstream, port: int) -> list[dict[str, object]]:
    def nobody(model: str) -> dict[str, object]:
        return {"name": f"{model}-nobody", "api_base": f"http://127.0.0.1:{unused_port()}/v1", "models": [model]}

    trial = {"breaker_failures": 3, "breaker_open_s": OPEN_S}
    return [
        # Nothing is kept, or a reset before the head would be a stale connection's.
        *group(upstream, "plain", "tcp", "unix", idle_connections_max=0),
        *group(upstream, "secure", "tls", "h2", idle_connections_max=0),
        *(nobody("absent-plain"), *group(upstream, "absent-plain", "tcp", priority=1)),
        *(nobody("absent-secure"), *group(upstream, "absent-secure", "tls", priority=1)),
        *group(upstream, "waits", "tcp"),
        *group(upstream, "patient", "tcp", "unix"),
        *group(upstream, "too-patient", "tcp"),
        *group(upstream, "breaks-tcp", "tcp", **trial),
        *group(upstream, "breaks-tls", "tls", **trial),
        *group(upstream, "trial", "tcp", breaker_failures=1, breaker_open_s=OPEN_S),
        *(
            table
            for after in After
            for transport in ("tcp", "unix", "tls")
            for table in group(upstream, f"stale-{transport}-{after.value}", transport)
        ),
        *group(upstream, "alone", "tcp"),
        *group(other, "fresh", "tcp"),
        {"name": "back", "api_base": f"http://127.0.0.1:{port}/v1", "models": ["back"], **trial},
    ]


@pytest.fixture(name="other", scope="module")
def _other() -> Iterator[Upstream]:
    """A server at another address: connections are kept by address, whatever the names of upstreams."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(name="port", scope="module")
def _port() -> int:
    """Where nobody listens, until a test does."""
    return unused_port()


@pytest.fixture(name="relay", scope="module")
def _relay(kernel: str, other: Upstream, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("relay")

    def all_tables(upstream: Upstream) -> list[dict[str, object]]:
        return tables(upstream, other, port)

    with relaying(kernel, directory, all_tables, "", backoff_ms=10, retry_reserve=1000) as relay:
        yield relay


def asked(relay: Relay, model: str, *plans: Plan) -> tuple[Answer, list[Request], str]:
    """A stream of this model: what its client got, what upstreams were asked for it, and the request's id."""
    before = len(relay.upstream.requests())
    request_id = f"{model}-{time.monotonic_ns()}"
    client, _ = relay.open(*plans, model=model, request_id=request_id)
    with client:
        answer = read_all(client)
    return answer, relay.upstream.requests()[before:], request_id


_NO_UTF_8 = b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'
FAILS_ONCE = {
    **{f"{status}": refusal(status) for status in (500, 502, 503, 504)},
    "reset before the head": Plan(fault=Fault.RESET, fault_in_head=True, fault_at=0),
    "cut in the head": Plan(fault=Fault.CUT, fault_in_head=True, fault_at=20),
    "cut before the first token": Plan(fault=Fault.CUT),
    "error object before the first token": Plan([error_event("overloaded")]),
    "a token that is no UTF-8": Plan([_NO_UTF_8], fault=Fault.CUT),
    # Tokens of the upstream's, but nothing that this client gets.
    "thoughts": Plan([delta(reasoning_content="hm"), delta(reasoning_content="so")], fault=Fault.RESET),
    "html": Plan([b"<html>"], content_type="text/html"),
    "429": refusal(429),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("model", ["plain", "secure"])
@pytest.mark.parametrize("name", FAILS_ONCE)
def test_what_fails_once_is_repeated_and_the_client_sees_nothing_of_it(relay: Relay, name: str, model: str) -> None:
    with relay.ends("complete"):
        answer, requests, request_id = asked(relay, model, FAILS_ONCE[name], FINE)
    assert_complete(answer, TOKENS)
    first, second = requests
    assert first.body == second.body
    assert first.header("X-Request-Id") == second.header("X-Request-Id") == request_id
    assert relay.upstream.connections(used=False)[first.connection].kind == ("tcp" if model == "plain" else "tls")
    row = relay.row(request_id)
    assert (row["retries"], row["model_asked"], row["end_reason"]) == (1, model, "complete")
    assert row["upstream"] == ("plain-unix" if model == "plain" else "secure-h2")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_request_that_is_refused_is_not_repeated(relay: Relay, status: int) -> None:
    answer, requests, _ = asked(relay, "plain", refusal(status), FINE)
    assert answer.status == status
    assert b"planned" in answer.body
    assert len(requests) == 1


@pytest.mark.parametrize("model", ["plain", "secure"])
def test_nothing_is_repeated_once_the_client_has_a_token(relay: Relay, model: str) -> None:
    broken = Plan(openai_stream(TOKENS, finish=None, done=False), fault=Fault.RESET)
    answer, requests, _ = asked(relay, model, broken, FINE)
    error_at_end(answer)
    assert len(requests) == 1


@pytest.mark.parametrize("model", ["plain", "secure", "alone"])
def test_attempts_have_an_end(relay: Relay, model: str) -> None:
    answer, requests, request_id = asked(relay, model, refusal(500))
    assert answer.status == 502
    assert len(requests) == 3
    assert relay.row(request_id)["retries"] == 2


@pytest.mark.parametrize(
    ("model", "server"), [("absent-plain", "absent-plain-tcp"), ("absent-secure", "absent-secure-tls")]
)
def test_who_refuses_connections_is_passed_over(relay: Relay, model: str, server: str) -> None:
    answer, _, request_id = asked(relay, model, FINE)
    assert_complete(answer, TOKENS)
    row = relay.row(request_id)
    assert (row["upstream"], row["retries"]) == (server, 1)
    failures = f'streaming_daemon_upstream_attempt_failures_total{{kind="connect_failed",upstream="{model}-nobody"}}'
    assert relay.daemon.metric(failures) == 1
    assert relay.daemon.metric(f'streaming_daemon_upstream_retries_total{{upstream="{server}"}}') == 1


def test_retry_after_is_waited_for_where_it_is_short(relay: Relay) -> None:
    answer, (first, second), _ = asked(relay, "waits", refusal(429, Retry_After="1"), FINE)
    assert_complete(answer, TOKENS)
    assert 0.99 <= second.at_s - first.at_s < 3


def test_who_asks_for_patience_is_left_alone_and_others_serve(relay: Relay) -> None:
    answer, requests, _ = asked(relay, "patient", refusal(429, Retry_After="60"), FINE)
    assert_complete(answer, TOKENS)
    assert len(requests) == 2
    answer, requests, request_id = asked(relay, "patient")
    assert_complete(answer, TOKENS)
    row = relay.row(request_id)
    assert (row["upstream"], row["retries"], len(requests)) == ("patient-unix", 0, 1)


def test_a_retry_after_that_is_too_long_is_passed_on(relay: Relay) -> None:
    for count in (1, 0):  # the second client is told without another request
        answer, requests, _ = asked(relay, "too-patient", refusal(429, Retry_After="60"))
        assert answer.status == 429
        assert 50 <= int(answer.headers["retry-after"]) <= 60
        assert len(requests) == count


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_the_breaker_opens_and_recovers(relay: Relay, transport: str) -> None:
    model = f"breaks-{transport}"
    state = f'streaming_daemon_upstream_breaker_state{{state="%s",upstream="{model}-{transport}"}}'
    for _ in range(3):
        assert relay.daemon.metric(state % "closed") == 1
        assert asked(relay, model, BROKEN)[0].status == 502
    opened_s = time.monotonic()
    assert relay.daemon.metric(state % "open") == 1
    answer, requests, _ = asked(relay, model, FINE)
    assert answer.status == 503
    assert 1 <= int(answer.headers["retry-after"]) <= OPEN_S
    assert not requests
    while (answer := asked(relay, model, FINE)[0]).status == 503:
        assert time.monotonic() - opened_s < OPEN_S + LATE_S_MAX, "the breaker does not let anybody try"
        time.sleep(0.02)
    assert time.monotonic() - opened_s >= OPEN_S - 0.1
    assert_complete(answer, TOKENS)
    assert relay.daemon.metric(state % "half_open") == 1
    assert_complete(asked(relay, model, FINE)[0], TOKENS)
    relay.daemon.wait_for_metric(state % "closed", 1)


def test_a_breaker_on_trial_lets_one_try(relay: Relay) -> None:
    assert asked(relay, "trial", BROKEN)[0].status == 502
    before, opened_s, gate = len(relay.upstream.requests("trial")), time.monotonic(), Gate()
    slow = Plan([gate, *openai_stream(TOKENS)])
    begun = [relay.open(slow, model="trial")[0]]
    while len(relay.upstream.requests("trial")) == before:
        assert time.monotonic() - opened_s < OPEN_S + LATE_S_MAX
        time.sleep(0.05)
        begun.append(relay.open(slow, model="trial")[0])
    assert asked(relay, "trial")[0].status == 503
    gate.open()
    assert [read_all(client).status for client in begun].count(200) == 1
    assert len(relay.upstream.requests("trial")) == before + 1


def test_a_breaker_that_refused_connections_opened_tries_with_one_stream(relay: Relay, port: int) -> None:
    """It waits as long as any other, though its upstream is back; then one stream at a time tries."""
    state = 'streaming_daemon_upstream_breaker_state{state="%s",upstream="back"}'
    for _ in range(3):
        assert asked(relay, "back")[0].status == 502
    opened_s, gate = time.monotonic(), Gate()
    assert relay.daemon.metric(state % "open") == 1
    with Upstream(tcp_port=port) as back:
        back.answer("back", Plan([gate, *openai_stream(TOKENS)]))
        begun = [relay.open(model="back")[0]]
        while not back.requests("back"):
            assert time.monotonic() - opened_s < OPEN_S + LATE_S_MAX, "the breaker does not let anybody try"
            time.sleep(0.05)
            begun.append(relay.open(model="back")[0])
        assert time.monotonic() - opened_s > OPEN_S - 0.5
        assert relay.daemon.metric(state % "half_open") == 1
        assert asked(relay, "back")[0].status == 503, "another is trying"
        gate.open()
        assert [read_all(client).status for client in begun].count(200) == 1
        back.answer("back", FINE)
        assert_complete(asked(relay, "back")[0], TOKENS)
        relay.daemon.wait_for_metric(state % "closed", 1)
        assert len(back.requests("back")) == 2


@pytest.mark.parametrize("after", [After.CLOSE, *ON_REQUEST])
@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
def test_a_kept_connection_that_is_dead_is_replaced_without_a_word(relay: Relay, transport: str, after: After) -> None:
    model = f"stale-{transport}-{after.value}"
    stale = f'streaming_daemon_upstream_stale_connections_total{{upstream="{model}-{transport}"}}'
    dropped = relay.upstream.journal.dropped_count
    assert_complete(asked(relay, model, Plan(openai_stream(TOKENS), after=after))[0], TOKENS)
    relay.daemon.wait_idle()
    answer, requests, request_id = asked(relay, model, FINE)
    assert_complete(answer, TOKENS)
    assert len(requests) == 1
    assert relay.row(request_id)["retries"] == 0
    assert relay.daemon.metric(f'streaming_daemon_upstream_retries_total{{upstream="{model}-{transport}"}}') == 0
    if after in ON_REQUEST:
        assert relay.upstream.journal.dropped_count == dropped + 1
        if transport != "tls":  # libcurl does not say
            assert relay.daemon.metric(stale) == 1


def test_a_fresh_connection_that_dies_is_a_failure(relay: Relay, other: Upstream) -> None:
    other.answer("fresh", Plan(fault=Fault.RESET, fault_in_head=True, fault_at=0))
    before = len(other.requests("fresh"))
    answer, _, request_id = asked(relay, "fresh")
    assert answer.status == 502
    assert len(other.requests("fresh")) == before + 3
    assert relay.row(request_id)["retries"] == 2
