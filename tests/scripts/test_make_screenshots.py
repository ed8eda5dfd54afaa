from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scripts import make_screenshots
from tests.behaviour.daemon_process import Daemon
from tests.page.conftest import configured, running, url_of
from tests.page.test_mel import write_tone
from tests.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.browser
pillow: Any = importlib.import_module("PIL.Image")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with running(Daemon(tmp_path, "auto", configuration=configured(tmp_path))) as daemon:
        yield url_of(daemon)


def test_every_tab_is_photographed_light_and_dark(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    audio = write_tone(tmp_path / "tone.wav", 3.0)
    assert make_screenshots.main([url, "--audio", str(audio), "--output", str(folder), "--seconds", "1.5"]) == 0
    pictures = {path.stem: np.asarray(pillow.open(path).convert("L"), dtype=float) for path in folder.iterdir()}
    assert sorted(pictures) == [f"page-{part}-{way}" for part in ("chat", "live", "mel") for way in ("dark", "light")]
    for name, picture in pictures.items():
        assert picture.shape == (1200, 1560)
        # The corner is the page's ground.
        assert bool(picture[-1, 0] > 200) == name.endswith("light"), name
    assert not np.array_equal(pictures["page-chat-light"], pictures["page-live-light"])


def test_a_server_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_screenshots.main([f"http://127.0.0.1:{unused_port()}/", "--output", str(tmp_path)]) == 1
    assert "does not do what is photographed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_visitor_without_an_answer_is_a_failure(url: str) -> None:
    with pytest.raises(OSError, match="404"), make_screenshots.visitors(f"{url}nowhere/"):
        time.sleep(1.5)
