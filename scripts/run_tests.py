"""Runs the test suite in its parts, one after the other, and ends with what took its time and with one line of counts.

The parts differ in what they need: most tests share the machine, some share an Apache or a browser by file, a few need
the machine alone, and the pure plane is run twice more, interpreted and with bounds checks, because compiled code
neither warns of an overflow nor of a bad index. A part that takes longer than its budget is named at the end.

Where a few tests of a part fail, those are run once more with nothing beside them: on a busy machine a real server,
browser or clock may miss a limit. Who passes only then is named at the end; who fails twice, or crashes, has failed.

    python -m scripts.run_tests              all parts
    python -m scripts.run_tests fast         only this one
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.suite_report import Counts, PartTime, Report, time_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
REPORTS = ROOT / ".cache" / "tests"
NO_TESTS_COLLECTED = 5
TESTS_FAILED = 1
AGAIN_MAX = 5
BUDGET_S = 15 * 60
BUILD_BUDGET_S = 60
WITH_PROGRAMS = ("apache", "browser", "soak", "external")
PROGRAMS = " or ".join(WITH_PROGRAMS)
UNIT_TESTS = ("tests/config", "tests/backends", "tests/daemon")
SMOKE_TESTS = ("tests/behaviour/test_streams.py",)
# Names what seeds the simulation takes beside those that are always the same (tests/simulation/proved.py).
SEED_BASE = "SIMULATION_BASE"


@dataclass(frozen=True)
class Part:
    """One run of pytest: which tests, how, and with what environment."""

    purpose: str
    markers: str
    budget_s: float = BUDGET_S
    # How tests are shared out among processes: evenly (worksteal) or by file (loadfile); "" is one at a time.
    distribution: str = "worksteal"
    paths: tuple[str, ...] = ()
    # Only files that name one of these markers are looked at: to collect all tests takes each process ten seconds.
    files_with: tuple[str, ...] = ()
    oldest_python: bool = False
    options: tuple[str, ...] = ()
    # A cache of its own for each way of compiling: Numba's key does not hold it, so they would take each other's code.
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


PARTS = {
    "fast": Part("tests that share the machine", f"not (serial or cudasim or gpu or {PROGRAMS})", budget_s=420),
    "programs": Part(
        "tests with Apache, a browser, proxies, a real upstream, and long ones",
        f"({PROGRAMS}) and not serial",
        files_with=WITH_PROGRAMS,
        budget_s=110,
        # What these start is shared by a file's tests, and dear.
        distribution="loadfile",
    ),
    "alone": Part("tests that need the machine alone", "serial", budget_s=70, distribution="", files_with=("serial",)),
    "interpreted": Part(
        "the plane interpreted, with numeric warnings as errors",
        "plane",
        files_with=("plane",),
        budget_s=60,
        options=("-W", "error::RuntimeWarning"),
        environment={"NUMBA_DISABLE_JIT": "1"},
    ),
    "cudasim": Part(
        "the CUDA kernels in Numba's simulator",
        "cudasim",
        files_with=("cudasim",),
        budget_s=30,
        environment={"NUMBA_ENABLE_CUDASIM": "1"},
    ),
    "bounds": Part(
        "the plane compiled with bounds checks",
        "plane",
        files_with=("plane",),
        budget_s=75,
        environment={"NUMBA_BOUNDSCHECK": "1"},
    ),
    "oldest": Part(
        "unit tests and a few of a whole daemon on the oldest Python",
        f"not (serial or cudasim or gpu or {PROGRAMS})",
        budget_s=135,
        paths=(*UNIT_TESTS, *SMOKE_TESTS),
        # Comparisons with other people's libraries, which compile for minutes, say nothing about a Python.
        options=tuple(f"--ignore=tests/backends/mel/test_{name}.py" for name in ("libraries", "transcriber")),
        oldest_python=True,
    ),
}


def _section(title: str) -> None:
    print(f"\n==> {title}", flush=True)


def marked_files(markers: Sequence[str]) -> list[str]:
    """Test files in which one of the markers is named."""
    named = re.compile(rf"\bmark\.({'|'.join(markers)})\b")
    files = sorted(path for path in TESTS.rglob("test_*.py") if named.search(path.read_text(encoding="utf-8")))
    return [str(path.relative_to(ROOT)) for path in files]


def _command(name: str, part: Part, python: str, report: Path, options: argparse.Namespace) -> list[str]:
    paths = marked_files(part.files_with) if part.files_with else part.paths
    # Each part remembers its own failures, those of this run only.
    command = [python, "-m", "pytest", "-q", "-m", part.markers, "-o", f"cache_dir={REPORTS / name}", *part.options]
    return [*command, f"--junit-xml={report}", *options.pytest, *paths]


def _pytest(command: list[str], environment: Mapping[str, str]) -> int:
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


def _again(command: list[str], environment: Mapping[str, str], first: Report, report: Path) -> Counts:
    """Run once more, one by one, the few tests that have failed; the part's counts after it."""
    _section(f"once more, alone: {', '.join(first.failures)}")
    report.unlink(missing_ok=True)
    status = _pytest([*command, "--last-failed", "--last-failed-no-failures=none"], environment)
    second = Report.read(report).counts
    if status != 0 or second.failed or not second.passed:
        return first.counts
    return Counts(first.counts.passed + len(first.failures), 0, first.counts.skipped, list(first.failures))


