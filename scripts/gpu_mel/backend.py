"""Files through the backend `mel`, with device = "cuda" and with "cpu"."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.gpu_mel import requests
from scripts.gpu_mel.rig import Results, percentiles

if TYPE_CHECKING:
    from backends.mel.backend import Mel
    from scripts.gpu_mel.requests import Sound

_RUN_S = 1.5


def backend(results: Results) -> None:
    """Files of 30 s as fast as they are taken, from 1 to 64 threads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound = requests.sound(folder, 30.0, results.get("audio"))
        for device in ("cuda", "cpu"):
            mel = requests.open_backend(folder, device)
            try:
                results[f"backend, files of 30 s, {device}"] = _throughput(mel, sound)
            finally:
                mel.close()


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
