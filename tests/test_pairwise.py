"""Which cases of a cross product run: every value, every pair of values, and no more than that takes."""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING

import pytest

from tests.pairwise import chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

pytest_plugins = ["pytester"]

CROSSED = """
import pytest

@pytest.fixture(params=["io_uring", "epoll"])
def kernel(request):
    return request.param

@pytest.mark.pairwise
@pytest.mark.parametrize("style", [["content"], ["openai"]])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_crossed(kernel, name, style):
    assert name != "c" or style != ["openai"]

@pytest.mark.parametrize("style", [1, 2])
@pytest.mark.parametrize("name", [3, 4])
def test_whole(kernel, name, style):
    pass
"""


def crossed(*sizes: int) -> list[dict[str, int]]:
    names = [f"parameter {number}" for number in range(len(sizes))]
    return [dict(zip(names, values, strict=True)) for values in product(*map(range, sizes))]


def pairs_of(cases: Sequence[dict[str, int]]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    return {pair for case in cases for pair in combinations(case.items(), 2)}


@pytest.mark.parametrize("sizes", [(2, 2), (7, 4, 2, 2), (13, 4, 2), (5, 2, 4, 2), (3, 3, 3, 3), (11, 3, 2)])
def test_every_pair_is_kept_with_few_cases(sizes: tuple[int, ...]) -> None:
    cases = crossed(*sizes)
    kept = [cases[number] for number in chosen(cases)]
    assert pairs_of(kept) == pairs_of(cases)
    second, largest = sorted(sizes)[-2:]
    assert largest * second <= len(kept) <= largest * second * 1.4


def test_pairs_that_no_case_has_are_not_asked_for() -> None:
    cases = [case for case in crossed(3, 2, 2) if case["parameter 0"] != 2 or case["parameter 1"] == 0]
    kept = [cases[number] for number in chosen(cases)]
    assert pairs_of(kept) == pairs_of(cases)


@pytest.mark.parametrize("sizes", [(1,), (5,)])
def test_without_two_parameters_all_cases_are_kept(sizes: tuple[int, ...]) -> None:
    cases = crossed(*sizes)
    assert [cases[number] for number in chosen(cases)] == cases


@pytest.fixture(name="project")
def _project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(CROSSED)
    pytester.makeconftest("from tests.conftest import pytest_addoption, pytest_collection_modifyitems")
    pytester.makeini("[pytest]\nmarkers = pairwise: some")
    return pytester


def test_only_what_is_marked_has_fewer_cases(project: pytest.Pytester) -> None:
    project.runpytest().assert_outcomes(passed=5 + 8, failed=1, deselected=6)


def test_every_case_can_be_run(project: pytest.Pytester) -> None:
    project.runpytest("--every-case").assert_outcomes(passed=10 + 8, failed=2)


def test_those_that_failed_are_all_run_again(project: pytest.Pytester) -> None:
    project.runpytest("--every-case").assert_outcomes(passed=10 + 8, failed=2)
    project.runpytest("--last-failed").assert_outcomes(failed=2)
