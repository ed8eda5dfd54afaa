"""Mel features from a real daemon: files that a handoff names, statuses of what cannot be had, many streams at once."""

from __future__ import annotations

import base64
import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from backends.mel.formats import BLOCK, MAGIC
from backends.mel.reference import features
from tests.backends.mel.signals import speech
from tests.behaviour.daemon_process import DONE, HEAD, Daemon, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

soundfile: Any = importlib.import_module("soundfile")
SOUND = speech()
LONG = np.tile(SOUND, 600)  # 20 minutes


@pytest.fixture(scope="module")
def mel(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("mel")
    for name in ("a.wav", "a.flac", "a.ogg"):
        soundfile.write(folder / name, SOUND, 16_000)
    soundfile.write(folder / "long.wav", LONG, 16_000)
    (folder / "link.wav").symlink_to(folder / "a.wav")
    (folder / "text.wav").write_bytes(b"no sound at all" * 10)
    running = Daemon(folder, kernel, configuration=f'[server]\ndata_dir = "{folder}"\n[backend.mel]\nenabled = true\n')
    running.start()
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "Traceback" not in running.log, running.log[-4000:]


def frames_of(body: bytes) -> npt.NDArray[np.float32]:
    assert body.endswith(b"\n\n" + DONE)
    events = [json.loads(event[6:]) for event in body.removesuffix(DONE).split(b"\n\n")[:-1]]
    return np.concatenate(
        [np.frombuffer(base64.b64decode(made["frames"]), "<f4").reshape(-1, made["bins"]) for made in events]
    )


def decoded(daemon: Daemon, name: str) -> npt.NDArray[np.float32]:
    samples: npt.NDArray[np.float32] = soundfile.read(daemon.directory / name, dtype="float32")[0]
    return samples


@pytest.mark.parametrize("normalisation", ["none", "whisper"])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_features_of_a_file(mel: Daemon, name: str, normalisation: Any) -> None:  # noqa: ANN401
    answer = mel.ask({"backend": "mel", "audio_path": name, "options": {"normalisation": normalisation}})
    assert answer.head == HEAD
    expected = features(decoded(mel, name), 80, normalisation)
    assert np.abs(frames_of(answer.body) - expected).max() < 1e-5


def test_blocks_have_a_type_of_their_own_and_an_end(mel: Daemon) -> None:
    said = {"backend": "mel", "audio_path": "a.wav", "response_headers": {"X-Own": "yes"}}
    answer = mel.ask({**said, "options": {"format": "binary", "bins": 128}})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-own"] == "yes"
    assert BLOCK.unpack(answer.body[-16:]) == (MAGIC, 0, 1, 128, 201, 0)
    lines = mel.ask({**said, "options": {"format": "ndjson"}})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.body.endswith(b'{"end":true,"count":201}\n')


@pytest.mark.parametrize(
    ("said", "status", "word"),
    [
        ({"audio_path": "none.wav"}, 404, "no such file"),
        ({"audio_path": "link.wav"}, 403, "symbolic links"),
        ({"audio_path": "../a.wav"}, 403, ".."),
        ({"audio_path": "/etc/passwd"}, 403, "server.data_dir"),
        ({"audio_path": "text.wav"}, 415, "WAV, FLAC and Ogg"),
        ({"audio_path": "a.wav", "options": {"bins": 81}}, 400, "options.bins"),
        ({}, 400, "audio_path"),
    ],
)
def test_what_cannot_be_had_is_a_status(mel: Daemon, said: dict[str, Any], status: int, word: str) -> None:
    answer = mel.ask({"backend": "mel", **said})
    assert answer.status == status
    assert word in answer.problem["detail"]


def test_a_client_that_leaves_stops_the_work(mel: Daemon) -> None:
    mel.wait_idle()
    open_before = mel.descriptor_count()
    clients = [mel.open({"backend": "mel", "audio_path": "long.wav"}, tcp=True) for _ in range(3)]
    for client in clients:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        client.close()
    mel.wait_idle()
    assert mel.descriptor_count() <= open_before + 2 * 3 * 8  # threads of the pool have descriptors; files are closed
    assert mel.ask({"backend": "mel", "audio_path": "a.wav"}).body.endswith(DONE)


def test_twenty_streams_at_once(mel: Daemon) -> None:
    clients = [mel.open({"backend": "mel", "audio_path": "a.wav"}, tcp=n % 2 == 0) for n in range(20)]
    bodies = {read_all(client).body for client in clients}
    for client in clients:
        client.close()
    assert len(bodies) == 1
    assert np.abs(frames_of(bodies.pop()) - features(decoded(mel, "a.wav"), 80, "none")).max() < 2e-6
