"""Runs the test suite in its parts, one after the other, and ends with one line that counts them all.

The parts differ in what they need: most tests share the machine, some need it alone, and the pure plane is run twice
more, interpreted and with bounds checks, because compiled code neither warns of an overflow nor of a bad index.

Where a few tests of a part fail, those are run once more with nothing beside them: on a busy machine a real server,
browser or clock may miss a limit. Who passes only then is named at the end; who fails twice, or crashes, has failed.

    python -m scripts.run_tests              all parts
    python -m scripts.run_tests fast         only this one
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "tests"
NO_TESTS_COLLECTED = 5
TESTS_FAILED = 1
AGAIN_MAX = 5
ALONE = "serial or apache or browser or soak or external"


@dataclass(frozen=True)
class Part:
    """One run of pytest: which tests, how, and with what environment."""

    purpose: str
    markers: str
    parallel: bool = True
    oldest_python: bool = False
    options: tuple[str, ...] = ()
    # A cache of its own for each way of compiling: Numba's key does not hold it, so they would take each other's code.
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


PARTS = {
    "fast": Part("tests that share the machine", f"not ({ALONE} or cudasim)"),
    "rest": Part(
        "tests that need the machine alone, and those with Apache, a browser, proxies, a real upstream",
        ALONE,
        parallel=False,
    ),
    "interpreted": Part(
        "the plane interpreted, with numeric warnings as errors",
        "plane",
        options=("-W", "error::RuntimeWarning"),
        environment={"NUMBA_DISABLE_JIT": "1"},
    ),
    "cudasim": Part("the CUDA kernels in Numba's simulator", "cudasim", environment={"NUMBA_ENABLE_CUDASIM": "1"}),
    "bounds": Part(
        "the plane compiled with bounds checks",
        "plane",
        environment={"NUMBA_BOUNDSCHECK": "1", "STREAMING_DAEMON_CACHE_DIR": str(ROOT / ".cache" / "bounds-checked")},
    ),
    "oldest": Part("unit tests on the oldest Python", f"not (simulation or cudasim or {ALONE})", oldest_python=True),
}


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
class Report:
    """What one run of pytest has written down as JUnit's XML."""

    counts: Counts
    failures: tuple[str, ...]
    crashed: bool

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read it; a run that died without one counts as one failure."""
        if not path.exists():
            return cls(Counts(failed=1), (), crashed=True)
        counts, failures, crashed = Counts(), dict[str, None](), False
        for suite in ET.parse(path).getroot().iter("testsuite"):  # noqa: S314  (pytest has just written it)
            total, skipped = int(suite.get("tests", "0")), int(suite.get("skipped", "0"))
            failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
            counts.add(Counts(total - failed - skipped, failed, skipped))
            for case in suite.iter("testcase"):
                for fault in (*case.iter("failure"), *case.iter("error")):
                    failures[f"{case.get('classname')}: {case.get('name')}"] = None
                    # pytest-xdist's words for a worker that a signal has ended.
                    crashed |= "crashed" in fault.get("message", "")
        return cls(counts, tuple(failures), crashed)


def _section(title: str) -> None:
    print(f"\n==> {title}", flush=True)


def _command(name: str, part: Part, python: str, report: Path, options: argparse.Namespace) -> list[str]:
    # Each part remembers its own failures, those of this run only.
    command = [python, "-m", "pytest", "-q", "-m", part.markers, "-o", f"cache_dir={REPORTS / name}", *part.options]
    return [*command, f"--junit-xml={report}", *options.pytest]


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
    # NUMBA_CACHE_DIR would take precedence over what a part asks for.
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return {**inherited, **part.environment}


def run_part(name: str, options: argparse.Namespace, counts: Counts) -> bool:
    """Run one part and add its counts; true if none of its tests failed."""
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
    if "NUMBA_DISABLE_JIT" not in part.environment:
        # In an order that takes a minute: a test that asks for a part of the plane would have it compiled in any.
        subprocess.run([python, "-m", "daemon", "--warm-cache"], cwd=ROOT, env=environment, check=False)
    command = _command(name, part, python, report, options)
    if part.parallel and options.processes > 1:
        command += ["-n", str(options.processes), "--dist", "worksteal"]
    status = _pytest(command, environment)
    found = Report.read(report)
    part_counts = found.counts
    if status == TESTS_FAILED and not found.crashed and 0 < part_counts.failed <= AGAIN_MAX:
        report = REPORTS / f"{name}-again.xml"
        part_counts = _again(_command(name, part, python, report, options), environment, found, report)
        status = TESTS_FAILED if part_counts.failed else 0
    counts.add(part_counts)
    print(f"    {name}: {time.monotonic() - started_s:.0f} s", flush=True)
    return status in {0, NO_TESTS_COLLECTED}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.run_tests", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--oldest-python", help="an interpreter with the test extra, for the part 'oldest'")
    parser.add_argument("--processes", type=int, default=2, help="tests at a time (default: %(default)s)")
    parser.add_argument("--pytest", action="append", default=[], help="one more option for pytest; may be repeated")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts up to the first that fails; 0 if tests ran and all of them passed."""
    options = _parse(arguments)
    REPORTS.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    unbroken = all(run_part(name, options, counts) for name in options.parts or PARTS)
    # A part may fail as a whole, with each test passed: a crash at exit, a worker that died.
    if not unbroken and counts.failed == 0:
        counts.failed = 1
    _section("all parts" if unbroken else "stopped at the first part that failed")
    for test in counts.only_alone:
        print(f"passed only when run once more, alone: {test}")
    print(f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped", flush=True)
    return 0 if unbroken and counts.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
