"""The example of docs/backends.md: it is the file, it is short, and it works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backends.interface import BackendError, Fields, Request
from backends.registry import Registry
from config.settings import BackendSettings, Settings

if TYPE_CHECKING:
    from backends.interface import Backend as BackendBase

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "clock_backend.py"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> BackendBase:
    monkeypatch.setattr(sys, "path", [str(EXAMPLE.parent), *sys.path])
    section = {"class": "clock_backend:Clock", "ticks": 2}
    return dict(Registry(Settings(backend=BackendSettings(others={"clock": section}))))["clock"]


def test_the_document_shows_the_file() -> None:
    text = (ROOT / "docs" / "backends.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown == EXAMPLE.read_text()
    assert len(EXAMPLE.read_text().splitlines()) <= 20


def test_it_tells_the_time(clock: BackendBase, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def pause(_self: object, seconds: float) -> bool:
        pauses.append(seconds)
        return False

    request = Request(Fields())
    monkeypatch.setattr(type(request.control), "pause", pause)
    pieces = list(clock.chunks(request))
    assert len(pieces) == 2
    assert all(isinstance(piece, str) and re.fullmatch(r"\d\d:\d\d:\d\d", piece) for piece in pieces)
    assert pauses == [1.0, 1.0]


def test_it_stops_when_the_client_has_left(clock: BackendBase, monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(_self: object, _seconds: float) -> bool:
        return True

    request = Request(Fields())
    monkeypatch.setattr(type(request.control), "pause", pause)
    assert len(list(clock.chunks(request))) == 1


def test_it_knows_an_error(clock: BackendBase) -> None:
    with pytest.raises(BackendError, match="no sun"):
        list(clock.chunks(Request(Fields(prompt="a sundial"))))
