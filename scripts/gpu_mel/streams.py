"""Many streams at once: all together, and at the pace of their audio."""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from backends.mel.cuda.worker import CudaLimits
from scripts.gpu_mel.rig import CHUNK, CHUNK_FRAMES, Results, noise, open_engine, percentiles

if TYPE_CHECKING:
    from backends.mel.cuda.engine import CudaEngine


def streams(results: Results) -> None:
    """Chunks of 1 s of 1 to 512 streams: all submit, all wait, and again; batched, and each in a launch of its own."""
    found: Results = {}
    for label, limits in (("batched", CudaLimits()), ("a launch each", CudaLimits(jobs_in_launch_max=1))):
        engine = open_engine(limits)
        for count in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
            places = [engine.place() for _ in range(count)]
            samples = noise((count, CHUNK), "int16")
            frames = np.empty((count, CHUNK_FRAMES, 80), np.float32)
            rounds: list[float] = []
            while sum(rounds) < 400 or len(rounds) < 10:
                start = time.perf_counter()
                pending = [place.submit(samples[at], frames[at]) for at, place in enumerate(places)]
                for one in pending:
                    one.wait()
                rounds.append((time.perf_counter() - start) * 1000)
            for place in places:
                place.close()
            found[f"{count} streams, {label}"] = {
                "audio-s/s": round(count / statistics.median(rounds) * 1000),
                **percentiles(rounds),
            }
        engine.close()
    results["streams, chunks of 1 s"] = found


def _paced(engine: CudaEngine, count: int, speed: float, seconds: float) -> Results:
    """Streams that send a second of audio every 1 / speed s, not in step; latency from when a chunk was due."""
    samples = noise((count, CHUNK), "int16")
    frames = np.empty((count, CHUNK_FRAMES, 80), np.float32)
    places = [engine.place() for _ in range(count)]
    latencies: list[float] = []
    chunk_total = int(count * speed * seconds)
    finished = threading.Event()
    start = time.perf_counter() + 0.05

    def submit(number: int) -> None:
        due = start + number / (count * speed)

        def done(_job: object) -> None:
            latencies.append((time.perf_counter() - due) * 1000)
            if len(latencies) == chunk_total:
                finished.set()

        places[number % count].submit(samples[number % count], frames[number % count], callback=done)

    number = 0
    while number < chunk_total:
        ahead = start + number / (count * speed) - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
        submit(number)
        number += 1
    finished.wait(10)
    for place in places:
        place.close()
    return {"chunks": len(latencies), "lost": chunk_total - len(latencies), "latency ms": percentiles(latencies)}


def realtime(results: Results) -> None:
    """8 streams in real time, 512 at 60 times that."""
    found: Results = {}
    for name, count, speed, seconds in (("8 x 1", 8, 1.0, 5.0), ("8 x 60", 8, 60.0, 4.0), ("512 x 60", 512, 60.0, 6.0)):
        engine = open_engine()
        found[name] = _paced(engine, count, speed, seconds)
        found[name]["chunks in a launch"] = round(
            sum(worker.counters.jobs for worker in engine.workers)
            / max(1, sum(worker.counters.launches for worker in engine.workers)),
            2,
        )
        engine.close()
    results["paced streams, chunks of 1 s"] = found
