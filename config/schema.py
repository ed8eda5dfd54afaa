"""The schema of the settings as msgspec knows it, by `section.key`: types, bounds, defaults, and error texts.

Used by the loader, the command line and the reference's generator, so that a key is described in one place only.
Imports the standard library, msgspec and the settings.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec
from msgspec import inspect

from config.headers import fault
from config.settings import BackendSettings, Settings

OTHERS = "others"
"""The only field of `BackendSettings` that is not a section: tables of users' own backends, by name."""

POWERS_OF_TWO = frozenset({"performance.submission_entries", "performance.output_block_bytes"})
OCTAL = frozenset({"server.socket_mode"})
_OCTAL_TEXT = re.compile(r"(0o)?([0-7]{1,6})")
_INTEGER_TEXT = re.compile(r"[+-]?[0-9]{1,20}")
_BOOLEAN_TEXTS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_BOOLEAN_WORDS = "true or false (or 1, 0, yes, no, on, off)"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_USER_INFO = re.compile(r"//[^/?#\s]*@")
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = frozenset(
    {
        *("key", "keys", "apikey", "secret", "secrets", "token", "password", "passphrase", "passwd"),
        *("authorization", "cookie", "credential", "credentials"),
    }
)
# Names that end with such a unit are measures, whatever else they contain (first_token_timeout_ms).
_MEASURES = frozenset({"ms", "s", "max", "min", "bytes", "count", "percent"})
MASK = "********"
HEADERS = "headers"
"""A table of headers: their names are validated, and their values masked, because any may hold a secret."""


class ConfigError(Exception):
    """The configuration is invalid; the message says where, what is wrong, and what is permitted."""


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
        """`section.key`, the key's name in messages and provenance."""
        return f"{self.section}.{self.name}"

    @property
    def is_required(self) -> bool:
        """Whether a table is invalid without it."""
        return self.default is msgspec.NODEFAULT


def _without_none(annotation: Any) -> Any:  # noqa: ANN401  (annotations have no type of their own)
    """The type of a table's key when present: None means that it was omitted, and a file cannot express None."""
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _section_keys(section: str, struct: type[msgspec.Struct]) -> list[Key]:
    annotations = typing.get_type_hints(struct, include_extras=True)
    keys: list[Key] = []
    for field in msgspec.structs.fields(struct):
        annotation = _without_none(annotations[field.name])
        described = inspect.type_info(annotation)
        words: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        while isinstance(described, inspect.Metadata):
            metadata = cast("Any", described)  # its dictionaries are untyped
            words.update(metadata.extra_json_schema or {})
            extra.update(metadata.extra or {})
            described = described.type
        default = field.default if field.default is not msgspec.NODEFAULT else msgspec.NODEFAULT
        if default is msgspec.NODEFAULT and callable(field.default_factory):
            default = field.default_factory()
        keys.append(
            Key(
                section=section,
                name=field.name,
                default=default,
                annotation=annotation,
                type=described,
                description=words.get("description", ""),
                is_reloadable=bool(extra.get("reloadable")),
            )
        )
    return keys


def _sections() -> dict[str, type[msgspec.Struct]]:
    sections = {
        name: struct for name, struct in typing.get_type_hints(Settings).items() if struct is not BackendSettings
    }
    for name, struct in typing.get_type_hints(BackendSettings).items():
        if name != OTHERS:
            sections[f"backend.{name}"] = struct
    return sections


SECTIONS: dict[str, type[msgspec.Struct]] = _sections()
"""Struct of each section, in the order of the settings; a built-in backend is the section `backend.NAME`."""

KEYS: dict[str, Key] = {key.path: key for section, struct in SECTIONS.items() for key in _section_keys(section, struct)}
"""Every setting by `section.key`, in the same order."""


def _item_struct(key: Key) -> type[msgspec.Struct] | None:
    described = key.type.item_type if isinstance(key.type, inspect.VarTupleType) else None
    return described.cls if isinstance(described, inspect.StructType) else None


TABLES: dict[str, type[msgspec.Struct]] = {
    path: struct for path, key in KEYS.items() if (struct := _item_struct(key)) is not None
}
"""Settings that are lists of tables (`[[section.key]]`), and the struct of one table."""

TABLE_KEYS: dict[str, dict[str, Key]] = {
    path: {key.name: key for key in _section_keys(f"{path}[]", struct)} for path, struct in TABLES.items()
}
"""The keys of such a table, by name."""


