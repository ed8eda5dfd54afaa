"""Starts with libraries that are missing, stale, damaged or foreign: built again in a checkout, refused elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config.library import PLANE, load, path_of

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 20.0
BROKEN_COMPILER = """import sys
print("error: numba is not installed, and compiling needs it: pip install '.[build]'", file=sys.stderr)
sys.exit(1)
"""
SLOW_COMPILER = "import time\ntime.sleep(300)\n"


class Copy:
    """The program in a folder of its own, as a checkout or as a wheel installs it."""

    def __init__(self, folder: Path, *, compiler: str | None) -> None:
        load(PLANE)  # built where it must be
        self.folder = folder / "program"
        for package in ("config", "daemon", "backends"):
            shutil.copytree(ROOT / package, self.folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        if compiler is not None:
            # The files of the real one, so that its digest is the same, and what is run replaced where the test says.
            shutil.copytree(ROOT / "compiler", self.folder / "compiler", ignore=shutil.ignore_patterns("__pycache__"))
        self.compiler = compiler
        self.library = self.folder / path_of(PLANE).relative_to(ROOT)

    def start(self) -> subprocess.Popen[str]:
        if self.compiler:
            (self.folder / "compiler" / "__main__.py").write_text(self.compiler)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NUMBA"))}
        command = [sys.executable, "-m", "daemon", "--socket", str(self.folder / "s"), "--log-format", "text"]
        return subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True)

    def refusal(self) -> str:
        """What it says when it does not start."""
        with self.start() as process:
            _, output = process.communicate(timeout=60)
        assert process.returncode == 71, output
        assert "Traceback" not in output
        assert not (self.folder / "s").exists()
        return output


def change(path: Path) -> None:
    path.write_text(path.read_text() + "\n# changed\n")


def test_a_wheel_with_a_changed_source_does_not_start(tmp_path: Path) -> None:
    copy = Copy(tmp_path, compiler=None)
    change(copy.folder / "daemon" / "plane" / "turn.py")
    refusal = copy.refusal()
    assert str(copy.library) in refusal
    assert "was built from sources that have changed: install the wheel" in refusal


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncated", "is damaged"),
        ("missing", "is missing"),
        ("version", "is of version 0.0.0"),
        ("machine", "is for vax"),
    ],
)
def test_a_wheel_without_its_library_does_not_start(tmp_path: Path, fault: str, reason: str) -> None:
    copy = Copy(tmp_path, compiler=None)
    if fault == "truncated":
        copy.library.write_bytes(copy.library.read_bytes()[:100_000])
    elif fault == "missing":
        copy.library.unlink()
    else:
        description = copy.library.with_suffix(".json")
        changed = {"version": "0.0.0"} if fault == "version" else {"machine": "vax"}
        description.write_text(json.dumps(json.loads(description.read_text()) | changed))
    refusal = copy.refusal()
    assert reason in refusal
    assert copy.library.stem in refusal
    assert "install the wheel of streaming-daemon again" in refusal


def test_a_checkout_builds_what_changed_and_says_what_is_not_installed(tmp_path: Path) -> None:
    copy = Copy(tmp_path, compiler=BROKEN_COMPILER)
    change(copy.folder / "daemon" / "plane" / "turn.py")
    refusal = copy.refusal()
    assert "was built from sources that have changed: building it" in refusal
    assert "the library plane cannot be built: numba is not installed, and compiling needs it" in refusal


def test_a_stop_while_it_builds_is_obeyed(tmp_path: Path) -> None:
    copy = Copy(tmp_path, compiler=SLOW_COMPILER)
    copy.library.unlink()
    with copy.start() as process:
        assert process.stderr is not None
        assert "is missing: building it" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert process.wait(60) == 0
        assert time.monotonic() - began_s < SOON_S
    assert not (copy.folder / "s").exists()
