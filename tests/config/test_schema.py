"""Bounds, types and names: what is permitted is accepted from every source, the rest is refused in the same words."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from config.command_line import OPTIONS
from config.load import ConfigError, Loaded, load
from config.schema import (
    KEYS,
    OCTAL,
    POWERS_OF_TWO,
    TABLE_KEYS,
    TABLES,
    Key,
    check,
    choices,
    permitted,
    shown_setting,
    value_of,
)

INTEGERS = [key for key in KEYS.values() if isinstance(key.type, inspect.IntType) and key.path not in OCTAL]
PLAIN_INTEGERS = [key for key in INTEGERS if key.path not in POWERS_OF_TWO]
WRONG: dict[str, object] = {
    "bool": True,
    "integer": 1 << 62,
    "float": 1.5,
    "string": "x\0y" * 100,
    "list": [[]],
    "table": {"a": 1},
}


def bounds(key: Key) -> tuple[int, int]:
    assert isinstance(key.type, inspect.IntType)
    assert key.type.ge is not None, f"{key.path} has no lower bound"
    assert key.type.le is not None, f"{key.path} has no upper bound"
    return int(key.type.ge), int(key.type.le)


def permitted_values(key: Key) -> st.SearchStrategy[Any]:
    if key.path in POWERS_OF_TWO:
        low, high = bounds(key)
        return st.sampled_from([1 << shift for shift in range(32) if low <= 1 << shift <= high])
    if isinstance(key.type, inspect.IntType):
        return st.integers(*bounds(key))
    if isinstance(key.type, inspect.BoolType):
        return st.booleans()
    if isinstance(key.type, inspect.LiteralType):
        return st.sampled_from(choices(key))
    if isinstance(key.type, inspect.StrType):
        return permitted_texts(key.type)
    return permitted_collections(key)


def permitted_texts(described: inspect.StrType) -> st.SearchStrategy[str]:
    if described.pattern is not None:
        return st.from_regex(described.pattern.strip("^$"), fullmatch=True)
    letters = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])
    return st.text(letters, min_size=described.min_length or 0, max_size=min(described.max_length or 40, 40))


def permitted_collections(key: Key) -> st.SearchStrategy[Any]:
    if isinstance(key.type, inspect.FloatType):
        return st.floats(key.type.ge, key.type.le, width=16)
    if isinstance(key.type, inspect.DictType):
        return st.dictionaries(st.from_regex(r"X-[A-Z]{1,9}", fullmatch=True), st.sampled_from(["", "a", "a b"]))
    assert isinstance(key.type, inspect.VarTupleType), f"{key.path}: teach this test its type"
    if key.path in TABLES:
        return st.lists(permitted_tables(key.path), unique_by=lambda table: str(table["name"]), max_size=3)
    if isinstance(inner(key.type.item_type), inspect.StrType):
        return st.lists(st.sampled_from(["a", "b=c"]), max_size=8).map(tuple)
    return st.lists(st.integers(0, 1 << 31), max_size=key.type.max_length or 8).map(tuple)


def inner(described: inspect.Type) -> inspect.Type:
    return described.type if isinstance(described, inspect.Metadata) else described


def permitted_tables(path: str) -> st.SearchStrategy[dict[str, Any]]:
    keys = TABLE_KEYS[path]
    required = {name: permitted_values(key) for name, key in keys.items() if key.is_required}
    optional = {name: permitted_values(key) for name, key in keys.items() if not key.is_required}
    return st.fixed_dictionaries(required, optional=optional)


def written(value: object) -> str:
    """As TOML, secrets included: JSON's texts and numbers are TOML's, too."""
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return "{" + ", ".join(f"{json.dumps(name)} = {written(item)}" for name, item in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(item) for item in cast("list[object]", value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def setting(path: str, value: object) -> str:
    return shown_setting(path, value) if path in OCTAL else written(value)


def held(path: str, value: object) -> object:
    """As the settings hold it."""
    if path in TABLES:
        return msgspec.convert(value, tuple[TABLES[path], ...])  # type: ignore[valid-type]
    return value


def load_text(text: str, *more: str) -> Loaded:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.toml"
        path.write_text(text, encoding="utf-8")
        return load(["--config", str(path), *more], {})


def test_every_key_has_a_description_and_a_default_that_is_permitted() -> None:
    for key in KEYS.values():
        assert key.description, key.path
        written = f"{key.default:o}" if key.path in OCTAL else key.default
        assert check(key.path, written, "test") == key.default


@given(st.data())
def test_what_is_permitted_comes_back_from_a_file(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(list(KEYS.values())))
    value = data.draw(permitted_values(key))
    settings = load_text(f"[{key.section}]\n{key.name} = {setting(key.path, value)}\n").settings
    assert value_of(settings, key.path) == held(key.path, value)
    others = [path for path in KEYS if path != key.path]
    assert all(value_of(settings, path) == KEYS[path].default for path in others)


@given(st.data())
def test_all_settings_at_once_come_back_from_a_file(data: st.DataObject) -> None:
    values = {path: data.draw(permitted_values(key), path) for path, key in KEYS.items()}
    lines = [f"{path} = {setting(path, value)}" for path, value in values.items()]
    settings = load_text("\n".join(lines)).settings
    assert {path: value_of(settings, path) for path in KEYS} == {path: held(path, values[path]) for path in KEYS}


@given(st.data())
def test_what_is_permitted_comes_back_from_the_command_line(data: st.DataObject) -> None:
    option = data.draw(st.sampled_from(sorted(OPTIONS)))
    key = KEYS[OPTIONS[option]]
    value = data.draw(permitted_values(key))
    if isinstance(value, bool):
        arguments = [option] if value else []
    else:
        text = f"{value:04o}" if key.path in OCTAL else str(value)
        arguments = [f"{option}={text}"]
    loaded = load_text("", *arguments)
    assert value_of(loaded.settings, key.path) == value
    assert loaded.provenance[key.path] == (f"command line {option}" if arguments else "default")


@pytest.mark.parametrize("key", PLAIN_INTEGERS, ids=lambda key: key.path)
def test_the_bounds_are_permitted_and_what_lies_beyond_is_not(key: Key) -> None:
    low, high = bounds(key)
    assert check(key.path, low, "test") == low
    assert check(key.path, high, "test") == high
    for beyond in (low - 1, high + 1, 1 << 80, -(1 << 80)):
        with pytest.raises(ConfigError) as raised:
            check(key.path, beyond, "here.toml")
        assert (
            str(raised.value)
            == f"here.toml: {key.path} = {beyond} is refused: permitted is an integer, {low} to {high}"
        )


@given(st.sampled_from(INTEGERS), st.integers())
def test_an_integer_is_accepted_exactly_within_its_bounds(key: Key, value: int) -> None:
    low, high = bounds(key)
    is_right = low <= value <= high and (key.path not in POWERS_OF_TWO or value & (value - 1) == 0)
    try:
        assert check(key.path, value, "test") == value
    except ConfigError:
        assert not is_right
    else:
        assert is_right


@pytest.mark.parametrize("path", sorted(POWERS_OF_TWO))
def test_sizes_of_rings_are_powers_of_two(path: str) -> None:
    low, high = bounds(KEYS[path])
    for value in (low, low * 2, high):
        assert check(path, value, "test") == value
    for value in (low + 1, low * 3, high - 1):
        with pytest.raises(ConfigError, match=f"permitted is a power of two, {low} to {high}"):
            check(path, value, "test")


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.path)
def test_a_wrong_type_is_refused(key: Key, kind: str) -> None:
    is_long_text_permitted = isinstance(key.type, inspect.StrType) and (key.type.max_length or 1000) > 300
    is_right = kind == "float" and isinstance(key.type, inspect.FloatType) and key.type.le == 2
    if (
        is_right
        or (kind == "bool" and isinstance(key.type, inspect.BoolType))
        or (kind == "string" and is_long_text_permitted)
    ):
        pytest.skip("its own type")
    with pytest.raises(ConfigError) as raised:
        check(key.path, WRONG[kind], "here.toml")
    assert str(raised.value).startswith(f"here.toml: {key.path} = ")
    assert str(raised.value).endswith(f" is refused: permitted is {permitted(key)}")


# ---- names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nsocket_paht = 'x'", "unknown key server.socket_paht; did you mean server.socket_path?"),
        (
            "[timeouts]\nwrite_timeout = 1",
            "unknown key timeouts.write_timeout; did you mean timeouts.write_timeout_ms?",
        ),
        ("[server]\nlevel = 'info'", "unknown key server.level; did you mean logging.level?"),
        ("[logging]\nmetrics_adress = 'x'", "did you mean monitoring.metrics_address?"),
        ("[backend.mock]\ntoken = 1", "unknown key backend.mock.token; did you mean backend.mock.tokens?"),
        ("[backend]\nlatency_ms = 1", "unknown key backend.latency_ms; did you mean backend.mock.latency_ms?"),
        ("kernel = 'auto'", "unknown key kernel, outside any section; did you mean server.kernel?"),
        ("max_conections = 5", "did you mean max_connections?"),
        ("dellay = 5", "did you mean delay?"),
        ("[sever]\nbacklog = 1", "unknown section [sever] (with backlog); did you mean [server]?"),
        ("[qqq]\nwww = 1", "unknown section [qqq] (with www); known are server, timeouts, "),
        ("[logging]\nqqqq = 1", "unknown key logging.qqqq; known in [logging]: level, format"),
        ("qqqq = 1", "unknown key qqqq, outside any section; known sections: server, timeouts, "),
        ("limits = 5", "limits is a section: write [limits]"),
        ("backend = 'mock'", "backend is a section: write [backend]"),
        ("[server.socket_path]\nx = 1", "server.socket_path = { x = 1 } is refused"),
        ("delay = 60001", "delay (streaming.message_delay_ms) = 60001 is refused: permitted is an integer, 0 to 60000"),
        ("[logging]\nlevel = 'loud'", '"loud" is refused: permitted is "debug" or "info" or "warning" or "error"'),
        ("[server]\nallowed_uids = ['root']", "permitted is a list of at most 64 items, each an integer"),
        (
            "[server]\nallowed_uids = [-1]",
            "= [-1] is refused: permitted is a list of at most 64 items, each an integer, 0",
        ),
        ("[server]\nallowed_gids = [4294967295]", "each an integer, 0 to 4294967294"),
        ("[streaming]\nkeep_alive_ms = 2024-01-01", "streaming.keep_alive_ms = 2024-01-01 is refused"),
    ],
)
def test_an_error_names_file_and_key_and_what_would_be_right(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "given.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load(["--config", str(path)], {})
    assert str(raised.value).startswith(f"{path}: ")
    assert expected in str(raised.value)


@given(st.sampled_from(list(KEYS.values())), st.data())
def test_the_right_key_is_suggested_for_one_with_a_letter_too_many(key: Key, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(key.name) - 1))
    misspelt = key.name[: index + 1] + key.name[index:]
    with pytest.raises(ConfigError) as raised:
        load_text(f"[{key.section}]\n{misspelt} = 1")
    assert f"did you mean {key.path}?" in str(raised.value)


@given(st.text(max_size=200))
def test_any_text_loads_or_is_refused_in_words(text: str) -> None:
    try:
        load_text(text.replace("\r", ""))
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert "given.toml: " in message
