"""The wheel: one file for every supported Python, which needs no compiler, no home and no right to write."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.handoff import hand_over
from tests.behaviour.daemon_process import DONE, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
OLDEST = ROOT / ".cache" / "oldest-python"
PLATFORM = "manylinux_2_17_x86_64"
# Another user, who may read what the tests' own user may, wherever that has installed Python, and write nothing.
AS_NOBODY = [
    "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
]  # fmt: skip
# Whatever imports a compiler fails.
FORBIDDEN = ("numba", "llvmlite", "compiler")


def interpreters() -> list[str]:
    """This Python, and the oldest one that is there."""
    oldest = OLDEST.read_text().strip() if OLDEST.exists() else ""
    return [sys.executable, *([str(ROOT / oldest)] if oldest else [])]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make wheel` builds it, of a copy: nothing of another build may be in it."""
    subprocess.run([sys.executable, "-m", "compiler", "plane", "mel", "--levels", "all"], cwd=ROOT, check=True)
    source = tmp_path_factory.mktemp("source") / "project"
    source.mkdir()
    for name in ("config", "daemon", "backends", "compiler"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.lock"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps",
        "--wheel-dir", str(source / "dist"), f"--config-settings=--build-option=--plat-name={PLATFORM}", ".",
    ]  # fmt: skip
    subprocess.run(command, cwd=source, check=True, timeout=100)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel's files where nobody may write, beside packages that fail when they are imported."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in FORBIDDEN:
        (folder / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')\n")
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_the_wheel_is_for_every_python_and_says_for_which_machine(wheel: Path) -> None:
    assert re.fullmatch(rf"streaming_daemon-[\d.]+-py3-none-{PLATFORM}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for level in ("v2", "v3"):
        assert {f"daemon/built/plane-x86_64-{level}.so", f"daemon/built/plane-x86_64-{level}.json"} <= names
    assert {f"backends/mel/built/mel-x86_64-{level}.so" for level in ("v2", "v3", "v4")} <= names
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"backends", "config", "daemon", *(name for name in folders if name.endswith(".dist-info"))}


def test_installing_it_needs_no_compiler(wheel: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run",
        "--ignore-installed", "--only-binary", ":all:", "--report", "-", str(wheel),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert '"name": "uvloop"' in done.stdout
    assert '"name": "numba"' not in done.stdout
    assert '"name": "llvmlite"' not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights, so it needs them first")
@pytest.mark.parametrize("python", interpreters(), ids=["default", "oldest"][: len(interpreters())])
def test_it_runs_under_another_user_without_a_home(installed: Path, python: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    log_path = tmp_path / "log"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*AS_NOBODY, python, "-m", "daemon", "--socket", str(folder / "s"), "--log-format", "text"]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, cwd="/", env=environment, stderr=log)
    try:
        while "READY" not in log_path.read_text():
            assert process.poll() is None, log_path.read_text()
        with hand_over(folder / "s", {"prompt": "Hello"}) as client:
            assert read_all(client).body.endswith(DONE)
    finally:
        process.terminate()
        assert process.wait(30) == 0, log_path.read_text()
