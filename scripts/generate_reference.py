"""Writes streaming-daemon.toml.example, docs/settings.md and the tables of docs/contract.md; --check names stale ones.

python -m scripts.generate_reference [--check]
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from config.command_line import OPTIONS
from config.load import ENVIRONMENT, PLACES, RUNNER_TYPE, RUNNERS
from config.schema import KEYS, SECTIONS, TABLE_KEYS, permitted, shown_setting
from config.toml_file import C_KEYS
from scripts.message_tables import CONTRACT, contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.schema import Key

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = Path("streaming-daemon.toml.example")
REFERENCE = Path("docs/settings.md")
WIDTH = 100
SWITCHED_ON = {"monitoring.metrics_port": 9090}
"""What the example sets: metrics are off by default, as the C daemon's, but who copies a file wants them."""

SOURCES = "config/settings.py, config/http.py, config/openai.py, config/mel.py and config/test_model.py"
TABLE_EXAMPLES = {
    "backend.openai.upstreams": (
        'name = "gpu-1"',
        'api_base = "http://10.0.0.1:8000/v1"',
        'api_key = ""',
        'models = ["llama-3.1-8b-instruct"]',
    )
}

NOTE = f"<!-- Generated from {SOURCES} by scripts/generate_reference.py: edit there, not here. -->"
PRECEDENCE = """\
Precedence: the command line, the environment, the file, the defaults.
`streaming-daemon --check-config` prints the settings in force and the source of each value.
The file is the one that `--config` names, otherwise the first of these that exists:"""
STRICTNESS = """\
An unknown key, a wrong type or a value out of range is an error, and the daemon does not start. Settings marked
*reload* take effect on SIGHUP; any other change needs a restart, and the reload names it."""
OWN_BACKEND = """\
Any other table below `backend` configures a backend of your own. `class` is required and has the form
`"package.module:Class"`; the other keys are passed to it unchanged. They take effect on SIGHUP unless the class
changes."""
C_FILES = """\
They load unchanged, except for a mode in decimal. These keys are accepted in any section, or outside of all; only the
section of a backend of your own keeps all its keys. `socket_mode = 0660`, which is not TOML, is read as octal, with a
warning. `socket_mode = 432` is refused: the C daemon read it as decimal, and the error says what to write instead.
When a file sets a value twice, the later value applies, with a warning."""


def example() -> str:
    """The example file. Defaults are comments in it, so that a copy does not overrule a later default."""
    lines = [
        f"# Settings of streaming-daemon. Generated from {SOURCES} by scripts/generate_reference.py.",
        "#",
        "# Copy it to one of these places; the first that exists is read, unless --config names another:",
        *(f"#   {_place(place)}" for place in PLACES),
        "# Precedence: the command line, the environment, this file, the defaults.",
        "# A key that is commented out shows its default. `--check-config` prints the values in force.",
    ]
    for section in SECTIONS:
        lines += ["", *_comment(_purpose(section)), f"[{section}]"]
        for key in _keys(section):
            lines += ["", *_comment(f"{_sentence(key.description)} {_sentence(permitted(key))}{_reload_note(key)}")]
            is_set = key.path in SWITCHED_ON
            value = shown_setting(key.path, SWITCHED_ON.get(key.path, key.default))
            lines.append(f"{'' if is_set else '#'}{key.name} = {value}")
            if key.path in TABLE_KEYS:
                lines += _example_table(key)
    lines += [
        "",
        "# A backend of your own: its class, and its options.",
        "#[backend.mine]",
        '#class = "package.module:Class"',
    ]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """docs/settings.md."""
    places = "\n".join(f"- `{_place(place)}`" for place in PLACES)
    parts = ["# Settings", NOTE, PRECEDENCE, places, STRICTNESS]
    for section in SECTIONS:
        rows = [
            (
                f"`{key.name}`",
                f"`{_default(key)}`",
                permitted(key),
                "reload" if key.is_reloadable else "",
                key.description,
            )
            for key in _keys(section)
        ]
        parts += [
            f"## [{section}]",
            _purpose(section),
            _table(("Key", "Default", "Permitted", "SIGHUP", "Meaning"), rows),
        ]
        for key in _keys(section):
            if key.path in TABLE_KEYS:
                parts += _table_reference(key)
    return "\n\n".join([*parts, *_other_ways()]) + "\n"


