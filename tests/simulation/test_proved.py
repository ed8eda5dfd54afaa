"""Which seeds run: all when anything that they depend on has changed, otherwise a few known ones and a few new."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import pytest

from tests.simulation import proved

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Path:
    for folder in proved.FOLDERS:
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "source.py").write_text("one\n")
    return tmp_path


def seeds_of(environment: dict[str, str], *, is_proved: bool) -> list[int]:
    chunks = proved.chunks(environment, proved=is_proved)
    assert all(0 < len(chunk) <= proved.CHUNK for chunk in chunks)
    return list(chain.from_iterable(chunks))


@pytest.mark.parametrize("folder", proved.FOLDERS)
def test_any_change_of_a_source_needs_a_new_proof(tree: Path, folder: str) -> None:
    recorded = tree / "proved.txt"
    assert not proved.is_proved(recorded, tree)
    assert proved.record(proved.digest(tree), proved.SEED_COUNT, recorded, tree)
    assert proved.is_proved(recorded, tree)
    path = tree / folder / "inner" / "source.py"
    path.write_text("two\n")
    assert not proved.is_proved(recorded, tree)
    path.write_text("one\n")
    assert proved.is_proved(recorded, tree)
    path.rename(path.with_name("moved.py"))
    assert not proved.is_proved(recorded, tree)


def test_another_compiler_needs_a_new_proof(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = proved.digest(tree)
    monkeypatch.setattr("importlib.metadata.version", "another {}".format)
    assert proved.digest(tree) != before


def test_the_digest_is_of_files_that_are_there() -> None:
    assert all(list((proved.ROOT / folder).rglob("*.py")) for folder in proved.FOLDERS)


def test_fewer_seeds_or_changed_sources_are_not_recorded(tree: Path) -> None:
    recorded = tree / "proved.txt"
    assert not proved.record(proved.digest(tree), proved.SEED_COUNT - 1, recorded, tree)
    assert not proved.record("of what it was at first", proved.SEED_COUNT, recorded, tree)
    assert not recorded.exists()


def test_all_seeds_run_without_a_proof() -> None:
    assert seeds_of({}, is_proved=False) == list(range(5000))
    assert seeds_of({proved.BASE_VARIABLE: "7000000"}, is_proved=False) == list(range(5000))


@pytest.mark.parametrize("is_proved", [True, False])
def test_a_number_that_is_asked_for_runs_in_any_case(is_proved: bool) -> None:
    assert seeds_of({proved.COUNT_VARIABLE: "260"}, is_proved=is_proved) == list(range(260))


def test_with_a_proof_a_tenth_and_fresh_ones_run_and_the_base_names_them() -> None:
    seeds = seeds_of({proved.BASE_VARIABLE: "7000003"}, is_proved=True)
    assert seeds == [*range(1500, 2000), *range(7_000_003, 7_000_503)]
    every = {
        seed
        for base in range(7_000_000, 7_000_010)
        for seed in seeds_of({proved.BASE_VARIABLE: str(base)}, is_proved=True)
    }
    assert every >= set(range(5000))


def test_fresh_seeds_are_others_each_time() -> None:
    first, second = (set(seeds_of({}, is_proved=True)) for _ in range(2))
    assert len(first) == len(second) == 1000
    assert {seed for seed in first if seed >= proved.FRESH_FIRST} != {seed for seed in second if seed >= 5000}
