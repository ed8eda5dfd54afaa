"""[backend.openai]: lists of tables, the environment, what is masked, and what a reload may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from config import load as loading
from config.load import ConfigError, Loaded, describe, load, reload_difference, reloaded
from config.openai import API_BASE_DEFAULT, UPSTREAMS_MAX, OpenAIBackend, Upstream
from config.schema import KEYS, TABLE_KEYS, is_secret, shown
from config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Loading = Callable[..., Loaded]

TABLES = "backend.openai.upstreams"


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    monkeypatch.setattr(loading, "PLACES", ())

    def load_text(text: str = "", **environment: str) -> Loaded:
        path = tmp_path / "given.toml"
        path.write_text(text, encoding="utf-8")
        return load(["--config", str(path)], environment)

    return load_text


def refusal(loaded: Loading, text: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as raised:
        loaded(text, **environment)
    return str(raised.value)


# ---- lists of tables

TWO = """
[backend.openai]
api_key = "hidden1"

[[backend.openai.upstreams]]
name = "gpu-1"
api_base = "http://10.0.0.1:8000"
models = ["a", "b=c"]
headers = { X-Own = "hidden2" }

[[backend.openai.upstreams]]
name = "gpu_2.b"
weight = 3
api_key = "hidden3"
temperature = 1
"""


def test_tables_are_read_in_their_order(loaded: Loading) -> None:
    section = loaded(TWO).settings.backend.openai
    assert section.upstreams == (
        Upstream(name="gpu-1", api_base="http://10.0.0.1:8000", models=("a", "b=c"), headers={"X-Own": "hidden2"}),
        Upstream(name="gpu_2.b", weight=3, api_key="hidden3", temperature=1.0),
    )
    assert loaded("[backend]\nopenai = { upstreams = [{ name = 'a' }] }").settings.backend.openai.upstreams == (
        Upstream(name="a"),
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("upstreams = 5", f"{TABLES} = 5 is refused: permitted is a list of at most {UPSTREAMS_MAX} items, each"),
        ("upstreams = [5]", f"{TABLES} = [5] is refused: "),
        ("upstreams = { name = 'a' }", f"written as [[{TABLES}]]"),
        ("upstreams = [{}]", f"{TABLES}[0].name is missing: it is a string that matches"),
        ("upstreams = [{name='A b'}]", f'{TABLES}[0].name = "A b" is refused: permitted is a string that matches'),
        ("upstreams = [{name='a'}, {name='a'}]", f'{TABLES}[1].name = "a" is refused: {TABLES}[0] has it already'),
        ("upstreams = [{name='a'}, {name='b', weight=0}]", f"{TABLES}[1].weight = 0 is refused: permitted is an int"),
        ("upstreams = [{name='a', weight=1.0}]", f"{TABLES}[0].weight = 1.0 is refused"),
        ("upstreams = [{name='a', weight=true}]", f"{TABLES}[0].weight = true is refused"),
        ("upstreams = [{name='a', wieght=1}]", f"unknown key {TABLES}[0].wieght; did you mean {TABLES}[0].weight?"),
        ("upstreams = [{name='a', qqqqq=1}]", f"unknown key {TABLES}[0].qqqqq; known are name, priority, weight, "),
        ("upstreams = [{name='a', attempts_max=1}]", f"unknown key {TABLES}[0].attempts_max"),
        ("upstreams = [{name='a', on_disconnect='stop'}]", 'permitted is "cancel" or "drain"'),
        ("upstreams = [{name='a', api_key=5}]", f"{TABLES}[0].api_key = ******** is refused: permitted is a string"),
        ("upstreams = [{name='a', temperature=nan}]", f"{TABLES}[0].temperature = nan is refused"),
        ("upstreams = [{name='a', models='m'}]", f'{TABLES}[0].models = "m" is refused: permitted is a list'),
        ("upstreams = [{name='a', headers={Host='x'}}]", f"{TABLES}[0].headers: Host is refused: "),
        ("headers = { TE = 'x' }", "backend.openai.headers: TE is refused: it concerns a connection"),
        ("headers = { X = 5 }", "backend.openai.headers = { X = 5 } is refused: permitted is a table of at most"),
        ("upstream = []", "unknown key backend.openai.upstream; did you mean backend.openai.upstreams?"),
        ("format = 'raw'", 'backend.openai.format = "raw" is refused: permitted is "content" or "openai"'),
    ],
)  # fmt: skip
def test_an_error_names_the_table_and_the_key(lines: str, expected: str, loaded: Loading) -> None:
    message = refusal(loaded, f"[backend.openai]\n{lines}")
    assert "given.toml: " in message
    assert expected in message


def test_a_list_is_bounded(loaded: Loading) -> None:
    tables = "".join(f"[[{TABLES}]]\nname = 'u{index}'\n" for index in range(UPSTREAMS_MAX + 1))
    assert "of at most" in refusal(loaded, tables)


def test_every_key_of_a_table_has_its_words() -> None:
    for key in TABLE_KEYS[TABLES].values():
        assert key.description, key.name
        assert key.is_reloadable, key.name
        in_section = KEYS.get(f"backend.openai.{key.name}")
        assert in_section is None or in_section.description == key.description


# ---- the environment


def test_the_environment_sets_the_section(loaded: Loading) -> None:
    found = loaded(
        "[backend.openai]\napi_key = 'file'\nmodel = 'file'",
        OPENAI_API_KEY="sk-1", OPENAI_API_BASE="http://host/", OPENAI_API_SOCKET="/run/x", OPENAI_MODEL="m",
        OPENAI_HTTP2_ENABLED="true", OPENAI_INSECURE_SSL="1",
    )  # fmt: skip
    section = found.settings.backend.openai
    assert (section.api_key, section.api_base, section.api_socket) == ("sk-1", "http://host/", "/run/x")
    assert (section.model, section.http2_enabled, section.insecure_ssl) == ("m", True, True)
    assert found.provenance["backend.openai.api_key"] == "environment OPENAI_API_KEY"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("true", "1", "yes", "on", "TRUE", " On ")),
        *((text, False) for text in ("false", "0", "no", "off", "False", "")),
    ],
)
def test_booleans_of_the_environment(text: str, *, expected: bool, loaded: Loading) -> None:
    assert loaded(OPENAI_HTTP2_ENABLED=text).settings.backend.openai.http2_enabled is expected


@pytest.mark.parametrize("text", ["maybe", "2", "y", "tru", "-1"])
def test_what_is_no_boolean_names_the_variable(text: str, loaded: Loading) -> None:
    assert refusal(loaded, "", OPENAI_INSECURE_SSL=text) == (
        f'environment: OPENAI_INSECURE_SSL (backend.openai.insecure_ssl) = "{text}" is refused: '
        "permitted is true or false (or 1, 0, yes, no, on, off)"
    )


def test_a_key_that_is_too_long_is_not_repeated(loaded: Loading) -> None:
    message = refusal(loaded, "", OPENAI_API_KEY="k" * 5000)
    assert "environment: OPENAI_API_KEY (backend.openai.api_key) = ******** is refused" in message


# ---- what is shown


def test_check_config_shows_tables_by_their_keys_and_no_secret(loaded: Loading) -> None:
    text = describe(loaded(TWO))
    assert "hidden" not in text
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["backend.openai.api_key"].split()[2] == "********"
    assert " = { X-Own = ******** } " in lines[f"{TABLES}[0].headers"]
    assert lines[f"{TABLES}[1].api_key"].split()[2] == "********"
    assert lines[f"{TABLES}[1].weight"].split()[2] == "3"
    assert f"{TABLES}[0].api_key" not in lines
    assert TABLES not in lines
    assert f"{TABLES} " in describe(loaded())


def test_a_password_in_a_url_is_masked(loaded: Loading) -> None:
    text = describe(loaded("[backend.openai]\napi_base = 'http://me:hidden@host/v1'"))
    assert "hidden" not in text
    assert '"http://********@host/v1"' in text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("api_key", "x", True),
        ("api_key_file", "/x", False),
        ("password_file", "/x", False),
        ("first_token_timeout_ms", 5, False),
        ("max_tokens", 5, False),
        ("token", 4711, True),
        ("token", "x", True),
        ("tokens", "x", True),
        ("needs_key", False, False),
        ("password_ms", "text", True),
        ("", 5, False),
    ],
)
def test_what_is_a_secret(name: str, value: object, *, expected: bool) -> None:
    assert is_secret(name, value) is expected


def test_headers_are_masked_whatever_their_name() -> None:
    assert shown("headers", {"X-A": "b", "a b": "", "max": 5}) == '{ X-A = ********, "a b" = "", max = 5 }'


def test_a_list_of_tables_is_masked_within() -> None:
    text = shown("upstreams", (Upstream(name="a", api_key="hidden", headers={"X-A": "hidden"}),))
    assert text == '[{ name = "a", priority = 0, weight = 1, api_key = ********, headers = { X-A = ******** } }]'


# ---- whether it is in use, and reload


@pytest.mark.parametrize(
    "section",
    [
        {"api_key": "k"},
        {"api_key_file": "/k"},
        {"api_base": "http://h"},
        {"api_socket": "/s"},
        {"upstreams": (Upstream(name="a"),)},
    ],
)
def test_what_puts_it_to_use(section: dict[str, object]) -> None:
    backend = msgspec.structs.replace(Settings().backend, openai=msgspec.structs.replace(OpenAIBackend(), **section))
    assert msgspec.structs.replace(Settings(), backend=backend).uses_openai


def test_what_does_not(loaded: Loading) -> None:
    assert not Settings().uses_openai
    assert not loaded(f"[backend.openai]\napi_base = '{API_BASE_DEFAULT}'\nmodel = 'm'").settings.uses_openai
    assert loaded("[server]\nbackend = 'openai'").settings.uses_openai
    assert loaded(OPENAI_API_KEY="k").settings.uses_openai


def test_a_reload_changes_upstreams_where_there_were_some(loaded: Loading) -> None:
    old = loaded(TWO).settings
    new = loaded(TWO.replace("weight = 3", "weight = 4").replace("hidden1", "other")).settings
    assert reload_difference(old, new) == (["backend.openai.api_key", TABLES], [])
    assert reloaded(old, new) == new


def test_a_reload_does_not_begin_to_relay(loaded: Loading) -> None:
    old, new = loaded().settings, loaded(TWO).settings
    assert reload_difference(old, new) == ([], ["backend.openai.api_key", TABLES])
    assert reloaded(old, new) == old


def test_a_ledger_stays_where_it_is(loaded: Loading) -> None:
    old, new = (
        loaded(TWO).settings,
        loaded(TWO.replace("[backend.openai]", "[backend.openai]\nledger_file = '/x'")).settings,
    )
    assert reload_difference(old, new) == ([], ["backend.openai.ledger_file"])
