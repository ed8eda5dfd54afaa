"""The tables of docs/contract.md: one for each kind of command and event, from its declaration in daemon/plane.

A field's meaning is the comment behind it in the source.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.plane import command_records, event_records, messages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from daemon.plane.message_layout import Field

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = Path("docs/contract.md")
BEGIN = "<!-- Generated from daemon/plane/*_records.py by scripts/generate_reference.py: edit there, not here. -->"
COMMAND_HEADER = (
    "Behind the kind, at 2: the total size, payload and padding included (u2); at 4: the payload's size (u2)."
)
END = "<!-- End of what is generated. -->"


def contract() -> str:
    """docs/contract.md, its tables made anew."""
    before, found, rest = (ROOT / CONTRACT).read_text(encoding="utf-8").partition(BEGIN)
    _, found_end, after = rest.partition(END)
    assert found, f"{CONTRACT} lacks the line {BEGIN}"
    assert found_end, f"{CONTRACT} lacks the line {END}"
    return before + "\n\n".join([BEGIN, *_sections(), END]) + after


def _sections() -> Iterator[str]:
    yield f"### Commands ({messages.COMMAND_BYTES} bytes, then the payload)"
    meanings = _meanings(command_records)
    yield COMMAND_HEADER
    for kind, command in command_records.COMMAND_LAYOUTS.items():
        yield _section(kind, command.record, command.fields, meanings)
    yield f"### Events ({messages.EVENT_BYTES} bytes)"
    meanings = _meanings(event_records)
    for kind, event in event_records.EVENT_LAYOUTS.items():
        yield _section(kind, event.record, event.fields, meanings)


def _section(kind: int, record: type[Any], fields: Iterable[Field], meanings: dict[tuple[str, str], str]) -> str:
    name = record.__name__.removesuffix("Event").removesuffix("Command")
    rows = [
        f"| {field.offset} | `{field.name}` | {_shown(field.format)} | {meanings[record.__name__, field.name]} |"
        for field in fields
    ]
    table = ["", "| Offset | Field | Type | Meaning |", "| --- | --- | --- | --- |", *rows] if rows else []
    return "\n".join([f"#### {_constant(name)} ({kind})", "", inspect.cleandoc(record.__doc__ or ""), *table])


def _constant(name: str) -> str:
    """KEEP_ALIVE_DUE for KeepAliveDue."""
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).removeprefix("_")


def _shown(kind: str) -> str:
    return f"{kind[1:]} bytes" if kind.startswith("S") else kind.removeprefix("<")


def _meanings(module: ModuleType) -> dict[tuple[str, str], str]:
    """The comment behind each field, by class and name."""
    source = inspect.getsource(module)
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        (record.name, field.target.id): comments[field.lineno].replace("|", "\\|")
        for record in ast.parse(source).body
        if isinstance(record, ast.ClassDef) and record.name.endswith(("Event", "Command"))
        for field in record.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
