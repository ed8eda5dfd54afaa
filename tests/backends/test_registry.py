"""Backends by name, and the errors of a configuration that names them wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.echo import Echo
from backends.interface import Fields, Paced, Request
from backends.mock import Mock
from backends.openai import OpenAI
from backends.registry import Registry, RegistryError, check
from config.openai import OpenAIBackend
from config.settings import BackendSettings, Server, Settings, Streaming

SOURCE = """
from backends.interface import Backend, OptionError

class Good(Backend):
    def chunks(self, request):
        yield from ()

class Idle(Backend):
    pass

class Picky(Backend):
    def __init__(self, options):
        raise ValueError("needs a model")

    def chunks(self, request):
        yield from ()

class Refusing(Backend):
    def __init__(self, options):
        raise OptionError("speed is too high: at most 5")

    def chunks(self, request):
        yield from ()

class Stranger:
    def chunks(self, request):
        yield from ()

thing = 5
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_backends.py").write_text(SOURCE)
    (tmp_path / "broken_backends.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("own_backends", "broken_backends"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def settings(default: str = "mock", **others: dict[str, Any]) -> Settings:
    made = Settings(backend=BackendSettings(others=others), streaming=Streaming(message_delay_ms=3))
    return msgspec.structs.replace(made, server=msgspec.structs.replace(made.server, backend=default))


def test_the_built_in_ones_are_always_there() -> None:
    registry = Registry(settings())
    assert registry.names() == ["echo", "mock"]
    assert isinstance(registry.get("mock"), Mock)
    assert isinstance(registry.get("echo"), Echo)
    assert registry.get("other") is None


def test_the_mock_gets_its_section_and_the_delay() -> None:
    registry = Registry(settings())
    mock = registry.get("mock")
    assert mock is not None
    paced = mock.open(Request(Fields()))
    assert isinstance(paced, Paced)
    assert paced.interval_ps == 3 * 10**9
    registry.reload(Settings(streaming=Streaming(message_delay_ms=4)))
    paced = mock.open(Request(Fields()))
    assert isinstance(paced, Paced)
    assert paced.interval_ps == 4 * 10**9


def test_a_backend_of_ones_own() -> None:
    registry = Registry(settings("own", own={"class": "own_backends:Good", "key": "value"}))
    own = dict(registry)["own"]
    assert own.options == {"key": "value"}
    assert type(own).__name__ == "Good"


def test_an_own_backend_may_take_the_place_of_a_built_in_one() -> None:
    registry = Registry(settings(mock={"class": "own_backends:Good"}))
    assert type(registry.get("mock")).__name__ == "Good"


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("own_backends", "package.module:Class"),
        (":Good", "package.module:Class"),
        ("no_such_module:Good", "cannot import no_such_module"),
        ("broken_backends:Good", "a_module_that_is_not_there"),
        ("own_backends:Missing", "no class Missing"),
        ("own_backends:thing", "no class thing"),
        ("own_backends:Stranger", "derived from"),
        ("own_backends:Idle", "neither open nor chunks"),
        ("own_backends:Picky", "needs a model"),
        ("own_backends:Refusing", r"^\[backend.own\]: speed is too high: at most 5$"),
    ],
)
def test_what_cannot_be_used_is_named(path: str, word: str) -> None:
    with pytest.raises(RegistryError, match=word) as caught:
        Registry(settings(own={"class": path}))
    assert "[backend.own]" in str(caught.value)


def test_a_section_without_a_class() -> None:
    with pytest.raises(RegistryError, match=r"\[backend.own\] names no class"):
        Registry(settings(own={"key": 1}))


def test_the_relay_is_there_where_it_is_used_and_not_even_imported_otherwise() -> None:
    code = (
        "import sys; from backends.registry import Registry; from config.settings import Settings;"
        "Registry(Settings()); sys.exit(any(name.startswith('backends.openai') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    used = Settings(backend=BackendSettings(openai=OpenAIBackend(api_base="http://127.0.0.1:8000")))
    registry = Registry(used)
    assert registry.names() == ["echo", "mock", "openai"]
    relaying = registry.get("openai")
    assert isinstance(relaying, OpenAI)
    assert relaying.origins()[0].port == 8000
    registry.reload(
        msgspec.structs.replace(used, backend=BackendSettings(openai=OpenAIBackend(api_base="http://[::1]:9")))
    )
    assert relaying.origins()[0].authority == "[::1]:9"
    registry.close()


def test_the_load_test_model_is_made_where_it_is_asked_for() -> None:
    registry = Registry(settings("test_model"))
    assert registry.names() == ["echo", "mock", "test_model"]
    model = registry.get("test_model")
    assert model is not None
    assert model.options == {"enabled": "auto", "tokens_per_second": 120_000}
    registry.close()


def test_the_relay_as_the_default_needs_a_key() -> None:
    with pytest.raises(RegistryError, match=r"^backend.openai has no key.*OPENAI_API_KEY"):
        Registry(settings("openai"))


def test_a_default_that_is_not_there() -> None:
    with pytest.raises(RegistryError, match="known are echo, mock"):
        Registry(settings("nowhere"))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"api_base": "127.0.0.1:8000"}, "api_base is refused"),
        ({"api_base": "http://x/v1", "api_key": "k", "api_key_file": "/k"}, "both set"),
        ({"api_base": "https://api.openai.com/v1"}, "has no key"),
        ({"api_base": "http://x/v1", "ledger_file": "/nope/ledger.jsonl"}, "/nope is missing"),
    ],
)
def test_a_check_finds_what_a_start_would(section: dict[str, str], said: str) -> None:
    backend = BackendSettings(openai=msgspec.convert(section, OpenAIBackend))
    with pytest.raises(RegistryError, match=said):
        check(Settings(server=Server(backend="openai"), backend=backend))


def test_a_check_opens_nothing_and_warns(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    section = OpenAIBackend(api_base="http://x/v1", model="m", models=("n",), ledger_file=str(file))
    (warning,) = check(Settings(backend=BackendSettings(openai=section)))
    assert "served by no upstream" in warning
    assert not file.exists()


def test_a_check_knows_names_and_classes() -> None:
    with pytest.raises(RegistryError, match="known are echo, mock, openai, test_model"):
        check(Settings(server=Server(backend="opanai")))
    others = {"mine": {"class": "own_backends:Picky"}}
    assert check(Settings(backend=BackendSettings(others=others))) == []  # what its constructor would say is not asked
