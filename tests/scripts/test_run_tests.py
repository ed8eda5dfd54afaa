"""The runner of the tests: which failures it tries again, that none of them is hidden, and what it says of time."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from scripts import run_tests
from scripts.suite_report import Case, PartTime, time_lines
from tests.simulation.proved import BASE_VARIABLE

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
MARKED = """
import pytest

@pytest.mark.usefixtures("tmp_path")
def test_marked():
    pass

def test_unmarked():
    pass
"""
WORKER = """
import os, pathlib

def test_worker():
    pathlib.Path("worker").write_text(os.environ.get("PYTEST_XDIST_WORKER", "none"))
"""
BASE = """
import os, pathlib

def test_base():
    pathlib.Path("base").write_text(os.environ["SIMULATION_BASE"])
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
    part = run_tests.Part("a few tests", "", 600, options=("-p", "xdist"), environment=environment)
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "TESTS", tmp_path)
    monkeypatch.setattr(run_tests, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(run_tests, "PARTS", {"few": part, "more": part})
    (tmp_path / "test_steady.py").write_text(STEADY)
    monkeypatch.setenv(run_tests.SEED_BASE, "")
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


def test_a_part_can_run_some_paths_only(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "test_broken.py").write_text(BROKEN)
    part = replace(run_tests.PARTS["few"], paths=("test_steady.py",))
    monkeypatch.setattr(run_tests, "PARTS", {"few": part})
    status, lines = run(capfd)
    assert (status, lines[-1]) == (0, "1 passed, 0 failed, 0 skipped")


def test_a_part_looks_only_at_files_that_name_its_markers(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "inner").mkdir()
    (project / "inner" / "test_marked.py").write_text(MARKED)
    (project / "test_not_to_be_imported.py").write_text("raise OSError")
    part = replace(run_tests.PARTS["few"], markers="usefixtures", files_with=("skipif", "usefixtures"))
    monkeypatch.setattr(run_tests, "PARTS", {"few": part})
    status, lines = run(capfd)
    assert (status, lines[-1]) == (0, "1 passed, 0 failed, 0 skipped")


def test_no_marker_of_a_part_is_set_from_elsewhere() -> None:
    """Or its tests would be in files that are not looked at."""
    setting = re.compile(r"add_marker|pytestmark")
    files = [path for path in run_tests.TESTS.rglob("*.py") if not path.name.startswith("test_")]
    assert not [path for path in files if setting.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("distribution", "beside"), [("", False), ("loadfile", True)])
def test_a_part_runs_alone_or_two_at_a_time(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], distribution: str, beside: bool
) -> None:
    (project / "test_worker.py").write_text(WORKER)
    monkeypatch.setattr(run_tests, "PARTS", {"few": replace(run_tests.PARTS["few"], distribution=distribution)})
    assert run(capfd, processes=2)[0] == 0
    assert (project / "worker").read_text().startswith("gw") == beside


def test_the_time_is_told_by_part_folder_and_test(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "inner").mkdir()
    (project / "inner" / "test_inner.py").write_text(STEADY)
    _, lines = run(capfd, "more")
    told = lines[lines.index("==> what took its time") :]
    assert [line.split()[2] for line in told if "(budget 600 s" in line] == ["few", "more"]
    assert [line.split("s  ")[1] for line in told if " tests)" in line] == ["inner (2 tests)", ". (2 tests)"]
    assert sum("test_inner: test_steady" in line for line in told) == 2


def test_each_budget_that_is_exceeded_is_named() -> None:
    cases = [Case("tests.a.test_x", f"test_{number}", float(number)) for number in range(30)]
    parts = [PartTime("quick", 50.0, 60, cases), PartTime("slow", 90.0, 60, [])]
    lines = list(time_lines(parts, 130))
    assert [line for line in lines if "OVER" in line] == [
        "OVER BUDGET: slow took 90 s, 60 s are allowed",
        "OVER BUDGET: the whole run took 140 s, 130 s are allowed",
    ]
    assert not any("OVER" in line for line in time_lines(parts[:1], 130))
    slowest = [line.rpartition("_")[2] for line in lines if "tests.a.test_x: " in line]
    assert slowest == [str(number) for number in range(29, 9, -1)]


def test_the_seeds_of_the_simulation_can_be_had_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "test_base.py").write_text(BASE)
    monkeypatch.delenv(run_tests.SEED_BASE)
    _, lines = run(capfd, "more")
    first = (project / "base").read_text()
    assert int(first) >= 2_000_000
    assert f"{run_tests.SEED_BASE}={first} gives the simulation the same seeds again" in lines
    monkeypatch.setenv(run_tests.SEED_BASE, "4711000")
    run(capfd)
    assert (project / "base").read_text() == "4711000"


def test_the_base_has_one_name() -> None:
    assert run_tests.SEED_BASE == BASE_VARIABLE


def test_each_test_runs_in_one_of_the_parts_that_share_nothing() -> None:
    """`fast`, `programs`, `alone` and `cudasim` divide all tests among them but those of real GPUs."""
    names = ("serial", "apache", "browser", "soak", "external", "cudasim", "gpu")
    for marked in ({}, *({name: True} for name in names[:-1]), {"browser": True, "serial": True}):
        values = {name: marked.get(name, False) for name in names}
        parts = [name for name in ("fast", "programs", "alone", "cudasim") if _selects(run_tests.PARTS[name], values)]
        assert len(parts) == 1, f"{marked} runs in {parts}"
    assert not any(
        _selects(part, {name: name == "gpu" for name in (*names, "plane")}) for part in run_tests.PARTS.values()
    )


def _selects(part: run_tests.Part, values: dict[str, bool]) -> bool:
    return bool(eval(part.markers, {}, dict(values)))  # pytest's expressions of markers are Python's


def test_the_parts_may_take_as_long_as_the_whole_run() -> None:
    assert sum(part.budget_s for part in run_tests.PARTS.values()) == run_tests.BUDGET_S
