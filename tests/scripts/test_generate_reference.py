"""The generated files are those of the settings as they are now, and the example is a file that loads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from config.load import load
from config.schema import KEYS, value_of
from config.settings import Settings
from scripts.generate_reference import EXAMPLE, REFERENCE, ROOT, SWITCHED_ON, generated, main, stale

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_generated_files_are_up_to_date() -> None:
    assert stale() == [], "run python -m scripts.generate_reference"
    assert main(["--check"]) == 0


def test_check_finds_what_is_stale_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], tmp_path) == 1
    assert not any(tmp_path.iterdir())
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / EXAMPLE).write_text("old")
    assert main(["--check"], tmp_path) == 1
    assert f"{EXAMPLE} is stale" in capsys.readouterr().err


def test_the_example_sets_the_defaults_and_switches_metrics_on() -> None:
    loaded = load(["--config", str(ROOT / EXAMPLE)], {})
    differing = {
        path: value_of(loaded.settings, path) for path in KEYS if value_of(loaded.settings, path) != KEYS[path].default
    }
    assert differing == SWITCHED_ON
    assert loaded.warnings == ()


def test_the_example_loads_with_every_comment_mark_removed(tmp_path: Path) -> None:
    path = tmp_path / "given.toml"
    path.write_text(re.sub(r"^#(?=[\w\[])", "", generated()[EXAMPLE], flags=re.MULTILINE).replace("9090", "0"))
    loaded = load(["--config", str(path)], {})
    assert {path: value_of(loaded.settings, path) for path in KEYS} == {
        path: value_of(Settings(), path) for path in KEYS
    }
    assert set(loaded.provenance.values()) == {str(path)}
    assert loaded.warnings == ()


def test_every_key_is_in_both_files() -> None:
    for key in KEYS.values():
        assert re.search(rf"^#?{key.name} = ", generated()[EXAMPLE], re.MULTILINE), key.path
        assert f"| `{key.name}` |" in generated()[REFERENCE], key.path
