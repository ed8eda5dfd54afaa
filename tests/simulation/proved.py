"""Which seeds the simulation has passed with these sources: `python -m tests.simulation.proved --seeds 50000`.

The first 5,000 prove a plane. After they have passed, `proved.txt` names the digest of all that they depend on. As long
as it is that of the sources, a run of the tests takes a tenth of them and as many fresh ones, both chosen by
SIMULATION_BASE or at random; when it is another, all 5,000 run. SIMULATION_SEEDS is how many run in any case.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("daemon/plane", "tests/simulation")
PROVED = Path(__file__).with_name("proved.txt")
SEED_COUNT = 5000
SAMPLE_COUNT = 500
FRESH_FIRST = 2_000_000  # beyond those that other tests name
FRESH_END = 1 << 31
CHUNK = 125
COUNT_VARIABLE = "SIMULATION_SEEDS"
BASE_VARIABLE = "SIMULATION_BASE"


def digest(root: Path = ROOT) -> str:
    """That of the plane, of the simulation, and of the compiler's version."""
    found = hashlib.sha256(importlib.metadata.version("numba").encode())
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        found.update(f"\0{path.relative_to(root).as_posix()}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def is_proved(recorded: Path = PROVED, root: Path = ROOT) -> bool:
    """Whether the first 5,000 seeds have passed with these sources."""
    return recorded.exists() and recorded.read_text(encoding="utf-8").split() == [digest(root)]


def record(before: str, seed_count: int, recorded: Path = PROVED, root: Path = ROOT) -> bool:
    """Write down that so many seeds have passed, begun with this digest; false where that proves nothing."""
    if seed_count < SEED_COUNT or before != digest(root):
        return False
    recorded.write_text(f"{before}\n", encoding="utf-8")
    return True


def chunks(environment: Mapping[str, str], *, proved: bool) -> list[range]:
    """The seeds to run, as many to each test as take seconds."""
    count = environment.get(COUNT_VARIABLE)
    if count is not None or not proved:
        return _cut(range(int(count or SEED_COUNT)))
    base = int(environment.get(BASE_VARIABLE) or random.SystemRandom().randrange(FRESH_FIRST, FRESH_END))
    first = base % (SEED_COUNT // SAMPLE_COUNT) * SAMPLE_COUNT
    return _cut(range(first, first + SAMPLE_COUNT)) + _cut(range(base, base + SAMPLE_COUNT))


def _cut(seeds: range) -> list[range]:
    return [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run so many seeds; after 5,000 and more that have passed, record it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.proved", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=SEED_COUNT, help="from 0 on (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="tests at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    before = digest()
    tests = f"{Path(__file__).with_name('test_simulation.py')}::test_seeds"
    status = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", str(options.processes), "--dist", "worksteal", tests],
        cwd=ROOT,
        env={**os.environ, COUNT_VARIABLE: str(options.seeds)},
        check=False,
    ).returncode
    if status == 0 and record(before, options.seeds):
        print(f"recorded in {PROVED.relative_to(ROOT)}: {before}")
    return status


if __name__ == "__main__":
    sys.exit(main())