def value_of(settings: Settings, path: str) -> object:
    """The value of one setting."""
    value: object = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


# ---- values


def check(path: str, value: object, origin: str, shown_as: str | None = None) -> object:
    """The value converted to its setting's type; `shown_as` is the key as written, if not `section.key`.

    Raises:
        ConfigError: wrong type, out of range, or not a power of two where one is needed.
    """
    if path in TABLES:
        return _checked_tables(KEYS[path], value, origin)
    return _checked(KEYS[path], value, origin, shown_as)


def _checked(key: Key, value: object, origin: str, shown_as: str | None = None) -> object:
    candidate = _octal(value) if key.path in OCTAL else value
    try:
        accepted: object = msgspec.convert(candidate, key.annotation)
    except (msgspec.ValidationError, OverflowError) as error:
        raise _refused(key, value, origin, shown_as) from error
    # Reject a float for an integer even if msgspec would convert it: 5.0 connections are a mistake.
    is_float_for_integer = isinstance(key.type, inspect.IntType) and not isinstance(candidate, int)
    is_power = key.path not in POWERS_OF_TWO or (isinstance(accepted, int) and accepted.bit_count() == 1)
    if is_float_for_integer or not is_power:
        raise _refused(key, value, origin, shown_as)
    if key.name == HEADERS:
        problem = fault(cast("dict[str, str]", accepted))
        if problem:
            raise ConfigError(f"{origin}: {key.path}: {problem}")
    return accepted


def _checked_tables(key: Key, value: object, origin: str) -> tuple[msgspec.Struct, ...]:
    most = getattr(key.type, "max_length", None) or 0
    tables = _as_tables(value)
    if tables is None or len(tables) > most:
        raise _refused(key, value, origin)
    checked = tuple(_checked_table(key.path, index, table, origin) for index, table in enumerate(tables))
    seen: dict[object, int] = {}
    for index, name in enumerate(getattr(table, "name", index) for index, table in enumerate(checked)):
        if seen.setdefault(name, index) != index:
            where = f"{key.path}[{index}].name = {shown('name', name)}"
            raise ConfigError(f"{origin}: {where} is refused: {key.path}[{seen[name]}] has it already")
    return checked


def _as_tables(value: object) -> list[object] | None:
    if not isinstance(value, list | tuple):  # the default, an empty list, is a tuple already
        return None
    tables = list(cast("list[object]", value))
    return tables if all(isinstance(table, dict) for table in tables) else None


def _checked_table(path: str, index: int, table: object, origin: str) -> msgspec.Struct:
    section, keys = f"{path}[{index}]", TABLE_KEYS[path]
    values: dict[str, Any] = {}
    for name, value in cast("dict[str, object]", table).items():
        if name not in keys:
            close = difflib.get_close_matches(name, keys, n=1)
            end = f"; did you mean {section}.{close[0]}?" if close else f"; known are {', '.join(keys)}"
            raise ConfigError(f"{origin}: unknown key {section}.{name}{end}")
        values[name] = _checked(replace(keys[name], section=section), value, origin)
    for name, key in keys.items():
        if key.is_required and name not in values:
            raise ConfigError(f"{origin}: {section}.{name} is missing: it is {permitted(key)}")
    return TABLES[path](**values)


def check_text(path: str, text: str, origin: str, shown_as: str | None = None) -> object:
    """As `check`, for a value of the command line or the environment, where everything is text."""
    key = KEYS[path]
    if isinstance(key.type, inspect.BoolType):
        value = _BOOLEAN_TEXTS.get(text.lower())
        if value is None:
            raise _refused(key, text, origin, shown_as, _BOOLEAN_WORDS)
        return value
    is_number = isinstance(key.type, inspect.IntType) and path not in OCTAL
    number = int(text) if is_number and _INTEGER_TEXT.fullmatch(text) else text
    return check(path, number, origin, shown_as)


def _octal(value: object) -> int | None:
    """A mode written as text; otherwise None, which every setting rejects."""
    match = _OCTAL_TEXT.fullmatch(value) if isinstance(value, str) else None
    return int(match[2], 8) if match else None


