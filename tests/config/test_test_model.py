"""[backend.test_model]: when the model is there, and the variable of another server that asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from config.load import load, reload_difference

if TYPE_CHECKING:
    from pathlib import Path

    from config.load import Loaded


def loaded(directory: Path, text: str = "", **environment: str) -> Loaded:
    file = directory / "given.toml"
    file.write_text(text)
    return load(["--config", str(file)], environment)


@pytest.mark.parametrize(
    ("text", "is_used"),
    [
        ("", False),
        ("[backend.test_model]\nenabled = 'on'", True),
        ("[server]\nbackend = 'test_model'", True),
        ("[http]\nlisten = '127.0.0.1:8000'", True),
        ("[http]\nlisten = '127.0.0.1:8000'\n[backend.test_model]\nenabled = 'off'", False),
        ("[http]\nlisten = '127.0.0.1:8000'\n[backend.openai]\napi_base = 'http://x'", False),
        ("[http]\nlisten = '127.0.0.1:8000'\n[server]\nbackend = 'openai'", False),
        (
            "[http]\nlisten = ':8000'\n[backend.openai]\napi_base = 'http://x'\n[backend.test_model]\nenabled = 'on'",
            True,
        ),
    ],
)
def test_when_the_model_is_there(text: str, tmp_path: Path, *, is_used: bool) -> None:
    assert loaded(tmp_path, text).settings.uses_test_model is is_used


def test_the_variable_of_another_server(tmp_path: Path) -> None:
    found = loaded(tmp_path, TT_RUNNER_TYPE=" llm_test ")
    assert found.settings.backend.test_model.enabled == "on"
    assert found.provenance["backend.test_model.enabled"] == "environment TT_RUNNER_TYPE"
    assert found.warnings == ()


@pytest.mark.parametrize("value", ["ttnn_test", "LLM_TEST", "x" * 1000])
def test_its_other_values_are_warned_of(value: str, tmp_path: Path) -> None:
    found = loaded(tmp_path, TT_RUNNER_TYPE=value)
    assert found.settings.backend.test_model.enabled == "auto"
    (warning,) = found.warnings
    assert warning.startswith(f"environment TT_RUNNER_TYPE: '{value[:40]}' is unknown and ignored")
    assert warning.endswith("llm_test")
    assert len(warning) < 200
    assert loaded(tmp_path, TT_RUNNER_TYPE=" ").warnings == ()


def test_a_reload_changes_the_rate_of_a_model_that_is_there(tmp_path: Path) -> None:
    rate = "[backend.test_model]\ntokens_per_second = 5"
    there = loaded(tmp_path, TT_RUNNER_TYPE="llm_test").settings
    assert reload_difference(there, loaded(tmp_path, rate, TT_RUNNER_TYPE="llm_test").settings) == (
        ["backend.test_model.tokens_per_second"],
        [],
    )
    not_there = loaded(tmp_path).settings
    assert reload_difference(not_there, loaded(tmp_path, rate).settings)[0] == []