def _environment(part: Part) -> dict[str, str]:
    # Some hundred daemons are started: each would compile all of its Python again.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **part.environment}


def build_libraries(parts: Iterable[Part]) -> float:
    """Build the machine code that these parts need, all at the same time: what ships, and the tests' own; the seconds.

    A build that fails says why; the tests that need it do so again.
    """
    started_s = time.monotonic()
    builds = [
        subprocess.Popen(command, cwd=ROOT, env=environment)
        for environment in {tuple(sorted(part.environment.items())): _environment(part) for part in parts}.values()
        for command in _build_commands(environment)
    ]
    for build in builds:
        build.wait()
    return time.monotonic() - started_s


def _build_commands(environment: Mapping[str, str]) -> list[list[str]]:
    if "NUMBA_DISABLE_JIT" in environment or "NUMBA_ENABLE_CUDASIM" in environment:
        return []
    tests = [sys.executable, "-m", "tests.native_plane"]
    if "NUMBA_BOUNDSCHECK" in environment:
        return [tests]
    return [[sys.executable, "-m", "compiler", "plane", "mel", "--levels", "all"], tests]


def run_part(name: str, options: argparse.Namespace, counts: Counts, times: list[PartTime]) -> bool:
    """Run one part, add its counts and its time; true if none of its tests failed."""
    part = PARTS[name]
    python = options.oldest_python if part.oldest_python else sys.executable
    if not python:
        _section(f"{name}: SKIPPED, no Python older than the default one was found (OLDEST_PYTHON=/path/to/python3.10)")
        return True
    _section(f"{name}: {part.purpose}")
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    shutil.rmtree(REPORTS / name, ignore_errors=True)
    started_s = time.monotonic()
    environment = _environment(part)
    command = _command(name, part, python, report, options)
    if part.distribution and options.processes > 1:
        command += ["-n", str(options.processes), "--dist", part.distribution]
    status = _pytest(command, environment)
    found = Report.read(report)
    part_counts = found.counts
    if status == TESTS_FAILED and not found.crashed and 0 < part_counts.failed <= AGAIN_MAX:
        report = REPORTS / f"{name}-again.xml"
        part_counts = _again(_command(name, part, python, report, options), environment, found, report)
        status = TESTS_FAILED if part_counts.failed else 0
    counts.add(part_counts)
    times.append(PartTime(name, time.monotonic() - started_s, part.budget_s, found.cases))
    print(f"    {name}: {times[-1].wall_s:.0f} s", flush=True)
    return status in {0, NO_TESTS_COLLECTED}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.run_tests", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--oldest-python", help="an interpreter with the test extra, for the part 'oldest'")
    parser.add_argument("--processes", type=int, default=3, help="tests at a time (default: %(default)s)")
    parser.add_argument("--pytest", action="append", default=[], help="one more option for pytest; may be repeated")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts up to the first that fails; 0 if tests ran and all of them passed."""
    options = _parse(arguments)
    REPORTS.mkdir(parents=True, exist_ok=True)
    counts, times = Counts(), list[PartTime]()
    base = os.environ.setdefault(SEED_BASE, str(random.SystemRandom().randrange(2_000_000, 1 << 31)))
    names = options.parts or PARTS
    build_s = build_libraries(PARTS[name] for name in names)
    if build_s >= 1:
        times.append(PartTime("building", build_s, BUILD_BUDGET_S, ()))
    unbroken = all(run_part(name, options, counts, times) for name in names)
    # A part may fail as a whole, with each test passed: a crash at exit, a worker that died.
    if not unbroken and counts.failed == 0:
        counts.failed = 1
    _section("what took its time")
    print(*time_lines(times, BUDGET_S), sep="\n")
    _section("all parts" if unbroken else "stopped at the first part that failed")
    print(f"{SEED_BASE}={base} gives the simulation the same seeds again")
    for test in counts.only_alone:
        print(f"passed only when run once more, alone: {test}")
    print(f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped", flush=True)
    return 0 if unbroken and counts.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
