"""The backend `mel` on real GPUs: what a request may ask, however the audio comes, from many threads, and a daemon."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.mel import spec
from backends.mel.cuda import pycuda_device
from scripts.gpu_mel import requests
from tests.backends.mel.cuda.gpu_frames import error_of, frames_of
from tests.backends.mel.cuda.gpu_state import state
from tests.behaviour.daemon_process import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backends.interface import Request
    from backends.mel.backend import Mel
    from scripts.gpu_mel.requests import Sound

pytestmark = pytest.mark.gpu

FORMS = ("sse", "ndjson", "binary")
SOURCES = ("file", "s16le", "f32le", "wav")
CASES = list(itertools.product(spec.MEL_BINS, spec.NORMALISATIONS))
GROWTH_MIB_MAX = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sound")


@pytest.fixture(scope="module")
def sound(folder: Path) -> Sound:
    return requests.sound(folder, 12.0)


@pytest.fixture(scope="module")
def mel(folder: Path) -> Iterator[Mel]:
    with contextlib.closing(requests.open_backend(folder)) as made:
        yield made


def body(sound: Sound, form: str) -> Iterator[bytes]:
    """An upload that arrives in pieces of any size."""
    data = sound.samples.tobytes()
    if form == "f32le":
        data = (sound.samples / np.float32(32_768)).astype("<f4").tobytes()
    elif form == "wav":
        data = (sound.folder / sound.name).read_bytes()
    random = np.random.default_rng(3)
    at = 0
    while at < len(data):
        size = int(random.integers(1, 40_000))
        yield data[at : at + size]
        at += size


def request_of(sound: Sound, source: str, options: dict[str, Any]) -> Request:
    if source == "file":
        return requests.request(audio_path=sound.name, options=options)
    return requests.request(body(sound, source), options={**options, "sample_format": source})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("bins", "normalisation"), CASES)
def test_frames_are_right_and_the_same_however_the_audio_came(
    mel: Mel, sound: Sound, bins: int, normalisation: str, dtype: str
) -> None:
    expected = sound.expected(bins, normalisation)
    made: list[Any] = []
    for form, source in itertools.product(FORMS, SOURCES):
        options = {"bins": bins, "normalisation": normalisation, "dtype": dtype, "format": form}
        streamed = requests.stream(mel, request_of(sound, source, options))
        error_of(streamed, form, expected, dtype, normalisation)
        made.append(frames_of(streamed.pieces, form))
    assert all(np.array_equal(made[0], other) for other in made[1:])


def test_streams_on_64_threads_are_those_of_one_alone(mel: Mel, sound: Sound) -> None:
    cases = [(*case, source) for case in CASES for source in ("file", "s16le")]

    def frames(number: int) -> Any:  # noqa: ANN401
        bins, normalisation, source = cases[number % len(cases)]
        options = {"bins": bins, "normalisation": normalisation, "format": "binary"}
        return frames_of(requests.stream(mel, request_of(sound, source, options)).pieces, "binary")

    alone = [frames(number) for number in range(len(cases))]
    differing: list[int] = []

    def work(number: int) -> None:
        turns = range(number, number + 12)
        differing.extend(turn for turn in turns if not np.array_equal(frames(turn), alone[turn % len(cases)]))

    requests.on_threads(64, work)
    assert differing == []


def test_two_thousand_streams_leave_nothing_behind(mel: Mel, sound: Sound) -> None:
    def work(number: int) -> None:
        for turn in range(250):
            source = "s16le" if turn % 2 else "file"
            made = request_of(sound, source, {"bins": 80 if number % 2 else 128, "format": "binary"})
            if turn % 5 == 4:  # a client that leaves
                pieces: Any = mel.chunks(made)
                next(pieces)
                pieces.close()
            else:
                requests.stream(mel, made)

    requests.on_threads(8, work)  # a thread's scratch memory and the like are made once
    before = state()
    requests.on_threads(8, work)
    assert state().grown(before) <= GROWTH_MIB_MAX
    assert not any(worker.streams for engine in requests.cuda_engines(mel).values() for worker in engine.workers)


def test_streams_are_spread_over_the_gpus_and_stay_on_theirs(mel: Mel, sound: Sound) -> None:
    if pycuda_device.device_count() < 2:
        pytest.skip("needs two GPUs")
    workers = requests.cuda_engines(mel)[80].workers
    open_streams: list[Any] = []
    for _ in range(9):
        open_streams.append(mel.chunks(requests.request(audio_path=sound.name, options={"format": "binary"})))
        next(open_streams[-1])
    begun = [worker.streams for worker in workers]
    assert (sum(begun), max(begun) - min(begun)) == (9, 1)
    before = [worker.counters.jobs for worker in workers]
    list(open_streams[0])
    moved = [worker.counters.jobs - count for worker, count in zip(workers, before, strict=True)]
    assert sum(moved) == max(moved) > 0
    for pieces in open_streams[1:]:
        list(pieces)
    assert not any(worker.streams for worker in workers)


def test_a_daemon_streams_from_the_gpus(folder: Path, sound: Sound, tmp_path: Path) -> None:
    configuration = f'[server]\ndata_dir = "{folder}"\n[backend.mel]\nenabled = true\ndevice = "cuda"\n'
    daemon = Daemon(tmp_path, "auto", configuration=configuration).start()
    try:
        for bins, normalisation in CASES:
            options = {"bins": bins, "normalisation": normalisation, "format": "binary"}
            answer = daemon.ask({"backend": "mel", "audio_path": sound.name, "options": options})
            assert answer.status == 200, answer.body
            streamed = requests.Streamed(0.0, pieces=[answer.body])
            error_of(streamed, "binary", sound.expected(bins, normalisation), "float32", normalisation)
    finally:
        assert daemon.stop() == 0, daemon.log[-4000:]
    assert "Traceback" not in daemon.log, daemon.log[-4000:]
