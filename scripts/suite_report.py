"""What a run of the tests has written down as JUnit's XML: how many ended how, and what took its time."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SLOWEST_COUNT = 20


@dataclass
class Counts:
    """How many tests ended how."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    only_alone: list[str] = field(default_factory=list[str])

    def add(self, other: Counts) -> None:
        """Add those of another part."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.only_alone += other.only_alone


@dataclass(frozen=True)
class Case:
    """One test, with the time that its fixtures took when it was the first to need them."""

    module: str
    name: str
    duration_s: float

    @property
    def folder(self) -> str:
        """Where its file lies, as a path."""
        return "/".join(takewhile(lambda part: not part.startswith("test_"), self.module.split("."))) or "."


@dataclass(frozen=True)
class Report:
    """One run of pytest."""

    counts: Counts
    failures: tuple[str, ...]
    crashed: bool
    cases: tuple[Case, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read it; a run that died without one counts as one failure."""
        if not path.exists():
            return cls(Counts(failed=1), (), crashed=True)
        counts, failures, crashed, cases = Counts(), dict[str, None](), False, list[Case]()
        for suite in ET.parse(path).getroot().iter("testsuite"):  # noqa: S314  (pytest has just written it)
            total, skipped = int(suite.get("tests", "0")), int(suite.get("skipped", "0"))
            failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
            counts.add(Counts(total - failed - skipped, failed, skipped))
            for case in suite.iter("testcase"):
                module, name = case.get("classname", ""), case.get("name", "")
                cases.append(Case(module, name, float(case.get("time", "0"))))
                for fault in (*case.iter("failure"), *case.iter("error")):
                    failures[f"{module}: {name}"] = None
                    # pytest-xdist's words for a worker that a signal has ended.
                    crashed |= "crashed" in fault.get("message", "")
        return cls(counts, tuple(failures), crashed, tuple(cases))


@dataclass(frozen=True)
class PartTime:
    """How long a part took by the clock, and how long it may take."""

    name: str
    wall_s: float
    budget_s: float
    cases: Sequence[Case]


def time_lines(parts: Sequence[PartTime], budget_s: float) -> Iterator[str]:
    """What took how long: parts, folders, the slowest tests, and whatever is over its budget.

    Tests that share the machine count each for itself, so their seconds are more than those of the clock.
    """
    for part in parts:
        yield f"{part.wall_s:7.0f} s  {part.name} (budget {part.budget_s:.0f} s)"
    yield "  by folder, in seconds of tests:"
    seconds, counts = defaultdict[str, float](float), Counter[str]()
    for case in (case for part in parts for case in part.cases):
        seconds[case.folder] += case.duration_s
        counts[case.folder] += 1
    for folder, spent_s in sorted(seconds.items(), key=lambda each: -each[1]):
        yield f"{spent_s:7.0f} s  {folder} ({counts[folder]} tests)"
    yield "  the slowest:"
    cases = [(case.duration_s, part.name, case) for part in parts for case in part.cases]
    for spent_s, name, case in sorted(cases, key=lambda each: -each[0])[:SLOWEST_COUNT]:
        yield f"{spent_s:7.1f} s  {name}: {case.module}: {case.name}"
    total_s = sum(part.wall_s for part in parts)
    yield f"{total_s:7.0f} s  in all (budget {budget_s:.0f} s)"
    for name, spent_s, allowed_s in (
        *((part.name, part.wall_s, part.budget_s) for part in parts),
        ("the whole run", total_s, budget_s),
    ):
        if spent_s > allowed_s:
            yield f"OVER BUDGET: {name} took {spent_s:.0f} s, {allowed_s:.0f} s are allowed"
