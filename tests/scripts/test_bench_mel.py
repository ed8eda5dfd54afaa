"""The comparison of mel features runs, says what it leaves out, and marks its bars."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_has_ours_and_theirs() -> None:
    command = [sys.executable, "-m", "scripts.bench_mel", "--rounds", "1", "--seconds", "1", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode in {0, 1}, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert sum(name.startswith("ours") for name, *_ in rows) == 6 + 7
    marked = [(name, float(ratio), mark) for name, _, ratio, mark in rows if "reached" in mark or "MISSED" in mark]
    assert [name.partition(":")[0] for name, *_ in marked] == ["librosa", "transformers"] * 2
    assert done.returncode == int(any("MISSED" in mark for *_, mark in marked))


def test_a_library_that_is_missing_is_left_out() -> None:
    hidden = "import sys; sys.modules.update(librosa=None, transformers=None, scipy=None); "
    program = hidden + "from scripts import bench_mel; sys.exit(bench_mel.main(['--rounds', '1', '--seconds', '1']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for library in ("scipy", "librosa", "transformers"):
        assert f"{library} is not installed: left out" in done.stdout
