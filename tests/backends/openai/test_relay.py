"""Stories of streams: who is asked, who is asked next, what the client is told, and what stands in the ledger."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from backends.interface import Fields, Request
from backends.openai.ledger import LedgerRow
from backends.relay import Attempt, Failure, FailureKind, RelayError
from tests.backends.openai.making import Clock, answer, backend, failure, opened, outcome, several, upstream

if TYPE_CHECKING:
    from pathlib import Path

    from backends.openai import OpenAI
    from backends.openai.relay import OpenAIRelay

CONNECT = failure(FailureKind.CONNECT)


def refused(one: OpenAIRelay, found: Failure) -> RelayError:
    with pytest.raises(RelayError) as raised:
        one.failed(found)
    return raised.value


def active(one: OpenAI) -> list[int]:
    return [state.active_count for state in one.upstreams()]


def rows(path: Path, one: OpenAI) -> list[dict[str, Any]]:
    one.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- one attempt


def test_an_attempt_is_all_that_the_daemon_needs() -> None:
    one = backend(api_key="key-of-mine")
    relay = opened(one, model="m", request_id="r")
    attempt = relay.first()
    assert isinstance(attempt, Attempt)
    assert attempt.origin is one.origins()[0]
    assert attempt.path == "/v1/chat/completions"
    assert dict(attempt.headers)["Authorization"] == "Bearer key-of-mine"
    assert dict(attempt.headers)["X-Request-Id"] == "r"
    assert not {name.lower() for name, _ in attempt.headers} & {"host", "content-length"}
    assert json.loads(attempt.body)["model"] == "m"
    assert (attempt.delay_ms, relay.request_id, relay.format, relay.passes_usage) == (0, "r", "content", False)
    assert active(one) == [1]


def test_a_completion_is_asked_for_where_the_upstream_has_completions() -> None:
    one = backend(api_base="http://localhost:8000/some/v1")
    relay = one.open(Request(Fields(), b'{"prompt":"p"}', {"host": "here"}, "completions"))
    attempt = relay.first()
    assert attempt.path == "/some/v1/completions"
    assert json.loads(attempt.body)["prompt"] == "p"
    assert relay.format == "openai"


def test_the_model_is_sent_by_the_upstreams_name_for_it() -> None:
    clock = Clock()
    one = several(clock, upstream("a", models=["m=x"]), upstream("b", models=["m"], priority=1))
    relay = opened(one, model="m")
    assert json.loads(relay.first().body)["model"] == "x"
    assert json.loads(relay.failed(CONNECT).body)["model"] == "m"


def test_a_models_label_is_bounded() -> None:
    one = backend(model="default", models=[])
    assert opened(one).first().model == "default"
    relay = opened(one, model="other-model")
    assert relay.first().model == "other"
    relay.answered("x")
    assert opened(one, model="other-model").first().model == "other-model"
    for index in range(100):
        relay = opened(one, model=f"m{index}")
        relay.first()
        relay.answered("")
    labels = {opened(one, model=f"m{index}").first().model for index in range(100)}
    assert len(labels) == 64


# ---- asking again


def test_another_upstream_is_asked_at_once() -> None:
    clock = Clock()
    one = several(clock, upstream("a"), upstream("b", priority=1), upstream("c", priority=2))
    relay = opened(one)
    assert relay.first().origin.name == "a"
    second = relay.failed(CONNECT)
    assert (second.origin.name, second.delay_ms) == ("b", 0)
    third = relay.failed(answer(503))
    assert (third.origin.name, third.delay_ms) == ("c", 0)
    assert active(one) == [0, 0, 1]
    error = refused(relay, failure(FailureKind.RESET))
    assert (error.status, error.code) == (502, "upstream_disconnected")
    assert active(one) == [0, 0, 0]
    assert [one.accounts.of(name).retries for name in "abc"] == [0, 1, 1]


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - {FailureKind.STATUS}, key=str))
def test_which_failures_another_upstream_may_mend(kind: FailureKind) -> None:
    one = several(Clock(), upstream("a"), upstream("b", priority=1))
    relay = opened(one)
    relay.first()
    if kind is FailureKind.NO_RESOURCES:
        assert refused(relay, failure(kind)).status == 503
    else:
        assert relay.failed(failure(kind)).origin.name == "b"


@pytest.mark.parametrize("kind", FailureKind)
def test_nobody_else_is_asked_once_the_client_has_content(kind: FailureKind) -> None:
    one = several(Clock(), upstream("a"), upstream("b", priority=1))
    relay = opened(one)
    relay.first()
    relay.answered("m")
    refused(relay, failure(kind, is_streaming=True))
    assert active(one) == [0, 0]


def test_nobody_else_is_asked_once_the_client_has_had_something() -> None:
    relay = opened(several(Clock(), upstream("a"), upstream("b", priority=1)))
    relay.first()
    relay.answered("m")
    assert refused(relay, failure(FailureKind.CUT, is_streaming=True)).code == "upstream_disconnected"


def test_another_is_asked_while_tokens_came_that_are_not_for_the_client() -> None:
    one = several(Clock(), upstream("a"), upstream("b", priority=1))
    relay = opened(one)
    relay.first()
    relay.answered("thinks")
    assert relay.failed(failure(FailureKind.CUT)).origin.name == "b"
    assert active(one) == [0, 1]
    relay.answered("n")
    relay.ended(outcome())
    assert active(one) == [0, 0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 499, 501, 505])
def test_nobody_else_is_asked_what_one_has_refused(status: int) -> None:
    one = several(Clock(), upstream("a"), upstream("b", priority=1))
    relay = opened(one)
    relay.first()
    error = refused(relay, answer(status, {"error": {"message": "no"}}))
    assert error.status == (status if status < 500 else 502)


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - {FailureKind.STATUS}, key=str))
def test_the_only_upstream_is_asked_again_for_what_may_pass(kind: FailureKind) -> None:
    relay = opened(backend())
    relay.first()
    if kind in {FailureKind.CONNECT, FailureKind.CONNECT_TIMEOUT, FailureKind.RESET}:
        assert 0 <= relay.failed(failure(kind)).delay_ms <= 100
    else:
        refused(relay, failure(kind))


def test_the_wait_grows_and_attempts_are_bounded() -> None:
    longest = [0, 0, 0]
    for seed in range(300):
        relay = opened(backend(seed=seed, attempts_max=4, breaker_failures=0, backoff_max_ms=300))
        relay.first()
        for index in range(3):
            longest[index] = max(longest[index], relay.failed(answer(500)).delay_ms)
        assert refused(relay, answer(500)).code == "upstream_error"
    assert [round(value, -1) for value in longest] == [100, 200, 300]


def test_when_all_have_failed_once_the_first_that_may_is_asked_again() -> None:
    one = several(Clock(), upstream("a"), upstream("b", priority=1), backoff_ms=1000, attempts_max=4)
    relay = opened(one)
    relay.first()
    assert relay.failed(failure(FailureKind.HEAD_TIMEOUT)).delay_ms == 0
    third = relay.failed(answer(502))
    assert third.origin.name == "b", "a took all the time there is"
    assert third.delay_ms > 0


def test_who_asks_for_a_short_wait_gets_it() -> None:
    clock = Clock()
    one = backend(clock)
    relay = opened(one)
    relay.first()
    again = relay.failed(answer(429, retry_after="3"))
    assert 3000 <= again.delay_ms <= 3100
    with pytest.raises(RelayError) as raised:
        opened(one).first()
    assert (raised.value.status, raised.value.code, raised.value.retry_after_s) == (429, "upstream_rate_limited", 3)
    clock.pass_s(3)
    assert opened(one).first().delay_ms == 0


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_wait_is_the_clients_to_take(status: int) -> None:
    clock = Clock()
    relay = opened(backend(clock))
    relay.first()
    error = refused(relay, answer(status, {"error": {"message": "slow down"}}, retry_after="60"))
    assert (error.status, error.retry_after_s) == (status, 60)
    assert "slow down" in error.message


def test_who_asks_to_be_left_alone_is_no_failure_of_the_breaker() -> None:
    clock = Clock()
    one = several(clock, upstream("a"), upstream("b", priority=1), retry_reserve=100)
    for _ in range(10):
        relay = opened(one)
        if relay.first().origin.name == "a":
            relay.failed(answer(503, retry_after="2"))
        clock.pass_s(1)
    assert one.upstreams()[0].breaker_state == "closed"


def test_a_quota_that_is_used_up_is_not_waited_for() -> None:
    relay = opened(backend())
    relay.first()
    error = refused(relay, answer(429, {"error": {"code": "insufficient_quota", "message": "pay"}}))
    assert (error.status, error.message) == (429, "the upstream answered with 429: pay")


def test_the_budget_is_for_all_streams() -> None:
    one = several(Clock(), upstream("a"), upstream("b"), retry_reserve=3, retry_percent=0, breaker_failures=0)
    retried = 0
    for _ in range(10):
        relay = opened(one)
        relay.first()
        try:
            relay.failed(CONNECT)
        except RelayError:
            continue
        retried += 1
    assert retried == 3


def test_an_upstream_that_a_request_names() -> None:
    one = several(Clock(), upstream("a"), upstream("b", priority=1))
    relay = opened(one, upstream="b")
    assert relay.first().origin.name == "b"
    assert relay.failed(CONNECT).origin.name == "b", "nobody else"


def test_an_upstream_that_a_reload_took_away_is_not_asked_any_more() -> None:
    one = several(Clock(), upstream("a"), upstream("b", priority=1))
    relay = opened(one)
    relay.first()
    one.reload({"upstreams": [upstream("a")]})
    assert relay.failed(CONNECT).origin.name == "a"
    assert active(one) == [1]


# ---- breakers


def test_the_attempts_of_one_stream_are_one_failure() -> None:
    one = backend(attempts_max=3, breaker_failures=2)
    relay = opened(one)
    relay.first()
    for _ in range(2):
        relay.failed(failure(FailureKind.CONNECT))
    refused(relay, failure(FailureKind.CONNECT))
    assert one.upstreams()[0].breaker_state == "closed"
    another = opened(one)
    another.first()
    refused(another, failure(FailureKind.CONNECT))
    assert one.upstreams()[0].breaker_state == "open"


def test_failures_open_the_breaker_and_answers_close_it() -> None:
    clock = Clock()
    one = backend(clock, attempts_max=1)
    for _ in range(3):
        relay = opened(one)
        relay.first()
        refused(relay, CONNECT)
    with pytest.raises(RelayError) as raised:
        opened(one).first()
    assert (raised.value.status, raised.value.retry_after_s) == (503, 30)
    clock.pass_s(30)
    for _ in range(2):
        relay = opened(one)
        relay.first()
        relay.answered("m")
    assert one.upstreams()[0].breaker_state == "closed"
    assert one.accounts.of("default").breaker_changes == {"open": 1, "half_open": 1, "closed": 1}


def test_a_client_that_leaves_says_nothing_about_the_upstream() -> None:
    one = backend(attempts_max=1, breaker_failures=1)
    relay = opened(one)
    relay.first()
    relay.ended(outcome("client_gone"))
    assert (one.upstreams()[0].breaker_state, active(one)) == ("closed", [0])


def test_a_refusal_is_an_answer() -> None:
    clock = Clock()
    one = backend(clock, attempts_max=1, breaker_failures=1, breaker_successes=1)
    relay = opened(one)
    relay.first()
    refused(relay, CONNECT)
    clock.pass_s(30)
    relay = opened(one)
    relay.first()
    refused(relay, answer(400))
    assert one.upstreams()[0].breaker_state == "closed"


def test_a_key_that_is_refused_is_logged_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    one = backend(api_key="secret-of-mine")
    for statuses in ((401, 403), (401,)):
        for status in statuses:
            relay = opened(one)
            relay.first()
            refused(relay, answer(status, {"error": {"message": "wrong: secret-of-mine"}}))
        relay = opened(one)
        relay.first()
        relay.answered("m")
    assert [record.getMessage() for record in caplog.records] == [
        "upstream refuses the key, or what it is used for"
    ] * 2
    assert "secret-of-mine" not in caplog.text


# ---- the ledger


def row_of(
    tmp_path: Path, end: str = "complete", failures: tuple[Failure, ...] = (), **changes: object
) -> dict[str, Any]:
    path = tmp_path / "ledger.jsonl"
    one = backend(ledger_file=str(path), attempts_max=2)
    relay = opened(one, user_id=7, request_id="r", model="m", prompt="abcdefghij")
    relay.first()
    for found in failures[:-1]:
        relay.failed(found)
    if failures:
        refused(relay, failures[-1])
    if end == "complete":
        relay.answered("m-2026")
    relay.ended(outcome(end, **changes))
    (row,) = rows(path, one)
    return row


def test_the_row_of_a_complete_stream(tmp_path: Path) -> None:
    assert row_of(tmp_path, prompt_tokens=11, completion_tokens=38) == {
        "time": "2026-09-21T14:13:20.000Z",
        "request_id": "r",
        "user": 7,
        "upstream": "default",
        "model_asked": "m",
        "model_answered": "m-2026",
        "prompt_tokens": 11,
        "completion_tokens": 38,
        "estimated": False,
        "first_token_ms": 250.0,
        "duration_ms": 2500.0,
        "bytes": 500,
        "retries": 0,
        "end_reason": "complete",
        "status": 200,
        "error": "",
    }


def test_what_the_upstream_does_not_say_is_estimated(tmp_path: Path) -> None:
    row = row_of(tmp_path)
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (3, 40, True)


def test_the_row_of_a_stream_that_failed_everywhere(tmp_path: Path) -> None:
    row = row_of(tmp_path, "failed", (CONNECT, failure(FailureKind.HEAD_TIMEOUT)))
    assert (row["status"], row["retries"], row["end_reason"]) == (504, 1, "failed")
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (0, 0, True)
    assert row["error"].startswith("upstream_timeout: the upstream did not answer")
    assert row["first_token_ms"] is None


def test_the_row_of_a_stream_that_was_cut(tmp_path: Path) -> None:
    cut = failure(FailureKind.CUT, is_streaming=True)
    row = row_of(tmp_path, "cut", (cut,), bytes_sent=90, token_count=4, first_token_s=0.5)
    assert (row["status"], row["completion_tokens"], row["prompt_tokens"]) == (200, 4, 3)
    assert row["error"].startswith("upstream_disconnected: ")


@pytest.mark.parametrize(("status", "error"), [(504, "timeout: too long"), (0, "")])
def test_the_row_of_an_answer_in_one_piece(tmp_path: Path, status: int, error: str) -> None:
    row = row_of(tmp_path, "client_gone", bytes_sent=90, first_token_s=0.5, status=status, error=error)
    assert (row["status"], row["error"]) == (status, error)


def test_the_row_of_an_answer_in_one_piece_that_was_cut(tmp_path: Path) -> None:
    cut = failure(FailureKind.CUT, is_streaming=True)
    row = row_of(tmp_path, "cut", (cut,), bytes_sent=90, token_count=4, first_token_s=0.5, status=502, error="a: b")
    assert row["status"] == 502
    assert row["error"].startswith("upstream_disconnected: "), "what the relay itself knows is more"


def test_the_row_of_a_client_that_left_before_the_first_token(tmp_path: Path) -> None:
    row = row_of(tmp_path, "client_gone")
    assert (row["status"], row["prompt_tokens"], row["completion_tokens"], row["error"]) == (0, 0, 0, "")


def test_the_row_of_a_stream_that_nobody_could_take(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    one = backend(ledger_file=str(path), streams_max=1)
    first = opened(one)
    first.first()
    relay = opened(one)
    with pytest.raises(RelayError):
        relay.first()
    relay.ended(outcome("refused"))
    (row,) = rows(path, one)
    assert (row["upstream"], row["status"], row["retries"], row["end_reason"]) == ("", 503, 0, "refused")
    assert row["error"] == "upstream_busy: every upstream that can be asked has as many streams as are allowed"


def test_every_stream_is_in_the_accounts() -> None:
    one = backend()
    relay = opened(one, model="m")
    relay.first()
    relay.answered("m-1")
    relay.ended(outcome())
    accounts = one.accounts.of("default")
    assert accounts.attempts == 1
    assert {(models.asked, models.answered) for models in accounts.models} == {("m", "m-1")}


def test_a_stream_ends_once() -> None:
    relay = opened(backend())
    relay.first()
    relay.ended(outcome())
    for again in (lambda: relay.ended(outcome()), relay.first, lambda: relay.failed(CONNECT)):
        with pytest.raises(AssertionError):
            again()


# ---- any story


def waiting_answer(status: int, wait: str) -> Failure:
    return answer(status, retry_after=wait)


some_failures = some.builds(
    failure, some.sampled_from(sorted(set(FailureKind) - {FailureKind.STATUS}, key=str)), is_streaming=some.booleans()
) | some.builds(
    waiting_answer,
    some.sampled_from([400, 401, 404, 429, 500, 501, 503]),
    some.sampled_from(["", "1", "4", "60"]),
)
some_steps = some.lists(some.sampled_from(["open", "answer", "end", "leave", "wait"]) | some_failures, max_size=60)


class Stories:
    """Several streams at once on three upstreams; after each step the books must balance."""

    def __init__(self, seed: int) -> None:
        self.clock = Clock()
        self.randomness = random.Random(seed)
        self.rows: list[LedgerRow] = []
        tables = (upstream("a", streams_max=2), upstream("b", weight=2), upstream("c", priority=1, breaker_failures=1))
        self.one = several(self.clock, *tables, seed=seed)
        vars(self.one.ledger)["write"] = self.rows.append
        self.attempted: dict[OpenAIRelay, list[str]] = {}
        self.running: list[OpenAIRelay] = []
        self.waiting: list[OpenAIRelay] = []
        self.answered: set[OpenAIRelay] = set()
        self.stream_count = 0

    def ask(self, relay: OpenAIRelay, found: Failure | None) -> None:
        try:
            attempt = relay.first() if found is None else relay.failed(found)
        except RelayError as error:
            told = error
        else:
            self.attempted.setdefault(relay, []).append(attempt.origin.name)
            assert found is None or not found.is_streaming
            assert attempt.delay_ms >= 0
            assert attempt.delay_ms == 0 or attempt.origin.name in self.attempted[relay][:-1]
            self.running.append(relay)
            return
        assert 400 <= told.status <= 599
        assert told.code
        self.waiting.append(relay)

    def step(self, what: str | Failure) -> None:
        if what == "wait":
            self.clock.pass_s(11)
        elif what == "open":
            relay = opened(self.one)
            self.stream_count += 1
            self.ask(relay, None)
        elif not isinstance(what, Failure) and what in {"end", "leave"} and self.waiting:
            self.waiting.pop().ended(outcome("refused"))
        elif self.running:
            index = self.randomness.randrange(len(self.running))
            relay = self.running[index]
            if what == "answer":
                self.answer(relay)
            elif isinstance(what, Failure):
                del self.running[index]
                self.ask(relay, what._replace(is_streaming=what.is_streaming or relay in self.answered))
            else:
                del self.running[index]
                relay.ended(outcome("complete" if what == "end" else "client_gone"))

    def answer(self, relay: OpenAIRelay) -> None:
        if relay not in self.answered:
            self.answered.add(relay)
            relay.answered("m")

    def check(self) -> None:
        assert sum(active(self.one)) == len(self.running)
        assert self.one.upstreams()[0].active_count <= 2
        assert all(len(names) <= 3 for names in self.attempted.values())

    def finish(self) -> None:
        for relay in self.running + self.waiting:
            relay.ended(outcome("shutdown"))
        self.running, self.waiting = [], []
        assert active(self.one) == [0, 0, 0]
        assert len(self.rows) == self.stream_count
        assert self.one.accounts.of("a").failures.total() >= 0


@settings(max_examples=200)
@given(some_steps, some.integers(0, 1000))
def test_the_books_balance_whatever_happens(steps: list[str | Failure], seed: int) -> None:
    stories = Stories(seed)
    for step in steps:
        stories.step(step)
        stories.check()
    stories.finish()
