"""The runner of the tests: which failures it tries again, and that none of them is hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts import run_tests

if TYPE_CHECKING:
    from pathlib import Path

STEADY = """
def test_steady():
    pass
"""
UNSTEADY = """
import pathlib
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_unsteady(number):
    seen = pathlib.Path(f"seen-{{number}}")
    first = not seen.exists()
    seen.touch()
    assert not first
"""
BROKEN = """
def test_broken():
    assert False
"""
CRASHING = """
import os, pathlib, signal

def test_crashing():
    seen = pathlib.Path("seen")
    if not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""
IN_SETUP = """
import pathlib
import pytest

@pytest.fixture
def server():
    seen = pathlib.Path("seen")
    if not seen.exists():
        seen.touch()
        raise OSError("in use")

def test_served(server):
    pass
"""


@pytest.fixture(name="project")
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tests that the runner takes for the project; without a plane that it would compile first."""
    # Loading all plugins would take most of the time.
    environment = {"NUMBA_DISABLE_JIT": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    part = run_tests.Part("a few tests", "", options=("-p", "xdist"), environment=environment)
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(run_tests, "PARTS", {"few": part, "more": part})
    (tmp_path / "test_steady.py").write_text(STEADY)
    # The workers of this run are not those of the one inside.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *parts: str, processes: int = 1) -> tuple[int, list[str]]:
    """The exit status and the lines printed."""
    status = run_tests.main(["few", *parts, "--processes", str(processes)])
    return status, capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_few_that_fail_once_are_named_and_counted(
    project: Path, processes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "test_unsteady.py").write_text(UNSTEADY.format(count=2))
    status, lines = run(capfd, processes=processes)
    assert (status, lines[-1]) == (0, "3 passed, 0 failed, 0 skipped")
    alone = [line for line in lines if line.startswith("passed only when run once more, alone: ")]
    assert sorted(line.rpartition(": ")[2] for line in alone) == ["test_unsteady[0]", "test_unsteady[1]"]


def test_one_whose_setup_fails_once_is_tried_again(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "test_in_setup.py").write_text(IN_SETUP)
    status, lines = run(capfd)
    assert (status, lines[-1]) == (0, "2 passed, 0 failed, 0 skipped")
    assert "passed only when run once more, alone: test_in_setup: test_served" in lines


def test_who_fails_twice_has_failed(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "test_unsteady.py").write_text(UNSTEADY.format(count=1))
    (project / "test_broken.py").write_text(BROKEN)
    status, lines = run(capfd)
    assert (status, lines[-1]) == (1, "1 passed, 2 failed, 0 skipped")


def test_many_that_fail_are_not_tried_again(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    count = run_tests.AGAIN_MAX + 1
    (project / "test_unsteady.py").write_text(UNSTEADY.format(count=count))
    status, lines = run(capfd)
    assert (status, lines[-1]) == (1, f"1 passed, {count} failed, 0 skipped")
    assert not any("once more" in line for line in lines)


def test_a_crash_is_not_tried_again(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "test_crashing.py").write_text(CRASHING)
    status, lines = run(capfd, processes=2)
    assert (status, lines[-1]) == (1, "1 passed, 1 failed, 0 skipped")
    assert not any("once more" in line for line in lines)


def test_the_parts_after_one_that_failed_are_not_run(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "test_broken.py").write_text(BROKEN)
    status, lines = run(capfd, "more")
    assert (status, lines[-1]) == (1, "1 passed, 1 failed, 0 skipped")
    assert "==> more: a few tests" not in lines


def test_the_parts_are_counted_together(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.is_dir()
    status, lines = run(capfd, "more")
    assert (status, lines[-1]) == (0, "2 passed, 0 failed, 0 skipped")
