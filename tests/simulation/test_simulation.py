"""Thousands of seeds on the simulated kernel, and bugs planted on purpose, which it must find.

Which seeds run is chosen in `proved`. A seed that fails says how to replay it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from config.compilation import INTERPRETED
from daemon.plane.state import FREE, STATES, TRANSITIONS
from tests.simulation.plant import PLANTS
from tests.simulation.proved import chunks, is_proved
from tests.simulation.scenario import Simulation

if TYPE_CHECKING:
    from collections.abc import Iterable

SEEDS = chunks(os.environ, proved=is_proved())
PLANTED_SEEDS = 200  # a planted bug must be found within so many
REGRESSIONS = Path(__file__).with_name("seeds.txt")


JUMP = 0.02  # of the turns, where the clock is to jump often
JUMPING_SEEDS = (*range(150), 865)


def _run(seed: int, jump: float | None = None) -> Simulation:
    simulation = Simulation(seed, jump=jump)
    try:
        simulation.run()
    except AssertionError as error:
        arguments = f"{seed}" if jump is None else f"{seed} {jump}"
        pytest.fail(f"{error}\nreplay with: python -m tests.simulation.replay {arguments}", pytrace=False)
    return simulation


def _regressions() -> list[int]:
    lines = REGRESSIONS.read_text(encoding="utf-8").splitlines()
    return [int(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


@pytest.mark.simulation
@pytest.mark.timeout(600)
@pytest.mark.skipif(INTERPRETED, reason="interpreted, a handful of seeds is what there is time for")
@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_seeds(number: int) -> None:
    # Numbers stand for the seeds, which differ between processes of pytest-xdist where nobody has chosen any.
    for seed in SEEDS[number]:
        _run(seed)


@pytest.mark.plane
@pytest.mark.parametrize("seed", range(1_000_000, 1_000_024))
def test_a_few_seeds(seed: int) -> None:
    _run(seed)


@pytest.mark.simulation
@pytest.mark.skipif(INTERPRETED, reason="too slow when interpreted")
@pytest.mark.parametrize("seed", _regressions())
def test_seeds_that_once_failed(seed: int) -> None:
    _run(seed)


@pytest.mark.simulation
@pytest.mark.timeout(600)
@pytest.mark.skipif(INTERPRETED, reason="too slow when interpreted")
def test_a_clock_that_jumps_often() -> None:
    """By up to 100 s at once, so that any two limits may have passed in one turn."""
    for seed in JUMPING_SEEDS:
        _run(seed, JUMP)


@pytest.mark.simulation
@pytest.mark.timeout(600)
@pytest.mark.skipif(INTERPRETED, reason="too slow when interpreted")
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    for seed in range(PLANTED_SEEDS):
        simulation = Simulation(seed)
        PLANTS[name](simulation)
        try:
            simulation.run()
        except AssertionError:
            return
    pytest.fail(f"{name} was not noticed in {PLANTED_SEEDS} seeds")


def _reachable(state: int) -> set[int]:
    """Where a slot of one generation can be a turn later: a turn may take several transitions, but not through FREE."""
    found: set[int] = set()
    new: Iterable[int] = TRANSITIONS[state]
    while new := set(new) - found:
        found |= new
        new = {following for one in new if one != FREE for following in TRANSITIONS[one]}
    return found


@pytest.mark.simulation
@pytest.mark.skipif(INTERPRETED, reason="too slow when interpreted")
def test_every_transition_seen_is_in_the_table_and_every_state_is_seen() -> None:
    observed: set[tuple[int, int, bool]] = set()
    for seed in range(300):
        observed |= _run(seed).observed
    for before, after, same_generation in observed:
        if same_generation or after == FREE:
            allowed = after in _reachable(before)
        else:
            allowed = FREE in _reachable(before) and after in _reachable(FREE)
        assert allowed, f"{STATES[before]} -> {STATES[after]}"
    assert {before for before, _, _ in observed} == set(range(len(STATES)))
