"""How long chunks are waited for: not at all when idle, never longer than the limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.mel.cuda.window import Window

MS = 1_000_000


def _loaded(window: Window, *, launches: int, took_ns: int, apart_ns: int) -> int:
    now_ns = 1_000 * MS
    for _ in range(launches):
        now_ns += apart_ns
        window.observe(now_ns - took_ns, now_ns)
    return now_ns


def test_an_idle_device_waits_for_nothing() -> None:
    window = Window(2 * MS, 10 * MS)
    assert window.length_ns(0) == 0
    now_ns = _loaded(window, launches=50, took_ns=60_000, apart_ns=MS)
    assert window.length_ns(now_ns) == 0


def test_a_busy_device_waits_as_long_as_it_may() -> None:
    window = Window(2 * MS, 10 * MS)
    now_ns = _loaded(window, launches=50, took_ns=60_000, apart_ns=60_000)
    assert window.length_ns(now_ns) == 2 * MS


def test_the_latency_budget_comes_first() -> None:
    window = Window(2 * MS, 3 * MS)
    now_ns = _loaded(window, launches=50, took_ns=2_900_000, apart_ns=2_900_000)
    assert window.length_ns(now_ns) <= 200_000
    now_ns = _loaded(window, launches=50, took_ns=5 * MS, apart_ns=5 * MS)
    assert window.length_ns(now_ns) == 0


def test_a_pause_makes_a_busy_device_idle() -> None:
    window = Window(2 * MS, 10 * MS)
    now_ns = _loaded(window, launches=50, took_ns=60_000, apart_ns=60_000)
    assert window.length_ns(now_ns + 51 * MS) == 0
    window.observe(now_ns + 99 * MS, now_ns + 100 * MS)
    assert window.length_ns(now_ns + 100 * MS) == 0


@given(st.lists(st.tuples(st.integers(1, 20 * MS), st.integers(0, 100 * MS)), max_size=30), st.integers(0, 5 * MS))
def test_no_history_makes_it_longer_than_its_limits(launches: list[tuple[int, int]], window_ns_max: int) -> None:
    window = Window(window_ns_max, 10 * MS)
    now_ns = 0
    for took_ns, pause_ns in launches:
        now_ns += took_ns + pause_ns
        window.observe(now_ns - took_ns, now_ns)
        assert 0 <= window.length_ns(now_ns) <= min(window_ns_max, 10 * MS)
