"""Two GPUs: where streams go, what the second is worth, and what happens when one really fails, and then the other."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel import reference
from backends.mel.cpu import CpuEngine
from backends.mel.cuda import pycuda_device
from backends.mel.cuda.engine import CudaEngine
from backends.mel.cuda.worker import CudaLimits
from scripts.gpu_mel import backend, requests
from scripts.gpu_mel.faults import Primary, after_a_trap
from scripts.gpu_mel.rig import CHUNK, CHUNK_FRAMES, CLIP, CLIPS, FRAMES, Results, million_s, noise, wall_ms
from scripts.gpu_mel.torch_features import pinned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.mel.backend import Mel
    from scripts.gpu_mel.requests import Sound, Streamed

_FAULT_S = (1.0, 2.0)  # when each GPU is made to fail


def several(results: Results) -> None:
    """Placement, and the throughput of one GPU and of all."""
    count = pycuda_device.device_count()
    found: Results = {"GPUs": count}
    with tempfile.TemporaryDirectory() as name:
        sound = requests.sound(results, Path(name), 5.0)
        mel = requests.open_backend(sound.folder)
        try:
            found["placement"] = _placement(mel, sound)
        finally:
            mel.close()
    for used in sorted({1, count}):
        openers = [partial(pycuda_device.open_device, ordinal) for ordinal in range(used)]
        engine = CudaEngine(openers, CpuEngine(80), CudaLimits(frames_in_call_max=FRAMES))
        found[f"clips over the bus, {used} GPUs"] = _clips(engine)
        found[f"chunks of 1 s, 512 streams, {used} GPUs, audio-s/s"] = _chunks(engine)
        engine.close()
    one, all_of_them = (found[f"clips over the bus, {used} GPUs"]["ms"] for used in (1, count))
    found["clips: all against one"] = round(one / all_of_them, 2)
    results["several GPUs"] = found


def _placement(mel: Mel, sound: Sound) -> Results:
    """Nine streams begun and not read on: how many are where, and where their chunks are computed."""
    workers = requests.cuda_engines(mel)[80].workers
    options = {"format": "binary"}
    open_streams: list[Any] = []
    for _ in range(9):
        open_streams.append(mel.chunks(requests.request(audio_path=sound.name, options=options)))
        next(open_streams[-1])
    begun = [worker.streams for worker in workers]
    jobs = [worker.counters.jobs for worker in workers]
    for pieces in open_streams[:1]:
        list(pieces)
    moved = [worker.counters.jobs - before for worker, before in zip(workers, jobs, strict=True)]
    for pieces in open_streams[1:]:
        list(pieces)
    done = [worker.counters.jobs - before for worker, before in zip(workers, jobs, strict=True)]
    if max(begun) - min(begun) > 1 or sum(moved) != max(moved):
        raise AssertionError(f"streams {begun}, chunks of one stream {moved}")
    return {
        "streams": begun,
        "chunks of the first stream": moved,
        "chunks of all": done,
        "streams at the end": [worker.streams for worker in workers],
    }


def _clips(engine: CudaEngine) -> Results:
    torch: Any = importlib.import_module("torch")
    _, samples = pinned(torch, (2 * CLIPS, CLIP), "int16")
    samples[:] = np.tile(noise((64, CLIP), "int16"), (2 * CLIPS // 64, 1))
    _, frames = pinned(torch, (2 * CLIPS, FRAMES, 80), "float32")
    frames[:] = np.nan

    def work() -> None:
        for job in engine.submit_clips(samples, frames, pinned=True):
            job.wait()

    took_ms = wall_ms(work, 5)
    worst = 0.0
    for clip in (0, CLIPS, 2 * CLIPS - 1):
        exact = reference.features(samples[clip], 80, "whisper")
        worst = max(worst, float(np.abs(frames[clip] - exact).max()))
    if not worst < 1e-4:
        raise AssertionError(f"a clip is wrong by {worst}")
    jobs = [worker.counters.jobs for worker in engine.workers]
    return {"ms": round(took_ms, 2), "million audio-s/s": million_s(took_ms / 2), "launches of each": jobs}


def _chunks(engine: CudaEngine) -> dict[str, int]:
    """Chunks of 512 streams, submitted by one thread, and by four."""
    found: dict[str, int] = {}
    for threads in (1, 4):
        rounds = 60

        def work(_: int, streams: int = 512 // threads, rounds: int = rounds) -> None:
            places = [engine.place() for _ in range(streams)]
            samples, frames = noise((streams, CHUNK), "int16"), np.empty((streams, CHUNK_FRAMES, 80), np.float32)
            for _ in range(rounds):
                pending = [place.submit(samples[at], frames[at]) for at, place in enumerate(places)]
                for one in pending:
                    one.wait()
            for place in places:
                place.close()

        found[f"{threads} threads"] = round(512 * rounds / requests.on_threads(threads, work))
    return found


# ---- faults, each in a process of its own: a context that has failed does not come back


def faults(results: Results) -> None:
    """GPUs that fail while streams run, at the pace of an upload and at full speed; and what the driver says then."""
    found: Results = {}
    for name in ("driver", "fault_paced", "fault_hard", "fault_hard again", "fault_trap", "fault_trap again"):
        found[name] = _child(name.partition(" ")[0], results)
    results["faults"] = found
    if wrong := [name for name, one in found.items() if one["exit"] != 0]:
        raise AssertionError(f"these failed: {', '.join(wrong)}")


def _child(part: str, results: Results) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scripts.gpu_mel", part, "--out", folder]
        command += ["--audio", results["audio"]] if results.get("audio") else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
        file = Path(folder) / "results.json"
        left: Results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lines = done.stderr.splitlines()
    return {
        "exit": done.returncode,
        **{name: what for name, what in left.items() if name.startswith(part)},
        "warnings of PyCUDA": sum("PyCUDA WARNING" in line for line in lines),
        "log": [line for line in lines if line.startswith(("ERROR", "WARNING"))][:12],
        "end of stderr": lines[-12:] if done.returncode else [],
    }


def driver(results: Results) -> None:
    """The driver's answers on a context that has failed."""
    results["driver"] = after_a_trap()


