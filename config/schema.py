"""What msgspec knows of the settings, by `section.key`: types, bounds, defaults, and the words for an error.

Read by the loader, the command line and the generator of the reference, so that a key is described in one place only.
Imports the standard library, msgspec and the settings.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from msgspec import inspect

from config.settings import Backend, Settings

OTHERS = "others"
"""The one field of `Backend` that is no section: tables of backends that are not the project's, by name."""

POWERS_OF_TWO = frozenset({"performance.submission_entries", "performance.output_block_bytes"})
OCTAL = frozenset({"server.socket_mode"})
_OCTAL_TEXT = re.compile(r"(0o)?([0-7]{1,6})")
_INTEGER_TEXT = re.compile(r"[+-]?[0-9]{1,20}")
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = frozenset(
    {
        *("key", "keys", "apikey", "secret", "secrets", "token", "password", "passphrase", "passwd"),
        *("authorization", "cookie", "credential", "credentials"),
    }
)
MASK = "********"


class ConfigError(Exception):
    """The configuration cannot be used; the message says where, what is wrong, and what would be right."""


@dataclass(frozen=True)
class Key:
    """One setting."""

    section: str
    name: str
    default: Any
    annotation: Any
    type: inspect.Type
    description: str
    is_reloadable: bool

    @property
    def path(self) -> str:
        """`section.key`, the name by which messages and provenance know it."""
        return f"{self.section}.{self.name}"


def _section_keys(section: str, struct: type[msgspec.Struct]) -> list[Key]:
    annotations = typing.get_type_hints(struct, include_extras=True)
    keys: list[Key] = []
    for field in msgspec.structs.fields(struct):
        described = inspect.type_info(annotations[field.name])
        words: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        while isinstance(described, inspect.Metadata):
            metadata = cast("Any", described)  # its dictionaries have no types
            words.update(metadata.extra_json_schema or {})
            extra.update(metadata.extra or {})
            described = described.type
        default = field.default if field.default is not msgspec.NODEFAULT else msgspec.NODEFAULT
        if default is msgspec.NODEFAULT and callable(field.default_factory):
            default = field.default_factory()
        assert default is not msgspec.NODEFAULT, f"{section}.{field.name} has no default"
        keys.append(
            Key(
                section=section,
                name=field.name,
                default=default,
                annotation=annotations[field.name],
                type=described,
                description=words.get("description", ""),
                is_reloadable=bool(extra.get("reloadable")),
            )
        )
    return keys


def _sections() -> dict[str, type[msgspec.Struct]]:
    sections = {name: struct for name, struct in typing.get_type_hints(Settings).items() if struct is not Backend}
    for name, struct in typing.get_type_hints(Backend).items():
        if name != OTHERS:
            sections[f"backend.{name}"] = struct
    return sections


SECTIONS: dict[str, type[msgspec.Struct]] = _sections()
"""Struct of each section, in the order of the settings; a backend of the project is the section `backend.NAME`."""

KEYS: dict[str, Key] = {key.path: key for section, struct in SECTIONS.items() for key in _section_keys(section, struct)}
"""Every setting by `section.key`, in the same order."""


def value_of(settings: Settings, path: str) -> object:
    """The value of one setting."""
    value: object = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


# ---- values


def check(path: str, value: object, origin: str, shown_as: str | None = None) -> object:
    """A value as its setting holds it; `shown_as` is how the person wrote the key, where that was not `section.key`.

    Raises:
        ConfigError: wrong type, out of range, or not a power of two where one is needed.
    """
    key = KEYS[path]
    candidate = _octal(value) if path in OCTAL else value
    try:
        accepted: object = msgspec.convert(candidate, key.annotation)
    except (msgspec.ValidationError, OverflowError) as error:
        raise _refused(key, value, origin, shown_as) from error
    # A float is no integer here, even one that msgspec would take for it: 5.0 connections are a mistake.
    is_float_for_integer = isinstance(key.type, inspect.IntType) and not isinstance(candidate, int)
    is_power = path not in POWERS_OF_TWO or (isinstance(accepted, int) and accepted.bit_count() == 1)
    if is_float_for_integer or not is_power:
        raise _refused(key, value, origin, shown_as)
    return accepted


def check_text(path: str, text: str, origin: str, shown_as: str | None = None) -> object:
    """The same for a value of the command line or the environment, where everything is text."""
    is_number = isinstance(KEYS[path].type, inspect.IntType) and path not in OCTAL
    value = int(text) if is_number and _INTEGER_TEXT.fullmatch(text) else text
    return check(path, value, origin, shown_as)


