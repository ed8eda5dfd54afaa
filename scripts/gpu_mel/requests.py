"""Requests as the daemon makes them of the backend, from the threads of a pool, and what comes back."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from backends.interface import Fields, Request
from backends.mel import reference, spec
from backends.mel.backend import Mel
from scripts import make_audio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from backends.mel.cuda.engine import CudaEngine

    Features = npt.NDArray[np.float64]


class Sound(NamedTuple):
    """Audio in the backend's data directory, 16 kHz, mono."""

    folder: Path
    samples: npt.NDArray[np.int16]
    name: str = "sound.wav"

    @property
    def seconds(self) -> float:
        """How long."""
        return len(self.samples) / spec.SAMPLE_RATE_HZ

    def expected(self, bins: int, normalisation: Any) -> Features:  # noqa: ANN401  (a Literal)
        """What must come of it."""
        return reference.features(self.samples, bins, normalisation)


def sound(folder: Path, seconds: float = 30.0, audio: str | None = None) -> Sound:
    """So much of a file, again and again, or of chords where none is given, as a WAV file."""
    count = round(seconds * spec.SAMPLE_RATE_HZ)
    if audio is not None:
        soundfile: Any = __import__("soundfile")
        samples, rate_hz = soundfile.read(audio, dtype="int16")
        if rate_hz != spec.SAMPLE_RATE_HZ or samples.ndim != 1:
            raise ValueError("--audio: a mono file of 16 kHz is expected")
    else:
        random = np.random.default_rng(1)
        samples = (make_audio.SOUNDS["chords"](count, spec.SAMPLE_RATE_HZ, random) * 9_000).astype(np.int16)
    made = Sound(folder, np.resize(samples, count))
    make_audio.write(folder / made.name, made.samples, spec.SAMPLE_RATE_HZ)
    return made


def open_backend(folder: Path, device: str = "cuda") -> Mel:
    """The backend, as the daemon makes it."""
    return Mel({"data_dir": str(folder), "device": device})


def cuda_engines(mel: Mel) -> dict[int, CudaEngine]:
    """The engines of a backend, by bins, for their counters."""
    engines: Any = vars(mel)["_engines"]
    return cast("dict[int, CudaEngine]", vars(engines)["_cuda"])


@dataclass
class Streamed:
    """One stream: what came, and when."""

    started_s: float
    times_s: list[float] = field(default_factory=list[float])
    pieces: list[bytes] = field(default_factory=list[bytes])

    @property
    def first_ms(self) -> float:
        """From the request to the first frames."""
        return (self.times_s[0] - self.started_s) * 1000

    @property
    def longest_gap_ms(self) -> float:
        """The longest silence."""
        return float(np.diff([self.started_s, *self.times_s]).max()) * 1000


def request(body: Iterator[bytes] | None = None, **said: Any) -> Request:  # noqa: ANN401
    """A handoff, or an upload."""
    made = Request(Fields(), json.dumps(said).encode(), {"content-type": "audio/pcm"} if body is not None else None)
    made.body = body if body is not None else iter(())
    return made


def stream(mel: Mel, made: Request) -> Streamed:
    """Run one to its end, on this thread."""
    streamed = Streamed(time.perf_counter())
    mel.form(made)
    for piece in mel.chunks(made):
        streamed.times_s.append(time.perf_counter())
        streamed.pieces.append(piece)
    return streamed


def on_threads(count: int, work: Callable[[int], None]) -> float:
    """Call `work` with 0 to count - 1, each on a thread; returns the seconds that all took. Raises what one raised."""
    raised: list[Exception] = []
    begin = threading.Barrier(count + 1)

    def one(number: int) -> None:
        begin.wait()
        try:
            work(number)
        except Exception as error:  # noqa: BLE001  (raised below)
            raised.append(error)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join(max(0.0, started + 120 - time.perf_counter()))
    took_s = time.perf_counter() - started
    if raised:
        raise raised[0]
    if hanging := sum(thread.is_alive() for thread in threads):
        raise TimeoutError(f"{hanging} of {count} streams hang")
    return took_s
