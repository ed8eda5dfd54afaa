"""The diagram in docs/architecture.md shows the transitions of the code."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.plane.state import REASONS, STATES, TRANSITIONS

ARCHITECTURE = Path(__file__).resolve().parents[3] / "docs" / "architecture.md"


def test_the_documented_transitions_are_the_codes() -> None:
    documented = set(re.findall(r"^    (\w+) --> (\w+)$", ARCHITECTURE.read_text(), re.MULTILINE))
    assert documented == {(STATES[a], STATES[b]) for a, following in TRANSITIONS.items() for b in following}


def test_every_state_can_be_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(range(len(STATES)))
    reached = {state for following in TRANSITIONS.values() for state in following}
    assert reached == set(TRANSITIONS)
    assert len(set(REASONS)) == len(REASONS)