def fault_paced(results: Results) -> None:
    """32 uploads of 60 s, twenty times as fast as they sound: none has ended when the GPUs fail."""
    _fault(results, "fault_paced", 32, paced=True, trap_first=False)


def fault_hard(results: Results) -> None:
    """64 threads that stream files as fast as they can."""
    _fault(results, "fault_hard", 64, paced=False, trap_first=False)


def fault_trap(results: Results) -> None:
    """The same with a trap, which is an error of the whole process."""
    _fault(results, "fault_trap", 64, paced=False, trap_first=True)


def _upload(sound: Sound, *, paced: bool) -> Iterator[bytes]:
    data = sound.samples.tobytes()
    for at in range(0, len(data), 32_000):
        if paced:
            time.sleep(0.05)
        yield data[at : at + 32_000]


def _fault(results: Results, name: str, count: int, *, paced: bool, trap_first: bool) -> None:
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage()) if record.levelno >= logging.ERROR else None  # type: ignore[method-assign]
    logging.getLogger("backends").addHandler(handler)
    cases = [(bins, how) for bins in (80, 128) for how in ("none", "running", "whisper")]
    streams: list[tuple[int, Streamed]] = []
    with tempfile.TemporaryDirectory() as folder:
        sound = requests.sound(results, Path(folder), 60.0 if paced else 10.0)
        mel = requests.open_backend(sound.folder)
        for bins, how in cases:  # opens the engine of 128 bins before anything fails
            requests.stream(mel, requests.request(audio_path=sound.name, options={"bins": bins, "normalisation": how}))
        seen: Results = {"before": _seen(mel)}
        breaker = threading.Thread(target=_break, args=(mel, seen), kwargs={"trap_first": trap_first})
        end = time.perf_counter() + _FAULT_S[-1] + 1.0

        def work(number: int) -> None:
            bins, how = cases[number % len(cases)]
            options = {"bins": bins, "normalisation": how, "format": "binary"}
            while True:
                made = requests.request(
                    _upload(sound, paced=paced), options={**options, "sample_format": "s16le"}
                ) if paced or number % 2 else requests.request(audio_path=sound.name, options=options)  # fmt: skip
                streams.append((number % len(cases), requests.stream(mel, made)))
                if len(streams) > 4_000:
                    streams.pop(0)
                if paced or time.perf_counter() > end:
                    return

        breaker.start()
        took_s = requests.on_threads(count, work)
        breaker.join()
        seen["after all"] = _seen(mel)
        expected = [sound.expected(*case) for case in cases]
        worst = 0.0
        for case, streamed in streams[-1_000:] if paced else streams[:: max(1, len(streams) // 600)]:
            how = cases[case][1]
            worst = max(worst, requests.error_of(streamed, "binary", expected[case], "float32", how))
        mel.close()
        results[name] = {
            **seen,
            "streams": len(streams),
            "largest error": worst,
            "audio-s/s": round(len(streams) * sound.seconds / took_s),
            "longest silence ms, all but whisper": round(
                max(one.longest_gap_ms for case, one in streams if cases[case][1] != "whisper"), 1
            ),
            "said": logged,
            "state at the end": backend.state(),
        }


def _break(mel: Mel, seen: Results, *, trap_first: bool) -> None:
    """Make GPU 0 fail, by itself or with a trap, and then the last one with a trap; wait until each is noticed."""
    engines = requests.cuda_engines(mel)
    last = pycuda_device.device_count() - 1
    started = time.perf_counter()
    faults_to_be = zip(_FAULT_S, (0, last), (trap_first, True), strict=True)
    for number, (fault_s, ordinal, is_trap) in enumerate(faults_to_be, start=1):
        time.sleep(max(0.0, started + fault_s - time.perf_counter()))
        before = [engine.counters.devices_lost for engine in engines.values()]
        if not all(engine.workers for engine in engines.values()):
            break
        done = time.perf_counter()
        if is_trap:
            Primary(ordinal).trap()
        else:
            Primary(ordinal).take_away(_memory_of(engines, ordinal))
        while time.perf_counter() < done + 5 and any(
            engine.counters.devices_lost == count for engine, count in zip(engines.values(), before, strict=True)
        ):
            time.sleep(0.001)
        name = f"fault {number}: {'a trap on' if is_trap else 'memory taken from'} GPU {ordinal}"
        seen[f"{name}, noticed after ms"] = round((time.perf_counter() - done) * 1000, 1)
        time.sleep(0.4)
        seen[f"{name}, 0.4 s later"] = _seen(mel)


def _memory_of(engines: dict[int, CudaEngine], ordinal: int) -> list[int]:
    """Where all slots of a GPU take their samples."""
    found: list[int] = []
    for engine in engines.values():
        for worker in engine.workers:
            if worker.name.startswith(f"GPU {ordinal} "):
                slots: list[Any] = vars(worker)["_slots"]
                found += [_samples_at(slot) for slot in slots]
    return found


def _samples_at(slot: Any) -> int:  # noqa: ANN401
    return int(slot._memory_in.address)


def _seen(mel: Mel) -> Results:
    return {
        f"{bins} bins": {
            "in use": {worker.name: [worker.streams, worker.counters.jobs] for worker in engine.workers},
            "lost": engine.counters.devices_lost,
            "chunks on the CPU": engine.counters.jobs_on_cpu,
        }
        for bins, engine in requests.cuda_engines(mel).items()
    }
