"""The backend as a whole: options, reload, warnings, and what it shows of itself."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from backends.interface import Backend, OptionError
from backends.openai import OpenAI
from backends.relay import FailureKind, Relay, RelayError
from tests.backends.openai.making import PLAIN, Clock, backend, failure, opened, request, several, upstream

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_a_backend_that_needs_no_thread() -> None:
    one = OpenAI({"api_base": PLAIN})
    relay = one.open(request(prompt="p"))
    assert isinstance(relay, Relay)
    assert OpenAI.chunks is Backend.chunks
    assert one.scripts() == ()
    assert len(relay.request_id) == 32


def test_the_format_is_the_sections_or_the_requests() -> None:
    one = backend(format="openai")
    assert one.format == "openai"
    assert opened(one).format == "openai"
    assert opened(one, format="content").format == "content"
    assert opened(one, stream_options={"include_usage": True}).passes_usage


WRONG: list[tuple[dict[str, object], str]] = [
    ({"weight": 5, "api_base": 5}, "Expected `str`, got `int`"),
    ({"upstreams": [{}]}, "missing required field `name`"),
    ({"api_base": PLAIN, "attempts_max": 0}, ">= 1"),
    ({}, "backend.openai has no key"),
]


@pytest.mark.parametrize(("options", "word"), WRONG)
def test_options_that_are_wrong(options: dict[str, object], word: str) -> None:
    with pytest.raises(OptionError, match=word) as raised:
        OpenAI(options)
    assert str(raised.value).startswith("backend.openai")


def test_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"backend.openai.ledger_file = .* cannot be used: "):
        backend(ledger_file=str(tmp_path / "none" / "ledger"))


def test_warnings_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, object] = {"api_base": "https://far.test", "api_key": "secret-key", "insecure_ssl": True}
    with caplog.at_level(logging.WARNING):
        one = OpenAI(options)
        one.reload(options)
        one.reload(options)
    assert len(caplog.records) == 1
    assert "NOT verified" in caplog.text
    assert "secret-key" not in caplog.text


def test_a_reload_counts_for_streams_that_start_from_now() -> None:
    clock = Clock()
    one = several(clock, upstream("a"), api_key="old-key")
    before = opened(one)
    attempt = before.first()
    one.reload({"upstreams": [upstream("a"), upstream("b")], "api_key": "new-key", "model": "new", "format": "openai"})
    assert dict(attempt.headers)["Authorization"] == "Bearer old-key"
    assert one.upstreams()[0].active_count == 1
    after = opened(one).first()
    assert (after.origin.name, dict(after.headers)["Authorization"]) == ("b", "Bearer new-key")
    assert json.loads(after.body)["model"] == "new"
    assert one.format == "openai"
    assert [origin.name for origin in one.origins()] == ["a", "b"]
    assert attempt.origin is one.origins()[0]


def test_a_reload_that_is_wrong_changes_nothing() -> None:
    one = backend(model="old")
    states = one.upstreams()
    several_wrong: list[dict[str, object]] = [{"api_base": "nowhere"}, {"api_base": PLAIN, "backoff_ms": -1}, {}]
    for options in several_wrong:
        with pytest.raises(OptionError):
            one.reload(options)
    assert one.upstreams() == states
    assert json.loads(opened(one).first().body)["model"] == "old"


def test_a_key_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("first-key\n")
    path.chmod(0o600)
    one = backend(api_key_file=str(path))
    path.write_text("second-key\n")
    assert dict(opened(one).first().headers)["Authorization"] == "Bearer first-key"
    one.reload(one.options)
    assert dict(opened(one).first().headers)["Authorization"] == "Bearer second-key"


def test_what_it_shows_of_itself() -> None:
    one = several(Clock(), upstream("a", models=["m"]), upstream("b"))
    opened(one, upstream="a", model="m").first()
    shown = [(one.name, one.origin.host, one.breaker_state, one.active_count, one.models) for one in one.upstreams()]
    assert shown == [("a", "a.test", "closed", 1, ("m",)), ("b", "b.test", "closed", 0, ())]


def test_retries_and_budget_are_reloaded() -> None:
    one = backend(attempts_max=3)
    one.reload({"api_base": PLAIN, "attempts_max": 1})
    relay = opened(one)
    relay.first()
    with pytest.raises(RelayError):
        relay.failed(failure(FailureKind.CONNECT))