def _octal(value: object) -> int | None:
    """A mode that was written as text; None, which no setting takes, for any other."""
    found = _OCTAL_TEXT.fullmatch(value) if isinstance(value, str) else None
    return int(found[2], 8) if found else None


def _refused(key: Key, value: object, origin: str, shown_as: str | None) -> ConfigError:
    name = key.path if shown_as is None else f"{shown_as} ({key.path})"
    hint = ""
    if key.path in OCTAL and type(value) is int and 0 <= value <= (getattr(key.type, "le", None) or 0):
        hint = f'; as a decimal number it would be "{value:04o}"'
    return ConfigError(f"{origin}: {name} = {shown(key.name, value)} is refused: permitted is {permitted(key)}{hint}")


def permitted(key: Key) -> str:
    """What a setting accepts, in words."""
    if key.path in OCTAL:
        low, high = getattr(key.type, "ge", None), getattr(key.type, "le", None)
        return f'a string of octal digits, "{low or 0:04o}" to "{high or 0:04o}"'
    words = " or ".join(f'"{choice}"' for choice in choices(key)) or _described(key.type)
    return words.replace("an integer", "a power of two", 1) if key.path in POWERS_OF_TWO else words


def choices(key: Key) -> list[str]:
    """The values of a setting that has only a few, in the order in which they were declared."""
    if not isinstance(key.type, inspect.LiteralType):
        return []
    literal = key.annotation
    while typing.get_origin(literal) is not typing.Literal:
        literal = typing.get_args(literal)[0]
    return [str(value) for value in typing.get_args(literal)]


def _described(described: inspect.Type) -> str:
    while isinstance(described, inspect.Metadata):
        described = described.type
    if isinstance(described, inspect.BoolType):
        return "true or false"
    if isinstance(described, inspect.LiteralType):
        return " or ".join(shown("", value) for value in described.values)
    if isinstance(described, inspect.IntType | inspect.FloatType):
        return ("an integer" if isinstance(described, inspect.IntType) else "a number") + _bounds(described)
    if isinstance(described, inspect.StrType):
        return "a string" + _lengths(described.min_length, described.max_length, "character")
    if isinstance(described, inspect.VarTupleType | inspect.ListType):
        item = _described(described.item_type)
        return f"a list{_lengths(described.min_length, described.max_length, 'item')}, each {item}"
    if isinstance(described, inspect.UnionType):
        return " or ".join(_described(one) for one in described.types)
    return type(described).__name__.removesuffix("Type").lower()


def _bounds(number: inspect.IntType | inspect.FloatType) -> str:
    low, high = number.ge, number.le
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", {low} or more"
    return "" if high is None else f", {high} or less"


def _lengths(low: int | None, high: int | None, unit: str) -> str:
    if low and high is not None:
        return f" of {low} to {high} {unit}s"
    if high is not None:
        return f" of at most {high} {unit}s"
    return f" of at least {low} {unit}{'s' if low > 1 else ''}" if low else ""


# ---- words


def is_secret(name: str, value: object) -> bool:
    """Whether a value must not be printed. A count of tokens is no secret, so the plural counts for text alone."""
    words = {word.lower() for word in _WORDS.findall(name)}
    if isinstance(value, bool):
        return False
    return bool(words & _SECRET_WORDS) or ("tokens" in words and not isinstance(value, int | float))


def shown(name: str, value: object) -> str:
    """A value as TOML writes it, masked where the key's name says that it is a secret."""
    if value not in ("", None) and is_secret(name, value):
        return MASK
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return "{ " + ", ".join(f"{key} = {shown(key, item)}" for key, item in items) + " }" if items else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown("", item) for item in cast("list[Any]", value)) + "]"
    return str(value)


def shown_setting(path: str, value: object) -> str:
    """The same for a setting of the schema: permissions in octal, as they are written."""
    if path in OCTAL and isinstance(value, int):
        return f'"{value:04o}"'
    return shown(path.rpartition(".")[2], value)


def suggestion(section: str, name: str, more: typing.Iterable[str] = ()) -> str:
    """The end of a sentence about an unknown key: what was probably meant, otherwise what there is."""
    own = [key.name for key in KEYS.values() if key.section == section]
    elsewhere = [key.path for key in KEYS.values() if key.name == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    close = difflib.get_close_matches(name, own, n=1)
    if close:
        return f"; did you mean {section}.{close[0]}?"
    by_name = {key.name: key.path for key in reversed(KEYS.values())} | {one: one for one in more}
    close = difflib.get_close_matches(name, by_name, n=1)
    if close:
        return f"; did you mean {by_name[close[0]]}?"
    return f"; known in [{section}]: {', '.join(own)}" if own else f"; known sections: {', '.join(SECTIONS)}"
