"""Every kind of failure and every status: what is done, who is to blame; Retry-After, backoff and the budget."""

from __future__ import annotations

import random
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.openai.retries import (
    RETRY_AFTER_S_MAX,
    Blame,
    RetryBudget,
    Verdict,
    backoff_ms,
    blame,
    retry_after_s,
    verdict,
    whole_seconds,
)
from backends.relay import Failure, FailureKind
from tests.backends.openai.making import EPOCH_S, answer, failure

FINAL, ELSEWHERE, AGAIN = Verdict.FINAL, Verdict.ELSEWHERE, Verdict.AGAIN
EXPECTED = {
    FailureKind.CONNECT: (AGAIN, Blame.UPSTREAM),
    FailureKind.CONNECT_TIMEOUT: (AGAIN, Blame.UPSTREAM),
    FailureKind.CERTIFICATE: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.RESET: (AGAIN, Blame.UPSTREAM),
    FailureKind.HEAD_TIMEOUT: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.HEAD_MALFORMED: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.HEAD_TOO_LARGE: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.HTTP_VERSION: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.REDIRECT: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.NOT_A_STREAM: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.COMPRESSED: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.FIRST_TOKEN_TIMEOUT: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.SILENCE_TIMEOUT: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.CUT: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.ERROR_EVENT: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.MALFORMED: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.EVENT_TOO_LARGE: (ELSEWHERE, Blame.UPSTREAM),
    FailureKind.NO_RESOURCES: (FINAL, Blame.NOBODY),
}


def test_the_table_is_whole() -> None:
    assert EXPECTED.keys() | {FailureKind.STATUS} == set(FailureKind)


@pytest.mark.parametrize("kind", EXPECTED)
def test_kinds(kind: FailureKind) -> None:
    expected, blamed = EXPECTED[kind]
    assert verdict(failure(kind)) is expected
    assert blame(failure(kind), has_retry_after=False) is blamed
    assert verdict(failure(kind, is_streaming=True)) is FINAL


@pytest.mark.parametrize("status", [*range(300, 600), 999])
def test_statuses(status: int) -> None:
    found = answer(status)
    assert verdict(found) is (AGAIN if status in {429, 500, 502, 503, 504} else FINAL)
    expected = Blame.REQUEST if 400 <= status < 500 else Blame.UPSTREAM
    if status == 429:
        expected = Blame.NOBODY
    assert blame(found, has_retry_after=False) is expected
    assert blame(found, has_retry_after=True) is (Blame.NOBODY if status == 503 else expected)
    assert verdict(Failure(FailureKind.STATUS, status, is_streaming=True)) is FINAL


def test_an_account_without_money_does_not_get_some_by_waiting() -> None:
    assert verdict(answer(429, {"error": {"code": "insufficient_quota"}})) is ELSEWHERE
    assert verdict(answer(429, {"error": {"code": "rate_limit_exceeded"}})) is AGAIN


def test_an_upstream_that_wants_no_retry() -> None:
    assert verdict(answer(500, x_should_retry="false")) is ELSEWHERE
    assert verdict(answer(500, x_should_retry="true")) is AGAIN


@pytest.mark.parametrize(
    ("data", "is_of_the_request"),
    [
        (b'{"error":{"type":"invalid_request_error","message":"x"}}', True),
        (b'{"error":{"code":400}}', True),
        (b'{"error":{"code":429}}', False),
        (b'{"error":{"code":500,"type":"server_error"}}', False),
        (b'{"object":"error","type":"BadRequestError","code":422}', True),
        (b"no json", False),
        (b"", False),
    ],
)
def test_error_events(data: bytes, *, is_of_the_request: bool) -> None:
    found = failure(FailureKind.ERROR_EVENT, body=data)
    assert verdict(found) is (FINAL if is_of_the_request else ELSEWHERE)
    assert blame(found, has_retry_after=False) is (Blame.REQUEST if is_of_the_request else Blame.UPSTREAM)


