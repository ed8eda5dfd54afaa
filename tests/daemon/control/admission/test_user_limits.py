"""Limits per user."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from daemon.control.admission import user_limits
from daemon.control.admission.user_limits import UserLimits, remembered


def test_without_limits_nothing_is_remembered() -> None:
    users = UserLimits(0, 0)
    assert not users.active
    assert users.may_hold(1)
    assert users.start(1, 0.0) == 0


def test_streams_that_are_held() -> None:
    users = UserLimits(2, 0)
    for _ in range(2):
        assert users.may_hold("a")
        users.hold("a")
    assert not users.may_hold("a")
    assert users.may_hold("b")
    users.release("a")
    assert users.may_hold("a")
    users.release("a")
    assert users.remembered_count == 0


def test_a_minutes_worth_at_once_and_then_one_for_each_share() -> None:
    users = UserLimits(0, 6)
    assert [users.start(1, 1000.0) for _ in range(6)] == [0] * 6
    assert users.start(1, 1000.0) == 10
    assert users.start(1, 1009.5) == 1
    assert users.start(1, 1010.0) == 0
    assert users.start(1, 1010.0) > 0
    assert users.start(2, 1010.0) == 0


def test_a_refused_start_costs_nothing() -> None:
    users = UserLimits(0, 1)
    assert users.start(1, 0.0) == 0
    for second in range(1, 60):
        assert users.start(1, float(second)) == 60 - second
    assert users.start(1, 60.0) == 0


@given(some.integers(1, 50), some.lists(some.floats(0, 3), min_size=1, max_size=200))
def test_no_more_than_twice_the_limit_in_any_minute(per_minute: int, gaps_s: list[float]) -> None:
    users = UserLimits(0, per_minute)
    now_s = 0.0
    allowed: list[float] = []
    for gap_s in gaps_s:
        now_s += gap_s
        if users.start("u", now_s) == 0:
            allowed.append(now_s)
    for first_s in allowed:
        assert sum(first_s <= at_s < first_s + 60 for at_s in allowed) <= 2 * per_minute
    assert sum(at_s == 0.0 for at_s in allowed) <= per_minute


def test_users_are_forgotten_when_their_minute_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_limits, "USERS_MAX", 3)
    users = UserLimits(0, 60)
    for user in range(3):
        users.start(user, 0.0)
    users.start(3, 1000.0)
    assert users.remembered_count == 1
    for user in range(10):
        users.start(user, 1000.0)
    assert users.remembered_count == 3


def test_forgetting_is_not_needed_for_each_new_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_limits, "USERS_MAX", 800)
    users, forgotten = UserLimits(0, 60), 0
    for user in range(5000):
        before = users.remembered_count
        assert users.start(user, 1000.0 + user / 1000) == 0
        forgotten += users.remembered_count <= before
    assert users.remembered_count <= 800
    assert forgotten <= 5000 // 100
    assert users.start(4999, 1005.0) == 0  # the latest are those who are kept
    assert users.remembered_count <= 800


@pytest.mark.parametrize("user", ["u" * 130_000, "\ud800" * 65, 10**4000, -(10**4000)])
def test_a_long_user_id_takes_no_more_memory_than_a_short_one(user: int | str) -> None:
    short = remembered(user)
    assert isinstance(short, str)
    assert len(short) <= 80
    assert short == remembered(user)
    assert short != remembered(user * 2)


@pytest.mark.parametrize("user", ["", "eve", "u" * user_limits.USER_CHARACTERS_MAX, 0, -1, (1 << 64) - 1])
def test_a_short_user_id_is_itself(user: int | str) -> None:
    assert remembered(user) == user
