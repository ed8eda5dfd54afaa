"""The house rules that no linter of others knows: who may import Numba, how long things may be, what must not stand."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("daemon", "backends", "config")
FUNCTION_LINES_MAX = 70
SOURCE_LINES_MAX = 500
TEST_LINES_MAX = 800
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")  # put together, or this line would find itself
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))))


def _imported_packages(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        return {node.module.split(".")[0]}
    return set()


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    return caught is None or (isinstance(caught, ast.Name) and caught.id in {"Exception", "BaseException"})


def _does_nothing(handler: ast.ExceptHandler) -> bool:
    return all(
        isinstance(line, ast.Pass | ast.Continue)
        or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in handler.body
    )


# CUDA kernels that were not shipped are compiled where the extra `gpu` is installed.
NUMBA_USERS = {"backends/mel/cuda/toolchain.py"}
SOURCES = _files(*PACKAGES, "compiler", "scripts")
TESTS = _files("tests")


def test_the_tree_is_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} >= set(PACKAGES)


def _assert_none(faults: list[str], rule: str) -> None:
    assert not faults, "\n".join([rule, *faults])


def test_nothing_that_runs_imports_the_compiler() -> None:
    faults = [
        f"{_name(path)}:{getattr(node, 'lineno', 0)}"
        for path in _files(*PACKAGES)
        if _name(path) not in NUMBA_USERS
        for node in _nodes(path)
        if {"numba", "llvmlite", "compiler"} & _imported_packages(node)
    ]
    _assert_none(faults, "the compiler is imported here: mark functions with config.compilation")


def test_functions_fit_on_a_screen() -> None:
    faults = [
        f"{_name(path)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCES + TESTS
        for node in _nodes(path)
        if isinstance(node, FunctionNode)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    _assert_none(faults, f"functions of more than {FUNCTION_LINES_MAX} lines")


@pytest.mark.parametrize(
    ("files", "lines_max"), [(SOURCES, SOURCE_LINES_MAX), (TESTS, TEST_LINES_MAX)], ids=["sources", "tests"]
)
def test_files_can_be_read_in_one_go(files: list[Path], lines_max: int) -> None:
    counts = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    faults = [f"{name} has {count} lines" for name, count in counts.items() if count > lines_max]
    _assert_none(faults, f"files of more than {lines_max} lines")


def _handlers(*files: Path) -> list[tuple[str, ast.ExceptHandler]]:
    return [
        (f"{_name(path)}:{node.lineno}", node)
        for path in files
        for node in _nodes(path)
        if isinstance(node, ast.ExceptHandler)
    ]


def test_no_except_is_bare() -> None:
    faults = [place for place, handler in _handlers(*SOURCES, *TESTS) if handler.type is None]
    _assert_none(faults, "except without an exception's name")


def test_no_exception_is_swallowed_unseen() -> None:
    handlers = _handlers(*SOURCES, *TESTS)
    faults = [place for place, handler in handlers if _catches_everything(handler) and _does_nothing(handler)]
    _assert_none(faults, "every exception is caught here, and nothing done about it")


def test_nothing_is_left_for_later() -> None:
    faults = [
        f"{_name(path)}:{number}: {line.strip()}"
        for path in SOURCES + TESTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    _assert_none(faults, "unfinished")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_provides_our_packages(package: str) -> None:
    # python-daemon, for one, would overwrite daemon/__init__.py.
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners <= {"streaming-daemon"}, f"{package} is also in {owners}: install into an environment of our own"
