"""Combines the sources of settings: defaults, then the file, then the environment, then the command line.

`load` is called once at start and again at each reload; `describe` formats the output of --check-config,
`reload_difference` that of a reload. Nothing is kept between calls.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from config import command_line
from config.command_line import Action
from config.schema import (
    KEYS,
    OTHERS,
    SECTIONS,
    TABLES,
    ConfigError,
    check,
    check_text,
    given,
    shown,
    shown_setting,
    value_of,
)
from config.settings import Settings
from config.toml_file import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PLACES", "Action", "ConfigError", "Loaded", "describe", "load", "reload_difference", "reloaded"]

PLACES = (
    Path("streaming-daemon.toml"),
    Path("/etc/streaming-daemon/config.toml"),
    Path("/etc/streaming-daemon.toml"),
)
"""Where a file is looked for without --config; the first that exists is read, and no other."""

ENVIRONMENT = {
    "MOCK_LATENCY_MS": "backend.mock.latency_ms",
    "MEL_ENABLED": "backend.mel.enabled",
    "MEL_DEVICE": "backend.mel.device",
    "OPENAI_API_KEY": "backend.openai.api_key",
    "OPENAI_API_BASE": "backend.openai.api_base",
    "OPENAI_API_SOCKET": "backend.openai.api_socket",
    "OPENAI_MODEL": "backend.openai.model",
    "OPENAI_HTTP2_ENABLED": "backend.openai.http2_enabled",
    "OPENAI_INSECURE_SSL": "backend.openai.insecure_ssl",
}
"""Variables that set a value; an empty variable counts as absent."""

RUNNER_TYPE = "TT_RUNNER_TYPE"
RUNNERS = {"llm_test": ("backend.test_model.enabled", "on")}
"""The variable by which another server chooses its backend, and the settings that correspond to each value."""


@dataclass(frozen=True)
class Loaded:
    """The settings, and the source of each by `section.key`."""

    settings: Settings
    provenance: dict[str, str]
    warnings: tuple[str, ...]
    action: Action
    file: Path | None


def load(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Loaded:
    """Combine the settings; `argv` is without the program's name, `environment` defaults to the process's.

    Raises:
        ConfigError: something is unknown or not permitted; the message is for the operator.
        SystemExit: --help, --version, or invalid arguments.
    """
    command = command_line.parse(argv)
    file = command.file or next((place for place in PLACES if place.exists()), None)
    values = {path: key.default for path, key in KEYS.items()}
    provenance = dict.fromkeys(KEYS, "default")
    others: dict[str, dict[str, Any]] = {}
    warnings: tuple[str, ...] = ()
    if file is not None:
        content = read_file(file)
        others, warnings = content.others, tuple(content.warnings)
        values.update(content.values)
        set_there = [*content.values, *(f"backend.{name}.{key}" for name, table in others.items() for key in table)]
        provenance.update(dict.fromkeys(set_there, str(file)))
    surroundings = os.environ if environment is None else environment
    for path, (value, origin) in _environment_values(surroundings).items():
        values[path], provenance[path] = value, origin
    warnings += _runner_warnings(surroundings)
    for path, value in command.values.items():
        option = command.options[path]
        values[path] = _option_value(path, value, option)
        provenance[path] = f"command line {option}"
    return Loaded(_settings(values, others), provenance, warnings, command.action, file)


def _environment_values(environment: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    runner = RUNNERS.get(environment.get(RUNNER_TYPE, "").strip())
    values: dict[str, tuple[object, str]] = (
        {} if runner is None else {runner[0]: (runner[1], f"environment {RUNNER_TYPE}")}
    )
    for variable, path in ENVIRONMENT.items():
        text = environment.get(variable, "").strip()
        if text:
            values[path] = check_text(path, text, "environment", variable), f"environment {variable}"
    return values


def _runner_warnings(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The other server accepts any value; here an unknown one is not an error either, but has no effect."""
    runner = environment.get(RUNNER_TYPE, "").strip()
    if not runner or runner in RUNNERS:
        return ()
    return (f"environment {RUNNER_TYPE}: {runner[:40]!r} is unknown and ignored: known are {', '.join(RUNNERS)}",)