# ---- Retry-After


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "5"}, 5),
        ({"retry-after": " 0 "}, 0),
        ({"retry-after": "99999999999999999999"}, RETRY_AFTER_S_MAX),
        ({"retry-after": formatdate(EPOCH_S + 30, usegmt=True)}, 30),
        ({"retry-after": formatdate(EPOCH_S - 30, usegmt=True)}, 0),
        ({"retry-after": formatdate(EPOCH_S + 1e6, usegmt=True)}, RETRY_AFTER_S_MAX),
        ({"retry-after": "Wednesday, 09-Nov-94 08:49:37 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "\u0665"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, EPOCH_S) == expected


@pytest.mark.parametrize("text", ["Mon Sep 21 14:13:30 2026", "Mon, 21 Sep 2026 14:13:30 -0000"])
def test_a_date_without_a_zone_is_in_utc(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after_s({"retry-after": text}, EPOCH_S) == 10
    finally:
        monkeypatch.undo()
        time.tzset()


@given(some.text(max_size=40))
def test_any_retry_after(text: str) -> None:
    found = retry_after_s({"retry-after": text}, EPOCH_S)
    assert found is None or 0 <= found <= RETRY_AFTER_S_MAX


def test_a_wait_is_never_told_as_none() -> None:
    assert [whole_seconds(value) for value in (0, 0.1, 1, 1.01, 30)] == [1, 1, 1, 2, 30]


# ---- backoff


def test_backoff_doubles_and_is_drawn_from_all_of_it() -> None:
    randomness = random.Random(3)
    for returns, limit in ((1, 100), (2, 200), (3, 400), (6, 2000), (60, 2000)):
        drawn = [backoff_ms(returns, 100, 2000, randomness) for _ in range(4000)]
        assert 0 <= min(drawn) < limit * 0.01 + 1
        assert limit * 0.99 - 1 < max(drawn) <= limit
        assert sum(drawn) / len(drawn) == pytest.approx(limit / 2, rel=0.05)
    assert backoff_ms(1, 0, 0, randomness) == 0


# ---- the budget


def test_a_share_of_all_streams_and_a_reserve() -> None:
    budget = RetryBudget(20, 10, 0.0)
    for _ in range(10):
        assert budget.spend(0.0)
    assert not budget.spend(0.0)
    allowed = 0
    for _ in range(1000):
        budget.stream_began()
        allowed += budget.spend(0.0)
    assert allowed == 200


def test_the_reserve_comes_back_in_a_minute() -> None:
    budget = RetryBudget(0, 10, 0.0)
    assert sum(budget.spend(0.0) for _ in range(20)) == 10
    assert sum(budget.spend(30.0) for _ in range(20)) == 5
    assert sum(budget.spend(1000.0) for _ in range(20)) == 10


def test_without_a_reserve_the_share_still_counts() -> None:
    budget = RetryBudget(20, 0, 0.0)
    assert not budget.spend(100.0)
    for _ in range(5):
        budget.stream_began()
    assert budget.spend(100.0)
    assert not budget.spend(100.0)


def test_no_budget_no_retries() -> None:
    budget = RetryBudget(0, 0, 0.0)
    budget.stream_began()
    assert not budget.spend(1e9)


def test_other_numbers_count_from_now() -> None:
    budget = RetryBudget(20, 10, 0.0)
    budget.configure(0, 2)
    assert sum(budget.spend(0.0) for _ in range(20)) == 2


@given(some.integers(0, 100), some.integers(0, 50), some.lists(some.sampled_from(["stream", "retry", "tick"])))
def test_retries_never_exceed_share_and_reserve(percent: int, reserve: int, steps: list[str]) -> None:
    budget, now_s, streams, retries = RetryBudget(percent, reserve, 0.0), 0.0, 0, 0
    for step in steps:
        if step == "stream":
            budget.stream_began()
            streams += 1
        elif step == "tick":
            now_s += 1
        else:
            retries += budget.spend(now_s)
        assert retries <= reserve + reserve * now_s / 60 + streams * percent / 100 + 1e-6
