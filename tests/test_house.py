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


SOURCES = _files(*PACKAGES, "scripts")
TESTS = _files("tests")


def test_the_tree_is_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} >= set(PACKAGES)


@pytest.mark.parametrize("path", _files(*PACKAGES), ids=_name)
def test_numba_is_imported_only_where_it_is_configured(path: Path) -> None:
    if _name(path) == "config/compilation.py":
        pytest.skip("the one module that may")
    lines = [getattr(node, "lineno", 0) for node in _nodes(path) if "numba" in _imported_packages(node)]
    assert not lines, f"{_name(path)} imports numba (lines {lines}): use config.compilation"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=_name)
def test_functions_fit_on_a_screen(path: Path) -> None:
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in _nodes(path)
        if isinstance(node, FunctionNode)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long, f"{_name(path)}: longer than {FUNCTION_LINES_MAX} lines: {', '.join(long)}"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=_name)
def test_files_can_be_read_in_one_go(path: Path) -> None:
    lines_max = TEST_LINES_MAX if path in TESTS else SOURCE_LINES_MAX
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= lines_max, f"{_name(path)} has {lines} lines; {lines_max} is the limit"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=_name)
def test_no_exception_is_swallowed_unseen(path: Path) -> None:
    handlers = [node for node in _nodes(path) if isinstance(node, ast.ExceptHandler)]
    bare = [handler.lineno for handler in handlers if handler.type is None]
    swallowed = [handler.lineno for handler in handlers if _catches_everything(handler) and _does_nothing(handler)]
    assert not bare, f"{_name(path)}: bare except in lines {bare}"
    assert not swallowed, f"{_name(path)}: every exception is swallowed in lines {swallowed}"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=_name)
def test_nothing_is_left_for_later(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    marked = [number for number, line in enumerate(lines, start=1) if UNFINISHED.search(line)]
    assert not marked, f"{_name(path)}: unfinished in lines {marked}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_provides_our_packages(package: str) -> None:
    # python-daemon, for one, would overwrite daemon/__init__.py.
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners <= {"streaming-daemon"}, f"{package} is also in {owners}: install into an environment of our own"
