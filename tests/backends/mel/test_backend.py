"""The backend by itself: files and uploads to features in each format, and what is refused."""

from __future__ import annotations

import base64
import importlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from backends.interface import BackendError, BodyTruncated, Fields, OptionError, Request
from backends.mel.backend import Mel
from backends.mel.formats import BLOCK, MAGIC
from backends.mel.reference import features
from tests.backends.mel.signals import speech

soundfile: Any = importlib.import_module("soundfile")
soxr: Any = importlib.import_module("soxr")
SOUND = speech()
PCM = (SOUND * 32_767).astype(np.int16)
Features = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def mel(tmp_path_factory: pytest.TempPathFactory) -> Mel:
    return Mel({"data_dir": str(tmp_path_factory.mktemp("data")), "chunk_frames_max": 30})


def request_of(body: list[bytes] | None = None, headers: dict[str, str] | None = None, **said: Any) -> Request:  # noqa: ANN401
    made = Request(Fields(), json.dumps(said).encode(), headers)
    made.body = iter(body or [])
    return made


def written(mel: Mel, sound: Any, rate: int = 16_000, name: str = "a.wav", **how: str) -> str:  # noqa: ANN401
    soundfile.write(Path(mel.options["data_dir"]) / name, sound, rate, **how)
    return name


def of_events(data: bytes) -> Features:
    *events, done, rest = data.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return of_objects([json.loads(event.removeprefix(b"data: ")) for event in events])


def of_objects(objects: list[dict[str, Any]]) -> Features:
    parts: list[Features] = []
    for made in objects:
        assert made["first"] == sum(map(len, parts))
        numbers = np.frombuffer(base64.b64decode(made["frames"]), np.dtype(made["dtype"]))
        parts.append(numbers.reshape(made["count"], made["bins"]).astype(np.float64))
    return np.concatenate(parts)


def of_blocks(data: bytes) -> Features:
    parts: list[Features] = []
    while True:
        magic, number_type, kind, bins, first, count = BLOCK.unpack_from(data)
        assert (magic, first) == (MAGIC, sum(map(len, parts)))
        data = data[BLOCK.size :]
        if kind == 1:
            assert (count, data) == (0, b"")
            return np.concatenate(parts)
        assert kind == 0
        dtype = np.dtype("<f2" if number_type else "<f4")
        size = count * bins * dtype.itemsize
        parts.append(np.frombuffer(data[:size], dtype).reshape(count, bins).astype(np.float64))
        data = data[size:]


def run(mel: Mel, made: Request) -> bytes:
    mel.form(made)
    return b"".join(mel.chunks(made))


def refusal(mel: Mel, made: Request) -> BackendError:
    with pytest.raises(BackendError) as raised:
        run(mel, made)
    return raised.value


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("normalisation", ["none", "running", "whisper"])
def test_a_file_in_every_normalisation(mel: Mel, bins: int, normalisation: Any) -> None:  # noqa: ANN401
    path = written(mel, PCM)
    got = of_events(run(mel, request_of(audio_path=path, options={"bins": bins, "normalisation": normalisation})))
    assert np.abs(got - features(PCM, bins, normalisation)).max() < 2e-6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_format_says_the_same(mel: Mel, dtype: str) -> None:
    options = {"normalisation": "running", "dtype": dtype}
    path, expected = written(mel, PCM), features(PCM, 80, "running")
    events = of_events(run(mel, request_of(audio_path=path, options=options)))
    *lines, end = run(mel, request_of(audio_path=path, options={**options, "format": "ndjson"})).splitlines()
    assert json.loads(end) == {"end": True, "count": len(expected)}
    assert np.array_equal(of_objects([json.loads(line) for line in lines]), events)
    assert np.array_equal(
        of_blocks(run(mel, request_of(audio_path=path, options={**options, "format": "binary"}))), events
    )
    assert np.abs(events - expected).max() < (2e-6 if dtype == "float32" else 2e-3)


def test_each_format_has_its_type(mel: Mel) -> None:
    forms = [mel.form(request_of(options={"format": name})) for name in ("sse", "ndjson", "binary")]
    assert [form.format for form in forms] == ["content", "raw", "raw"]
    assert [form.content_type for form in forms] == [
        "text/event-stream",
        "application/x-ndjson",
        "application/octet-stream",
    ]


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_and_channels(mel: Mel, rate: int) -> None:
    stereo = np.stack([SOUND, SOUND[::-1]], axis=1)
    got = of_events(run(mel, request_of(audio_path=written(mel, stereo, rate, subtype="FLOAT"))))
    mono = soxr.resample(stereo.mean(axis=1, dtype=np.float32), rate, 16_000)
    expected = features(mono, 80, "none")
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-4


@pytest.mark.parametrize("how", [{"name": "a.flac"}, {"name": "a.ogg"}, {"name": "a.ogg", "subtype": "OPUS"}])
def test_other_files(mel: Mel, how: dict[str, Any]) -> None:
    path = written(mel, SOUND, **how)
    samples, rate = soundfile.read(Path(mel.options["data_dir"]) / path, dtype="float32")
    assert rate == 16_000
    assert np.abs(of_events(run(mel, request_of(audio_path=path))) - features(samples, 80, "none")).max() < 1e-5