def _option_value(path: str, value: object, option: str) -> object:
    if isinstance(value, str):
        return check_text(path, value, "command line", option)
    return check(path, value, "command line", option)


def _settings(values: Mapping[str, Any], others: dict[str, dict[str, Any]]) -> Settings:
    """Build structs from checked values, by class, so that a backend's section needs no code here."""
    sections: dict[str, Any] = {"backend": {OTHERS: others}}
    for section, struct in SECTIONS.items():
        made = struct(**{key.name: values[key.path] for key in KEYS.values() if key.section == section})
        outer, _, inner = section.partition(".")
        if inner:
            sections[outer][inner] = made
        else:
            sections[outer] = made
    backend = type(Settings().backend)(**sections.pop("backend"))
    return Settings(backend=backend, **sections)


# ---- the settings in force


def describe(loaded: Loaded) -> str:
    """One line per setting, `section.key = value  (source)`, in columns. Secrets are masked."""
    rows: list[tuple[str, str, str]] = []
    for path in KEYS:
        value, origin = value_of(loaded.settings, path), loaded.provenance[path]
        if path in TABLES and value:
            tables = cast("tuple[msgspec.Struct, ...]", value)
            for index, table in enumerate(tables):
                rows += [(f"{path}[{index}].{name}", shown(name, item), origin) for name, item in given(table).items()]
        else:
            rows.append((path, shown_setting(path, value), origin))
    for name, options in loaded.settings.backend.others.items():
        for key, value in options.items():
            path = f"backend.{name}.{key}"
            rows.append((path, shown(key, value), loaded.provenance.get(path, "default")))
    path_width = max(len(path) for path, _, _ in rows)
    # One long value must not push the last column of all lines off the screen.
    value_width = max(len(value) for _, value, _ in rows if len(value) <= 40)
    return "\n".join(f"{path:<{path_width}} = {value:<{value_width}}  ({origin})" for path, value, origin in rows)


# ---- reload


def reload_difference(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """The settings that differ, by `section.key`: those that take effect at once, and those that need a restart."""
    applied: list[str] = []
    needs_restart: list[str] = []
    for path in KEYS:
        if value_of(old, path) != value_of(new, path):
            (applied if _is_taken(path, old) else needs_restart).append(path)
    before, after = _other_options(old), _other_options(new)
    for option in sorted(before.keys() | after.keys()):
        if before.get(option) != after.get(option):
            name, option_name = option
            (applied if _keeps_class(name, old, new) else needs_restart).append(f"backend.{name}.{option_name}")
    return applied, needs_restart


def reloaded(old: Settings, new: Settings) -> Settings:
    """The old settings with the reloadable changes applied: the settings in force after a reload."""
    values = {path: value_of(new if _is_taken(path, old) else old, path) for path in KEYS}
    others = {
        name: new.backend.others[name] if _keeps_class(name, old, new) else options
        for name, options in old.backend.others.items()
    }
    return _settings(values, others)


def _is_taken(path: str, old: Settings) -> bool:
    """Whether a reload applies a changed value. A reload does not create a backend that did not exist at start."""
    is_made = {
        "backend.openai": old.uses_openai,
        "backend.mel": old.uses_mel,
        "backend.test_model": old.uses_test_model,
    }
    return KEYS[path].is_reloadable and is_made.get(KEYS[path].section, True)


def _other_options(settings: Settings) -> dict[tuple[str, str], object]:
    # Boxed, so that a present option differs from an absent one, whatever its value.
    return {
        (name, key): (value,) for name, options in settings.backend.others.items() for key, value in options.items()
    }


def _keeps_class(name: str, old: Settings, new: Settings) -> bool:
    """Whether a backend exists before and after: then it is given its new section, and is not created again."""
    before, after = old.backend.others.get(name), new.backend.others.get(name)
    return before is not None and after is not None and before["class"] == after["class"]