def _example_table(key: Key) -> list[str]:
    """How a table of the list is written. No line of it begins like a setting that may be uncommented alone."""
    names = ", ".join(TABLE_KEYS[key.path])
    return [
        *_comment("Each is a table, below the section's own keys, such as:"),
        f"#   [[{key.path}]]",
        *(f"#   {line}" for line in TABLE_EXAMPLES[key.path]),
        *_comment(f"What it leaves out is as in [{key.section}]. Its keys: {names}."),
    ]


def _table_reference(key: Key) -> list[str]:
    assert all(one.is_reloadable for one in TABLE_KEYS[key.path].values()), "the sentence below says so"
    rows: list[tuple[str, str, str, str]] = []
    for name, one in TABLE_KEYS[key.path].items():
        default = "required" if one.is_required else "the section's" if one.default is None else f"`{one.default}`"
        rows.append((f"`{name}`", default, permitted(one), one.description))
    return [
        f"### [[{key.path}]]",
        f"{_sentence(key.description)} All of it takes effect on SIGHUP, for streams that start from then.",
        _table(("Key", "Default", "Permitted", "Meaning"), rows),
    ]


def _other_ways() -> list[str]:
    options = [(f"`{option}`", f"`{path}`") for option, path in OPTIONS.items()]
    options.append(("`--metrics [ADDRESS:]PORT`", "`monitoring.metrics_address`, `monitoring.metrics_port`"))
    variables = [(f"`{variable}`", f"`{path}`") for variable, path in ENVIRONMENT.items()]
    variables += [(f"`{RUNNER_TYPE}={known}`", f"`{path} = {value}`") for known, (path, value) in RUNNERS.items()]
    names = [(f"`{name}`", f"`{path}`") for name, path in C_KEYS.items()]
    return [
        *("## [backend.NAME]", OWN_BACKEND),
        *("## Options and variables", _table(("Option", "Sets"), options), _table(("Variable", "Sets"), variables)),
        *("## Files of the C daemon", C_FILES, _table(("Key", "Sets"), names)),
    ]


def _keys(section: str) -> list[Key]:
    return [key for key in KEYS.values() if key.section == section]


def _purpose(section: str) -> str:
    return " ".join((SECTIONS[section].__doc__ or "").split())


def _place(place: Path) -> str:
    return str(place) if place.is_absolute() else f"./{place}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _reload_note(key: Key) -> str:
    return " Reloadable." if key.is_reloadable else ""


def _default(key: Key) -> str:
    return shown_setting(key.path, key.default)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def generated() -> dict[Path, str]:
    """The generated files' texts, by their paths below the root."""
    return {EXAMPLE: example(), REFERENCE: reference(), CONTRACT: contract()}


def stale(root: Path = ROOT) -> list[Path]:
    """The files that are missing or differ from what would be written."""
    return [
        path
        for path, text in generated().items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write what is stale, or with --check only say so; the exit status."""
    parser = argparse.ArgumentParser(
        description="Write the example file, docs/settings.md and the tables of docs/contract.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    arguments = parser.parse_args(argv)
    paths = stale(root)
    for path in paths:
        if arguments.check:
            print(f"{path} is stale: run python -m scripts.generate_reference", file=sys.stderr)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(generated()[path], encoding="utf-8")
            print(f"wrote {path}")
    return 1 if arguments.check and paths else 0


if __name__ == "__main__":
    sys.exit(main())
