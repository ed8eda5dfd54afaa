"""Who is asked: priority, load for weight, models, limits, breakers, and what the configuration changes."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from backends.openai.errors import RequestError
from backends.openai.options import UpstreamOptions, upstream_options
from backends.openai.upstreams import Running, Upstreams, UpstreamState
from config.openai import OpenAIBackend
from tests.backends.openai.making import Clock, upstream

if TYPE_CHECKING:
    from collections.abc import Sequence


def options(*tables: dict[str, Any], **section: object) -> tuple[UpstreamOptions, ...]:
    return upstream_options(msgspec.convert({**section, "upstreams": tables}, OpenAIBackend))


def of(*tables: dict[str, Any], seed: int = 1, **section: object) -> Upstreams:
    return Upstreams(options(*tables, **section), random.Random(seed), lambda _name, _state: None, lambda: 0.0)


def chosen(pool: Upstreams, now_s: float = 0.0, model: str = "m", excluded: Sequence[UpstreamState] = ()) -> str | None:
    found = pool.choose(pool.candidates(model, ""), excluded, now_s)
    return None if found is None else found.name


def begin(pool: Upstreams, name: str, now_s: float = 0.0) -> Running:
    return next(state for state in pool.states if state.name == name).begin(now_s)


def breaks(pool: Upstreams, name: str, now_s: float = 0.0) -> None:
    for _ in range(3):
        begin(pool, name, now_s).failed(now_s)


def test_the_lowest_priority_that_can() -> None:
    pool = of(upstream("c", priority=2), upstream("a", priority=0, streams_max=1), upstream("b", priority=1))
    assert chosen(pool) == "a"
    first = begin(pool, "a")
    assert chosen(pool) == "b"
    breaks(pool, "b")
    assert chosen(pool) == "c"
    first.succeeded()
    assert chosen(pool) == "a"


def test_the_least_loaded_for_its_weight() -> None:
    pool = of(upstream("a", weight=3), upstream("b", weight=1))
    for _ in range(400):
        name = chosen(pool)
        assert name is not None
        begin(pool, name)
    assert [state.active_count for state in pool.states] == [300, 100]


def test_idle_upstreams_share_by_weight() -> None:
    pool = of(upstream("a", weight=3), upstream("b", weight=1), seed=7)
    counts: Counter[str | None] = Counter()
    for _ in range(4000):
        name = chosen(pool)
        assert name is not None
        counts[name] += 1
        begin(pool, name).succeeded()
    assert counts["a"] / 4000 == pytest.approx(0.75, abs=0.02)


def test_a_seed_repeats_its_choices() -> None:
    def choices(seed: int) -> list[str | None]:
        pool = of(*(upstream(name) for name in "abcd"), seed=seed)
        return [chosen(pool) for _ in range(50)]

    assert choices(3) == choices(3)
    assert choices(3) != choices(4)


@given(some.lists(some.integers(1, 9), min_size=2, max_size=5), some.integers(1, 60), some.integers())
def test_no_upstream_has_a_stream_too_many_for_its_weight(weights: list[int], count: int, seed: int) -> None:
    pool = of(*(upstream(f"u{index}", weight=weight) for index, weight in enumerate(weights)), seed=seed)
    for _ in range(count):
        name = chosen(pool)
        assert name is not None
        begin(pool, name)
    for state in pool.states:
        assert all((state.active_count - 1) / state.options.weight <= other.load() for other in pool.states)


def test_models() -> None:
    pool = of(upstream("a", models=["m", "n"]), upstream("b", models=["x=y"]), upstream("any"))
    assert {state.name for state in pool.candidates("m", "")} == {"a", "any"}
    assert {state.name for state in pool.candidates("x", "")} == {"b", "any"}
    assert {state.name for state in pool.candidates("y", "")} == {"any"}
    assert [state.name for state in pool.candidates("m", "a")] == ["a"]
    assert [state.models for state in pool.states] == [("m", "n"), ("x",), ()]


def test_a_model_or_an_upstream_that_nobody_knows() -> None:
    pool = of(upstream("a", models=["m"]), upstream("b", models=["m", "n"]))
    with pytest.raises(RequestError, match="known are m, n") as raised:
        pool.candidates("other", "")
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, "model_not_found", "model")
    with pytest.raises(RequestError, match=r"known are m$"):
        pool.candidates("n", "a")
    with pytest.raises(RequestError, match="known upstreams are a, b") as raised:
        pool.candidates("m", "c")
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, "unknown_upstream", "upstream")
    many = of(*(upstream(f"u{index}", models=[f"m{index}"]) for index in range(30)))
    with pytest.raises(RequestError, match=r"m15, \.\.\.$"):
        many.candidates("other", "")


def test_who_is_excluded() -> None:
    pool = of(upstream("a"), upstream("b"))
    first, second = pool.states
    assert chosen(pool, excluded=[first]) == "b"
    assert chosen(pool, excluded=[first, second]) is None


# ---- why nobody can be asked


def refusal(pool: Upstreams, now_s: float = 0.0) -> tuple[int, str, int]:
    assert chosen(pool, now_s) is None
    error = pool.refusal(pool.candidates("m", ""), now_s)
    return error.status, error.code, error.retry_after_s


def test_all_are_full() -> None:
    pool = of(upstream("a", streams_max=1), upstream("b", streams_max=2))
    for name in "abb":
        begin(pool, name)
    assert refusal(pool) == (503, "upstream_busy", 1)


def test_all_breakers_are_open() -> None:
    pool = of(upstream("a", breaker_open_s=10), upstream("b", breaker_open_s=20))
    breaks(pool, "a", 0.0)
    breaks(pool, "b", 0.0)
    assert refusal(pool, 2.5) == (503, "upstream_unavailable", 8)
    assert chosen(pool, 10.0) == "a"
    begin(pool, "a", 10.0)
    assert refusal(pool, 10.0) == (503, "upstream_unavailable", 1)


def test_all_asked_to_be_left_alone() -> None:
    pool = of(upstream("a"), upstream("b"))
    first, second = pool.states
    first.park(5.0, is_rate_limited=True)
    assert chosen(pool) == "b"
    second.park(9.0, is_rate_limited=True)
    first.park(3.0, is_rate_limited=False)  # sooner than it has said already
    assert refusal(pool, 0.5) == (429, "upstream_rate_limited", 5)
    second.park(12.0, is_rate_limited=False)
    assert refusal(pool, 0.5) == (503, "upstream_unavailable", 5)
    assert chosen(pool, 5.0) == "a"


def test_a_half_open_upstream_takes_its_probes_only() -> None:
    pool = of(upstream("a", breaker_probes=2), upstream("b", priority=1))
    breaks(pool, "a")
    assert chosen(pool, 30.0) == "a"
    begin(pool, "a", 30.0)
    begin(pool, "a", 30.0)
    assert chosen(pool, 30.0) == "b"


def test_an_attempt_ends_once() -> None:
    pool = of(upstream("a"))
    running = begin(pool, "a")
    assert pool.states[0].active_count == 1
    running.abandoned()
    assert pool.states[0].active_count == 0
    for end in (running.abandoned, running.succeeded, lambda: running.failed(0.0)):
        with pytest.raises(AssertionError):
            end()


# ---- another configuration


def test_breakers_tell_their_changes() -> None:
    changes: list[tuple[str, str]] = []
    clock = Clock()
    clock.now_s = 0.0

    def changed(name: str, state: str) -> None:
        changes.append((name, state))

    pool = Upstreams(options(upstream("a")), random.Random(1), changed, clock)
    breaks(pool, "a")
    assert pool.states[0].breaker_state == "open"
    clock.pass_s(30)
    assert pool.states[0].breaker_state == "half_open", "the next stream may try it"
    begin(pool, "a", 30.0).failed(30.0)
    assert changes == [("a", "open"), ("a", "half_open"), ("a", "open")]
    assert pool.states[0].breaker_state == "open"


def test_who_stays_at_its_address_keeps_its_history() -> None:
    pool = of(upstream("a"), upstream("b"))
    breaks(pool, "a")
    begin(pool, "a", 30.0)
    first, second = pool.states
    origin = first.origin
    pool.configure(options(upstream("b", api_base="http://other.test"), upstream("a", weight=5, models=["m"])))
    assert pool.states[1] is first
    assert (first.active_count, first.breaker_state, first.options.weight) == (1, "half_open", 5)
    assert first.origin is origin, "its connections stay"
    assert pool.states[0] is not second
    assert pool.states[0].origin.host == "other.test"


def test_other_timeouts_are_another_origin() -> None:
    pool = of(upstream("a"))
    first, origin = pool.states[0], pool.states[0].origin
    pool.configure(options(upstream("a", head_timeout_ms=5)))
    assert pool.states[0] is first
    assert first.origin is not origin
    assert first.origin.head_timeout_ms == 5
    pool.configure(options(upstream("a", breaker_failures=1)))
    begin(pool, "a").failed(0.0)
    assert first.breaker_state == "open"