def test_samples_that_are_no_audio_are_silence(mel: Mel) -> None:
    spoilt = SOUND.copy()
    spoilt[[5000, 6000, 7000]] = np.nan, np.inf, -np.inf
    mended = np.where(np.isfinite(spoilt), spoilt, np.float32(0))
    got = of_events(run(mel, request_of(audio_path=written(mel, spoilt, subtype="FLOAT"))))
    assert np.abs(got - features(mended, 80, "none")).max() < 2e-6


@pytest.mark.parametrize("size", [1, 3, 1000, 100_000])
@pytest.mark.parametrize("form", ["s16le", "f32le", "wav", "auto"])
def test_uploads_in_any_pieces(mel: Mel, form: str, size: int) -> None:
    sound = PCM[:4000]
    data = (sound / np.float32(32_768)).astype("<f4").tobytes() if form == "f32le" else sound.tobytes()
    if form == "wav":
        data = (Path(mel.options["data_dir"]) / written(mel, sound)).read_bytes() + b"LIST\4\0\0\0more"
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    got = of_events(run(mel, request_of(pieces, options={"sample_format": form})))
    assert np.abs(got - features(sound, 80, "none")).max() < 2e-6


def test_an_upload_that_ends_too_early(mel: Mel) -> None:
    data = (Path(mel.options["data_dir"]) / written(mel, PCM)).read_bytes()
    for cut in (20, 1001, len(data) - 2):
        with pytest.raises(BodyTruncated):
            run(mel, request_of([data[:cut]]))
    with pytest.raises(BodyTruncated, match="inside a sample"):
        run(mel, request_of([PCM.tobytes()[:-1]]))


def test_an_error_after_the_beginning_ends_lines_and_blocks(mel: Mel) -> None:
    made = request_of([PCM.tobytes()[:-1]], options={"format": "binary"})
    last = b""
    with pytest.raises(BodyTruncated):  # noqa: PT012  (what came before it is looked at)
        for piece in mel.chunks(made):
            last = piece
    assert struct.unpack_from("<4sBB", last) == (MAGIC, 0, 2)
    assert last[16:] == b"400 the upload ends inside a sample"


@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        ({"format": "xml"}, 400, "options.format"),
        ({"bins": 40}, 400, "options.bins"),
        ({"bins": "80"}, 400, "80, 128"),
        ({"normalisation": None}, 400, "options.normalisation"),
        ({"sample_rate": 10}, 400, "options.sample_rate"),
        ({"channels": True}, 400, "options.channels"),
        ({"sample_format": "mp3"}, 415, "s16le"),
        ({"speed": 1}, 400, "sample_rate"),
        ([], 400, "field `options`"),
    ],
)
def test_wrong_options_are_named(mel: Mel, options: object, status: int, word: str) -> None:
    found = refusal(mel, request_of(audio_path="a.wav", options=options))
    assert found.status == status
    assert word in found.message


def test_wrong_audio(mel: Mel) -> None:
    root = Path(mel.options["data_dir"])
    (root / "empty.wav").write_bytes(b"")
    (root / "text.wav").write_bytes(b"no sound at all" * 100)
    whole = (root / written(mel, PCM)).read_bytes()
    (root / "cut.wav").write_bytes(whole[:-100])
    (root / "silent.wav").write_bytes(whole[:40] + bytes(4))
    written(mel, PCM, name="a.aiff")
    for path, status in {"empty.wav": 400, "text.wav": 415, "cut.wav": 400, "silent.wav": 400, "a.aiff": 415}.items():
        assert refusal(mel, request_of(audio_path=path)).status == status, path
    assert refusal(mel, request_of(audio_path=7)).status == 400
    assert refusal(mel, request_of(audio_path="a.wav", headers={"host": "a"})).status == 403
    assert refusal(mel, request_of()).status == 400
    assert refusal(mel, request_of([b"fLaC" + bytes(100)])).status == 415
    assert refusal(mel, request_of([b"x"], {"content-type": "audio/mpeg"})).status == 415
    small = Mel({"data_dir": str(root), "audio_bytes_max": 1000})
    assert refusal(small, request_of(audio_path="a.wav")).status == 413
    assert refusal(small, request_of([bytes(600)] * 2)).status == 413
    short = Mel({"data_dir": str(root), "audio_seconds_max": 1})
    assert refusal(short, request_of(audio_path="a.wav")).status == 413


def test_a_stream_that_is_given_up_closes_its_file(mel: Mel) -> None:
    path, before = written(mel, PCM), len(os.listdir("/proc/self/fd"))
    pieces: Any = mel.chunks(request_of(audio_path=path))
    next(pieces)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    pieces.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_extra_and_wrong_settings_are_errors_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="permitted is 80 or 128"):
        Mel({"bins": 100})
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(OptionError, match=r"pip install 'streaming-daemon\[mel\]'"):
        Mel({})


def test_nothing_of_it_is_imported_where_it_is_not_used() -> None:
    code = (
        "import sys; from backends.registry import Registry; from config.settings import Settings;"
        "Registry(Settings()); sys.exit(any(n.startswith(('backends.mel', 'soundfile')) for n in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
