"""Mel features through a real Apache: a PHP page names a recording, and a client of that page gets its frames."""

from __future__ import annotations

import base64
import importlib
import json
import urllib.parse
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from backends.mel.formats import BLOCK, END
from backends.mel.reference import features
from tests.apache.environment import Apache, running_daemon
from tests.apache.test_apache import STREAM_HEAD, curl, split_response
from tests.backends.mel.signals import speech

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.apache

soundfile: Any = importlib.import_module("soundfile")
PCM = (speech() * 32_767).astype(np.int16)


@pytest.fixture(scope="module")
def ask(apache: Apache, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., bytes]]:
    """Ask the page for the features of a call; the whole response."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "calls").mkdir()
    soundfile.write(folder / "calls" / "17.wav", PCM, 16_000)
    configuration = folder / "daemon.toml"
    configuration.write_text(f'[server]\ndata_dir = "{folder}"\n[backend.mel]\nenabled = true\n')
    path = apache.socket_folder / "mel.sock"

    def by_page(**parameters: str) -> bytes:
        query = urllib.parse.urlencode({"socket": str(path), **parameters})
        return curl(f"{apache.base_url}/mel.php?{query}")

    with running_daemon(path, "--config", str(configuration)):
        yield by_page


@pytest.mark.parametrize("normalisation", ["none", "running", "whisper"])
def test_the_frames_are_those_of_the_specification(ask: Callable[..., bytes], normalisation: Any) -> None:  # noqa: ANN401
    head, body = split_response(ask(call="17", normalisation=normalisation))
    assert head == STREAM_HEAD
    *events, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    parts: list[npt.NDArray[np.float32]] = []
    for event in events:
        said = json.loads(event.removeprefix(b"data: "))
        assert said["first"] == sum(map(len, parts))
        parts.append(np.frombuffer(base64.b64decode(said["frames"]), "<f4").reshape(said["count"], said["bins"]))
    assert np.abs(np.concatenate(parts) - features(PCM, 80, normalisation)).max() < 2e-6


def test_blocks_keep_their_type_and_are_not_compressed(ask: Callable[..., bytes]) -> None:
    head, body = split_response(ask(call="17", format="binary"))
    assert b"Content-Type: application/octet-stream\r\n" in head
    assert b"Content-Encoding" not in head
    assert BLOCK.unpack(body[-BLOCK.size :])[2:] == (END, 80, 1 + len(PCM) // 160, 0)


def test_a_recording_that_is_not_there_is_a_404_of_the_daemons(ask: Callable[..., bytes]) -> None:
    head, body = split_response(ask(call="18"))
    assert head.startswith(b"HTTP/1.1 404 ")
    assert json.loads(body)["detail"].startswith("field `audio_path`")
    assert split_response(ask(call="../17"))[1] == b"There is no such call.\n"