def _refused(
    key: Key, value: object, origin: str, shown_as: str | None = None, right: str | None = None
) -> ConfigError:
    name = key.path if shown_as is None else f"{shown_as} ({key.path})"
    hint = ""
    if key.path in OCTAL and type(value) is int and 0 <= value <= (getattr(key.type, "le", None) or 0):
        hint = f'; as a decimal number it would be "{value:04o}"'
    return ConfigError(
        f"{origin}: {name} = {shown(key.name, value)} is refused: permitted is {right or permitted(key)}{hint}"
    )


def permitted(key: Key) -> str:
    """What a setting accepts, in words."""
    if key.path in OCTAL:
        low, high = getattr(key.type, "ge", None), getattr(key.type, "le", None)
        return f'a string of octal digits, "{low or 0:04o}" to "{high or 0:04o}"'
    words = " or ".join(f'"{choice}"' for choice in choices(key)) or _described(key.type)
    if key.path in TABLES:
        return f"{words}, written as [[{key.path}]]"
    return words.replace("an integer", "a power of two", 1) if key.path in POWERS_OF_TWO else words


def choices(key: Key) -> list[str]:
    """The values of a setting with few values, in the order of declaration."""
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
        if described.pattern is not None:
            return f"a string that matches {described.pattern}"
        return "a string" + _lengths(described.min_length, described.max_length, "character")
    if isinstance(described, inspect.VarTupleType | inspect.ListType | inspect.DictType):
        return _described_collection(described)
    if isinstance(described, inspect.UnionType):
        return " or ".join(_described(member) for member in described.types)
    return (
        "a table"
        if isinstance(described, inspect.StructType)
        else type(described).__name__.removesuffix("Type").lower()
    )


def _described_collection(described: inspect.VarTupleType | inspect.ListType | inspect.DictType) -> str:
    lengths = _lengths(described.min_length, described.max_length, "item")
    if isinstance(described, inspect.DictType):
        return f"a table{lengths}, each {_described(described.value_type)}"
    return f"a list{lengths}, each {_described(described.item_type)}"


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


# ---- formatting


def is_secret(name: str, value: object) -> bool:
    """Whether a value must be masked. A token count is not a secret, so a plural name counts for text only."""
    words = [word.lower() for word in _WORDS.findall(name)]
    is_number = isinstance(value, int | float)
    # The name of a key file is not a secret, and useful.
    if isinstance(value, bool) or words[-1:] == ["file"] or (is_number and words and words[-1] in _MEASURES):
        return False
    return not _SECRET_WORDS.isdisjoint(words) or ("tokens" in words and not is_number)


def shown(name: str, value: object) -> str:
    """A value in TOML, masked if the key's name marks a secret; headers are masked, too."""
    if value not in ("", None) and is_secret(name, value):
        return MASK
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(_USER_INFO.sub(f"//{MASK}@", value), ensure_ascii=False)
    if isinstance(value, msgspec.Struct):
        value = given(value)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        inside = ", ".join(_shown_member(name, key, item) for key, item in items)
        return f"{{ {inside} }}" if items else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown("", item) for item in cast("list[Any]", value)) + "]"
    return str(value)


def _shown_member(name: str, key: str, value: object) -> str:
    written = key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{written} = {MASK if name == HEADERS and isinstance(value, str) and value else shown(key, value)}"


def given(table: msgspec.Struct) -> dict[str, object]:
    """The keys that a table sets itself; None means that the section's value applies."""
    return {name: value for name, value in msgspec.structs.asdict(table).items() if value is not None}


def shown_setting(path: str, value: object) -> str:
    """As `shown`, for a setting of the schema: permissions are shown in octal."""
    if path in OCTAL and isinstance(value, int):
        return f'"{value:04o}"'
    return shown(path.rpartition(".")[2], value)


def suggestion(section: str, name: str, more: typing.Iterable[str] = ()) -> str:
    """The end of a message about an unknown key: the likely intended key, otherwise the known keys."""
    own = [key.name for key in KEYS.values() if key.section == section]
    elsewhere = [key.path for key in KEYS.values() if key.name == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    close = difflib.get_close_matches(name, own, n=1)
    if close:
        return f"; did you mean {section}.{close[0]}?"
    by_name = {key.name: key.path for key in reversed(KEYS.values())} | {other: other for other in more}
    close = difflib.get_close_matches(name, by_name, n=1)
    if close:
        return f"; did you mean {by_name[close[0]]}?"
    return f"; known in [{section}]: {', '.join(own)}" if own else f"; known sections: {', '.join(SECTIONS)}"
