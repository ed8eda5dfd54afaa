"""States change as the tables say, and docs/architecture.md shows the tables and the phases of a turn as they are."""

from __future__ import annotations

import ast
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from config.compilation import INTERPRETED
from daemon.plane import connection_state, relay_table, state, table
from tests.daemon.plane.small import small_plane

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
PLANE = ROOT / "daemon" / "plane"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
TABLES = pytest.mark.parametrize("of", [state, connection_state], ids=["slots", "connections"])
STATE_TO_STATE = re.compile(r"^    (\w+) --> (\w+)$", re.MULTILINE)


@TABLES
def test_the_documented_transitions_are_the_codes(of: ModuleType) -> None:
    source = f"{of.__name__.replace('.', '/')}.py"
    note = f"<!-- generated from {source}; a test compares -->\n```mermaid\n"
    assert ARCHITECTURE.count(note) == 1
    documented = STATE_TO_STATE.findall(ARCHITECTURE.partition(note)[2].partition("```")[0])
    assert documented == [(of.STATES[a], of.STATES[b]) for a, following in of.TRANSITIONS.items() for b in following]


@TABLES
def test_every_state_can_be_reached_and_left(of: ModuleType) -> None:
    assert set(of.TRANSITIONS) == set(range(len(of.STATES)))
    reached = {new for following in of.TRANSITIONS.values() for new in following}
    assert reached == set(of.TRANSITIONS)


def test_no_two_reasons_have_one_name() -> None:
    assert len(set(state.REASONS)) == len(state.REASONS)


@pytest.mark.plane
@TABLES
def test_a_state_changes_only_as_its_table_permits(of: ModuleType) -> None:
    plane = small_plane()
    records = plane.streams if of is state else plane.connections
    record_of = table.stream_of if of is state else relay_table.connection_of
    record: Any = record_of(plane.globals[0], 3) if INTERPRETED else records[3]
    for before, after in product(range(len(of.STATES)), repeat=2):
        records[3]["state"] = before
        if after in of.TRANSITIONS[before]:
            of.change_state(record, after)
            assert records[3]["state"] == after
        else:
            with pytest.raises(AssertionError, match="changes as TRANSITIONS permits"):
                of.change_state(record, after)
            assert records[3]["state"] == before


def _assignments_of_a_state(source: str) -> list[str]:
    """`function: target` of each assignment to a field named `state`, those of an event's record apart."""
    found: list[str] = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            stored = isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store)
            target = ast.unparse(node) if stored else ""
            if re.search(r"\.state$|\[.state.\]$", target) and not target.startswith("event."):
                found.append(f"{function.name}: {target}")
    return found


def test_nothing_else_assigns_a_state() -> None:
    assignments = {path.name: _assignments_of_a_state(path.read_text()) for path in PLANE.rglob("*.py")}
    assert {name: targets for name, targets in assignments.items() if targets} == {
        "state.py": ["change_state: stream.state"],
        "connection_state.py": ["change_state: connection.state"],
    }


def test_assignments_to_a_state_are_found() -> None:
    source = "def f(a, b):\n    a.other = b.state = 1\n    a.state += 1\n    a['state'] = event.state = b.state\n"
    assert _assignments_of_a_state(source) == ["f: b.state", "f: a.state", "f: a['state']"]


def test_the_phases_of_a_turn_are_numbered_as_documented() -> None:
    documented = re.findall(r"^(\d)\. \*\*(.+?)\.\*\*", ARCHITECTURE, re.MULTILINE)
    in_code = re.findall(r"^    # (\d)\. (.+?)(?: \(.*)?$", (PLANE / "turn.py").read_text(), re.MULTILINE)
    assert in_code == documented
    assert [int(number) for number, _ in in_code] == list(range(1, len(in_code) + 1))
    assert in_code
