"""The backend `mel` with device = "cuda": is it right, how fast is it, does it leave anything behind?"""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel import spec
from scripts.gpu_mel import requests
from scripts.gpu_mel.rig import Results, percentiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.interface import Request
    from backends.mel.backend import Mel
    from scripts.gpu_mel.requests import Sound

_FORMS = ("sse", "ndjson", "binary")
_RUN_S = 1.5


def backend(results: Results) -> None:
    """Every combination of what a request may ask, threads at once, throughput, and 2,000 streams."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        mel = requests.open_backend(folder)
        found: Results = {"opened in s": round(time.perf_counter() - started, 2)}
        try:
            found["largest error"] = _every_request(mel, requests.sound(results, folder, 12.0))
            found["64 threads at once"] = _threads(mel, requests.sound(results, folder, 5.0))
            found["2,000 streams"] = _leaks(mel, requests.sound(results, folder, 2.0))
            results["backend"] = found
            results["backend, files of 30 s"] = _throughput(mel, requests.sound(results, folder, 30.0))
        finally:
            mel.close()
        on_cpu = requests.open_backend(folder, "cpu")
        results["backend, the same on the CPU"] = _throughput(on_cpu, requests.sound(results, folder, 30.0))
        on_cpu.close()


def _body(sound: Sound, form: str) -> Iterator[bytes]:
    """An upload that arrives in pieces of any size."""
    data = sound.samples.tobytes()
    if form == "f32le":
        data = (sound.samples / np.float32(32_768)).astype("<f4").tobytes()
    elif form == "wav":
        data = (sound.folder / sound.name).read_bytes()
    random = np.random.default_rng()
    at = 0
    while at < len(data):
        size = int(random.integers(1, 40_000))
        yield data[at : at + size]
        at += size


def _request(sound: Sound, source: str, options: dict[str, Any]) -> Request:
    if source == "file":
        return requests.request(audio_path=sound.name, options=options)
    return requests.request(_body(sound, source), options={**options, "sample_format": source})


def _every_request(mel: Mel, sound: Sound) -> Results:
    found: Results = {}
    cases = itertools.product(spec.MEL_BINS, spec.NORMALISATIONS)
    for bins, normalisation in cases:
        expected = sound.expected(bins, normalisation)
        for dtype in ("float32", "float16"):
            worst = 0.0
            made: list[Any] = []
            for form, source in itertools.product(_FORMS, ("file", "s16le", "f32le", "wav")):
                options = {"bins": bins, "normalisation": normalisation, "dtype": dtype, "format": form}
                streamed = requests.stream(mel, _request(sound, source, options))
                worst = max(worst, requests.error_of(streamed, form, expected, dtype, normalisation))
                made.append(requests.frames_of(streamed.pieces, form))
            if not all(np.array_equal(made[0], other) for other in made[1:]):
                raise AssertionError("the frames depend on how the audio came")
            found[f"{bins} {normalisation} {dtype}, 12 requests"] = worst
    return found


def _threads(mel: Mel, sound: Sound) -> Results:
    """64 threads, 12 streams each, no two alike beside each other; the same to the bit as one alone."""
    cases = list(itertools.product(spec.MEL_BINS, spec.NORMALISATIONS, ("file", "s16le")))

    def one(number: int) -> tuple[dict[str, Any], str]:
        bins, normalisation, source = cases[number % len(cases)]
        return {"bins": bins, "normalisation": normalisation, "format": "binary"}, source

    def streamed(number: int) -> bytes:
        options, source = one(number)
        return b"".join(requests.stream(mel, _request(sound, source, options)).pieces)

    alone = [requests.frames_of([streamed(number)], "binary") for number in range(len(cases))]
    differing: list[int] = []

    def work(number: int) -> None:
        for turn in range(12):
            case = (number + turn) % len(cases)
            if not np.array_equal(requests.frames_of([streamed(case)], "binary"), alone[case]):
                differing.append(case)

    took_s = requests.on_threads(64, work)
    if differing:
        raise AssertionError(f"{len(differing)} streams differ from those alone")
    return {"streams": 64 * 12, "differing from one alone": 0, "s": round(took_s, 2)}


def _throughput(mel: Mel, sound: Sound) -> Results:
    """Files of 30 s, one after the other on 1 to 64 threads."""
    found: Results = {}
    for count in (1, 2, 4, 8, 16, 32, 64):
        firsts: list[float] = []
        wholes: list[float] = []
        launches, jobs = _launches(mel)
        end = time.perf_counter() + _RUN_S

        def work(_: int, firsts: list[float] = firsts, wholes: list[float] = wholes, end: float = end) -> None:
            while time.perf_counter() < end:
                made = requests.request(audio_path=sound.name, options={"format": "binary"})
                streamed = requests.stream(mel, made)
                firsts.append(streamed.first_ms)
                wholes.append((streamed.times_s[-1] - streamed.started_s) * 1000)

        took_s = requests.on_threads(count, work)
        launches, jobs = _launches(mel)[0] - launches, _launches(mel)[1] - jobs
        found[f"{count} threads"] = {
            "audio-s/s": round(len(wholes) * sound.seconds / took_s),
            "first frames ms": percentiles(firsts),
            "whole ms": percentiles(wholes),
            "chunks a launch": round(jobs / launches, 2) if launches else 0,
        }
    return found


def _launches(mel: Mel) -> tuple[int, int]:
    counters = [worker.counters for engine in requests.cuda_engines(mel).values() for worker in engine.workers]
    return sum(one.launches for one in counters), sum(one.jobs for one in counters)


def _leaks(mel: Mel, sound: Sound) -> Results:
    """Files and uploads, every fifth given up, 2,000 before the first look and 2,000 after it."""

    def work(number: int) -> None:
        for turn in range(250):
            source = "s16le" if turn % 2 else "file"
            made = _request(sound, source, {"bins": 80 if number % 2 else 128, "format": "binary"})
            if turn % 5 == 4:  # a client that leaves
                pieces: Any = mel.chunks(made)
                next(pieces)
                pieces.close()
            else:
                requests.stream(mel, made)

    requests.on_threads(8, work)  # what is made once, as a thread's scratch memory, is there then
    before = state()
    requests.on_threads(8, work)
    after = state()
    open_streams = [worker.streams for engine in requests.cuda_engines(mel).values() for worker in engine.workers]
    if any(open_streams):
        raise AssertionError(f"places were not left: {open_streams}")
    return {"before": before, "after": after}


def state() -> Results:
    """What a process may leave behind."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "GPU MiB": gpus("memory.used"),
        "RSS MiB": round(pages * 4096 / 2**20, 1),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def gpus(what: str) -> list[float]:
    """What nvidia-smi says of each GPU."""
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [float(line) for line in done.stdout.splitlines()]
