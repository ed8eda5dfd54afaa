"""What relaying counts, and that clients cannot make its labels grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.openai import accounts as module
from backends.openai.accounts import MODELS_MAX, OTHER, Histogram, ModelAccounts, RelayAccounts
from backends.openai.ledger import LedgerRow
from backends.relay import FailureKind, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable


def row(
    model: str = "llama",
    *,
    prompt: int | None = 10,
    completion: int | None = 5,
    estimated: bool = False,
    end_reason: str = "complete",
) -> LedgerRow:
    return LedgerRow(
        time="2026-11-21T07:30:00Z",
        request_id="r",
        user=None,
        upstream="a",
        model_asked="llama",
        model_answered=model,
        prompt_tokens=prompt,
        completion_tokens=completion,
        estimated=estimated,
        first_token_ms=500.0,
        duration_ms=2500.0,
        bytes=100,
        retries=0,
        end_reason=end_reason,
        status=200,
        error="",
    )


def outcome(
    reason: str = "complete",
    *,
    first_token_s: float | None = 0.5,
    last_token_s: float | None = 2.5,
    token_count: int = 5,
    malformed: int = 0,
    cancel_s: float | None = None,
    stale: int = 0,
) -> Outcome:
    return Outcome(
        reason=reason,
        is_complete=reason == "complete",
        bytes_sent=100,
        duration_s=3.0,
        first_token_s=first_token_s,
        last_token_s=last_token_s,
        token_count=token_count,
        prompt_tokens=None,
        completion_tokens=None,
        malformed_events=malformed,
        cancel_s=cancel_s,
        stale_retries=stale,
    )


def only(values: Iterable[ModelAccounts]) -> ModelAccounts:
    (found,) = values
    return found


def test_the_bounds_are_the_conventions() -> None:
    assert [int(bound) for bound in module.USAGE_BOUNDS_TOKENS] == [
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    ]  # fmt: skip
    for bounds in (
        module.FIRST_TOKEN_BOUNDS_S,
        module.TOKEN_BOUNDS_S,
        module.DURATION_BOUNDS_S,
        module.CANCEL_BOUNDS_S,
    ):
        assert list(bounds) == sorted(set(bounds))


def test_a_bucket_includes_its_upper_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.count == 5
    assert histogram.total == pytest.approx(6.6)


def test_a_complete_stream_is_counted_under_its_models() -> None:
    accounts = RelayAccounts()
    accounts.stream_ended("a", "llama", row("llama-3"), outcome())
    upstream = accounts.of("a")
    ((models, found),) = upstream.models.items()
    assert models == ("llama", "llama-3")
    assert found.ended == {"complete": 1}
    assert found.first_token.total == 0.5
    assert found.per_token.total == pytest.approx((2.5 - 0.5) / 4)
    assert found.durations[""].total == 3.0
    assert found.usage["input", False].total == 10
    assert found.usage["output", False].total == 5
    assert upstream.attempts == 1
    assert upstream.cancellations == 0


def test_estimates_are_kept_apart_and_unknown_tokens_are_not_counted() -> None:
    accounts = RelayAccounts()
    accounts.stream_ended("a", "llama", row(prompt=None, completion=7, estimated=True), outcome())
    found = only(accounts.of("a").models.values())
    assert set(found.usage) == {("output", True)}


@pytest.mark.parametrize(
    ("completion", "tokens", "expected"), [(None, 5, 0.5), (1, 5, None), (None, 1, None), (3, 9, 1.0)]
)
def test_time_per_output_token_needs_two(completion: int | None, tokens: int, expected: float | None) -> None:
    accounts = RelayAccounts()
    accounts.stream_ended("a", "llama", row(completion=completion), outcome(token_count=tokens))
    histogram = only(accounts.of("a").models.values()).per_token
    assert histogram.count == (expected is not None)
    assert histogram.total == pytest.approx(expected or 0.0)


def test_a_stream_that_was_cut_has_a_first_token_but_no_time_per_token() -> None:
    accounts = RelayAccounts()
    accounts.attempt_failed("a", "llama", FailureKind.CUT)
    accounts.stream_ended("a", "llama", row(), outcome("upstream_cut", malformed=2, stale=1))
    upstream = accounts.of("a")
    found = only(upstream.models.values())
    assert found.first_token.count == 1
    assert found.per_token.count == 0
    assert set(found.durations) == {"upstream_cut"}
    assert (upstream.malformed_events, upstream.stale_connections) == (2, 1)
    assert upstream.attempts == 1


def test_cancellations_are_counted_and_timed() -> None:
    accounts = RelayAccounts()
    accounts.stream_ended("a", "llama", row(), outcome("client_gone", cancel_s=0.002))
    accounts.stream_ended("a", "llama", row(), outcome("client_gone", first_token_s=None))
    accounts.stream_ended("a", "llama", row(), outcome())
    upstream = accounts.of("a")
    assert upstream.cancellations == 2
    assert upstream.cancel.count == 1


def test_failures_retries_and_breakers() -> None:
    accounts = RelayAccounts()
    accounts.attempt_failed("a", "llama", FailureKind.STATUS)
    accounts.attempt_failed("a", "llama", FailureKind.CONNECT)
    accounts.retried("b")
    accounts.stream_ended("b", "llama", row(), outcome())
    accounts.breaker_changed("a", "open")
    accounts.breaker_changed("a", "half_open")
    a, b = accounts.of("a"), accounts.of("b")
    assert a.failures == {(OTHER, "status"): 1, (OTHER, "connect_failed"): 1}
    assert (a.attempts, b.attempts) == (2, 1)
    assert (a.retries, b.retries) == (0, 1)
    assert a.breaker_state == "half_open"
    assert a.breaker_changes == {"open": 1, "half_open": 1}


def test_a_stream_for_which_nobody_could_be_asked_is_nobodys() -> None:
    accounts = RelayAccounts()
    accounts.stream_ended("", "", row(""), outcome("upstream_unreachable", first_token_s=None))
    assert list(accounts.upstreams) == [module.NO_UPSTREAM]
    assert accounts.of("").attempts == 0


def test_models_that_nobody_serves_use_up_no_labels() -> None:
    accounts = RelayAccounts()
    for index in range(10_000):
        accounts.attempt_failed("a", f"nonsense-{index}", FailureKind.STATUS)
        accounts.stream_ended("a", f"nonsense-{index}", row(""), outcome("upstream_error", first_token_s=None))
    accounts.stream_ended("a", "llama", row(), outcome())
    accounts.attempt_failed("a", "llama", FailureKind.STATUS)
    upstream = accounts.of("a")
    assert {models.asked for models in upstream.models} == {OTHER, "llama"}
    assert {asked for asked, _ in upstream.failures} == {OTHER, "llama"}


def test_an_upstream_that_serves_every_name_has_64_models_and_the_rest() -> None:
    accounts = RelayAccounts()
    for index in range(5000):
        accounts.stream_ended("a", f"m-{index}", row(f"x-{index % 97}"), outcome())
    accounts.stream_ended("a", "y" * 1000, row("z" * 1000), outcome())
    upstream = accounts.of("a")
    names = {name for models in upstream.models for name in models}
    assert len(names - {OTHER}) <= MODELS_MAX
    assert len(upstream.models) <= 3 * MODELS_MAX
    assert sum(found.ended.total() for found in upstream.models.values()) == 5001
