"""Runs the test suite in its parts, one after the other, and ends with one line that counts them all.

The parts differ in what they need: most tests share the machine, some need it alone, and the pure plane is run twice
more, interpreted and with bounds checks, because compiled code neither warns of an overflow nor of a bad index.

    python -m scripts.run_tests              all parts
    python -m scripts.run_tests fast         only this one
"""

from __future__ import annotations

import argparse
import os
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

    def add_report(self, path: Path) -> None:
        """Add the counts of one JUnit report; a run that died without one counts as one failure."""
        if not path.exists():
            self.failed += 1
            return
        for suite in ET.parse(path).getroot().iter("testsuite"):  # noqa: S314  (pytest has just written it)
            total, skipped = int(suite.get("tests", "0")), int(suite.get("skipped", "0"))
            failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
            self.failed += failed
            self.skipped += skipped
            self.passed += total - failed - skipped


def _section(title: str) -> None:
    print(f"\n==> {title}", flush=True)


def _command(name: str, part: Part, python: str, options: argparse.Namespace) -> list[str]:
    command = [python, "-m", "pytest", "-q", "-m", part.markers, f"--junit-xml={REPORTS / name}.xml", *part.options]
    if part.parallel and options.processes > 1:
        command += ["-n", str(options.processes), "--dist", "worksteal"]
    return [*command, *options.pytest]


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
    started_s = time.monotonic()
    environment = _environment(part)
    if "NUMBA_DISABLE_JIT" not in part.environment:
        # In an order that takes a minute: a test that asks for a part of the plane would have it compiled in any.
        subprocess.run([python, "-m", "daemon", "--warm-cache"], cwd=ROOT, env=environment, check=False)
    status = subprocess.run(
        _command(name, part, python, options), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False
    ).returncode
    counts.add_report(report)
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
    print(f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped", flush=True)
    return 0 if unbroken and counts.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
