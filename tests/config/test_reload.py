"""What a changed configuration does to a daemon that runs."""

from __future__ import annotations

import msgspec
import pytest

from config.load import load, reload_difference, reloaded
from config.mel import MelBackend
from config.schema import KEYS, SECTIONS, Key, value_of
from config.settings import BackendSettings, Server, Settings
from config.test_model import TestModelBackend

# The backends `openai`, `mel` and `test_model` are in use: otherwise nothing of their sections is reloaded.
RELAYING = Settings(
    server=Server(backend="openai"),
    backend=BackendSettings(mel=MelBackend(enabled=True), test_model=TestModelBackend(enabled="on")),
)


def changed(key: Key) -> Settings:
    """The defaults with another value for one key; whether it is permitted plays no part here."""
    struct = SECTIONS[key.section]
    used: dict[type[msgspec.Struct], dict[str, object]] = {
        Server: {"backend": "openai"},
        MelBackend: {"enabled": True},
        TestModelBackend: {"enabled": "on"},
    }
    section = struct(**used.get(struct, {}))
    section = msgspec.structs.replace(section, **{key.name: "another"})
    if key.section.startswith("backend."):
        name = key.section.removeprefix("backend.")
        return msgspec.structs.replace(RELAYING, backend=msgspec.structs.replace(RELAYING.backend, **{name: section}))
    return msgspec.structs.replace(RELAYING, **{key.section: section})


def with_others(others: dict[str, dict[str, object]]) -> Settings:
    return Settings(backend=BackendSettings(others=others))


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.path)
def test_a_change_is_applied_or_needs_a_restart(key: Key) -> None:
    old, new = RELAYING, changed(key)
    assert reload_difference(old, new) == (([key.path], []) if key.is_reloadable else ([], [key.path]))
    assert reloaded(old, new) == (new if key.is_reloadable else old)


def test_nothing_changed() -> None:
    settings = load([], {}).settings
    assert reload_difference(settings, settings) == ([], [])
    assert reloaded(settings, settings) == settings


def test_logs_limits_timeouts_and_delays_are_reloadable() -> None:
    for path in (
        *("logging.level", "logging.format", "limits.streams_per_user", "limits.requests_per_minute_per_user"),
        *("streaming.message_delay_ms", "streaming.keep_alive_ms"),
        *(path for path in KEYS if path.startswith("timeouts.")),
    ):
        assert KEYS[path].is_reloadable, path
    assert not any(KEYS[path].is_reloadable for path in KEYS if path.startswith(("server.", "performance.")))


def test_a_users_backend_takes_its_options_while_its_class_stays() -> None:
    old = with_others({"mine": {"class": "a.b:C", "speed": 1, "old": 1}})
    new = with_others({"mine": {"class": "a.b:C", "speed": 2, "new": 1}})
    assert reload_difference(old, new) == (["backend.mine.new", "backend.mine.old", "backend.mine.speed"], [])
    assert reloaded(old, new) == new


def test_a_backend_that_is_new_or_gone_or_another_needs_a_restart() -> None:
    old = with_others({"mine": {"class": "a.b:C", "speed": 1}})
    other = with_others({"mine": {"class": "a.b:D", "speed": 2}})
    assert reload_difference(old, other) == ([], ["backend.mine.class", "backend.mine.speed"])
    assert reload_difference(old, Settings()) == ([], ["backend.mine.class", "backend.mine.speed"])
    assert reload_difference(Settings(), old) == ([], ["backend.mine.class", "backend.mine.speed"])
    for new in (other, Settings()):
        assert reloaded(old, new) == old
    assert reloaded(Settings(), old) == Settings()
    assert value_of(reloaded(old, other), "logging.level") == "info"
