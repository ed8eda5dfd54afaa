"""Fewer cases of a cross product: all pairs of values stay, and not every combination of all of them.

A test with the marker `pairwise` runs only as many of its cases as hold, among them, each pair of its parameters'
values: what breaks on two of them together (a transport and a fault, a format and a kernel) is still found. Which
cases run depends on the test alone. `pytest --every-case` runs all of them.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pytest

MARKER = "pairwise"


def chosen(cases: Sequence[Mapping[str, int]]) -> list[int]:
    """Which of the cases suffice for all pairs of values that occur in any of them; the numbers, in order.

    Greedy: the case with the most pairs that are still missing, the first of equal ones.
    """
    pairs = [frozenset(combinations(sorted(case.items()), min(2, len(case)))) for case in cases]
    missing = {pair for each in pairs for pair in each}
    found: list[int] = []
    while missing:
        best = max(range(len(pairs)), key=lambda number: len(pairs[number] & missing))
        missing -= pairs[best]
        found.append(best)
    return sorted(found)


def surplus(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Those cases of tests with the marker that need not run."""
    by_test: dict[str, list[Any]] = {}
    for item in items:
        if item.get_closest_marker(MARKER):
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for cases in by_test.values():
        # By identity: cases of a cross product hold the same objects, and not all can be compared.
        keep = set(chosen([{name: id(value) for name, value in case.callspec.params.items()} for case in cases]))
        left_out.update(case for number, case in enumerate(cases) if number not in keep)
    return left_out
