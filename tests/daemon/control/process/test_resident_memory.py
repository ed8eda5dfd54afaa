"""The compiler can be let go of, and comes back when it is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
SCRIPT = """
import re
from pathlib import Path
import numba
from daemon.control.process.resident_memory import code_segments, let_go_of_compiler

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

@numba.njit
def add(a, b):
    return a + b

assert add(1, 2) == 3
before = resident()
assert sum(size for _, size in code_segments("libllvmlite")) == let_go_of_compiler() > 1 << 20
after = resident()
assert add(1.5, 2) == 3.5, "it compiles again"
print(before, after)
"""


def test_the_compilers_code_leaves_and_comes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    match = re.fullmatch(r"(\d+) (\d+)\n", done.stdout)
    assert match
    assert int(match[2]) < int(match[1]) - 10_000
