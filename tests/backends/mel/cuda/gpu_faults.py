"""Streams on two real GPUs that are made to fail, one after the other; a process of its own, which prints JSON.

    python -m tests.backends.mel.cuda.gpu_faults paced FOLDER

A context that has failed does not come back, so each run takes a process. Every stream is compared with the
specification: a wrong one, a lost one or one that hangs ends the process with an error.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.mel.cuda import pycuda_device
from scripts.gpu_mel import requests
from tests.backends.mel.cuda.gpu_driver import Primary
from tests.backends.mel.cuda.gpu_frames import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.mel.backend import Mel
    from backends.mel.cuda.engine import CudaEngine
    from scripts.gpu_mel.requests import Sound, Streamed

FAULTS_S = (1.0, 2.0)  # when each GPU is made to fail
NOTICED_S_MAX = 5.0
COMPARED_MAX = 600
CASES = [(bins, normalisation) for bins in (80, 128) for normalisation in ("none", "running", "whisper")]


@dataclass(frozen=True)
class Run:
    """Who streams, and how the first GPU fails; the last one always fails by a trap."""

    streams: int
    is_paced: bool
    is_trap_first: bool


RUNS = {
    "paced": Run(32, is_paced=True, is_trap_first=False),  # uploads of 60 s at 20 times their pace: none has ended
    "fast": Run(64, is_paced=False, is_trap_first=False),
    "trap": Run(64, is_paced=False, is_trap_first=True),  # an error of the whole process
}


def upload(sound: Sound, *, is_paced: bool) -> Iterator[bytes]:
    data = sound.samples.tobytes()
    for at in range(0, len(data), 32_000):
        if is_paced:
            time.sleep(0.05)
        yield data[at : at + 32_000]


def seen(mel: Mel) -> dict[str, Any]:
    """Of each number of bins: streams by GPU, GPUs lost, chunks that the CPU computed."""
    return {
        str(bins): {
            "streams": {worker.name: worker.streams for worker in engine.workers},
            "lost": engine.counters.devices_lost,
            "on_cpu": engine.counters.jobs_on_cpu,
        }
        for bins, engine in requests.cuda_engines(mel).items()
    }


def fail_gpus(mel: Mel, found: dict[str, Any], *, is_trap_first: bool) -> None:
    """Make GPU 0 fail and then the last one, as far as they have not failed yet; note what is left after each."""
    engines = requests.cuda_engines(mel)
    started_s = time.perf_counter()
    last = pycuda_device.device_count() - 1
    for name, fault_s, ordinal, is_trap in (
        ("first", FAULTS_S[0], 0, is_trap_first),
        ("last", FAULTS_S[1], last, True),
    ):
        time.sleep(max(0.0, started_s + fault_s - time.perf_counter()))
        if not all(engine.workers for engine in engines.values()):
            return
        before = [engine.counters.devices_lost for engine in engines.values()]
        done_s = time.perf_counter()
        if is_trap:
            Primary(ordinal).trap()
        else:
            Primary(ordinal).take_away(memory_of(engines, ordinal))
        while any(
            engine.counters.devices_lost == count for engine, count in zip(engines.values(), before, strict=True)
        ):
            if time.perf_counter() > done_s + NOTICED_S_MAX:
                raise TimeoutError(f"nobody noticed that GPU {ordinal} failed")
            time.sleep(0.001)
        time.sleep(0.4)
        found[name] = seen(mel)


def memory_of(engines: dict[int, CudaEngine], ordinal: int) -> list[int]:
    """Where all slots of a GPU take their samples."""
    slots: list[Any] = [
        slot
        for engine in engines.values()
        for worker in engine.workers
        if worker.name.startswith(f"GPU {ordinal} ")
        for slot in vars(worker)["_slots"]
    ]
    return [int(slot._memory_in.address) for slot in slots]


def carry_out(run: Run, folder: Path) -> dict[str, Any]:
    """Stream, fail, and compare all; what is worth an assertion."""
    sound = requests.sound(folder, 60.0 if run.is_paced else 10.0)
    mel = requests.open_backend(folder)
    for bins, normalisation in CASES:  # opens the engine of 128 bins before anything fails
        options = {"bins": bins, "normalisation": normalisation}
        requests.stream(mel, requests.request(audio_path=sound.name, options=options))
    found: dict[str, Any] = {"before": seen(mel)}
    streams: list[tuple[int, Streamed]] = []
    end_s = time.perf_counter() + FAULTS_S[-1] + 1.0

    def work(number: int) -> None:
        case = number % len(CASES)
        options = {"bins": CASES[case][0], "normalisation": CASES[case][1], "format": "binary"}
        while True:
            if run.is_paced or number % 2:
                body = upload(sound, is_paced=run.is_paced)
                made = requests.request(body, options={**options, "sample_format": "s16le"})
            else:
                made = requests.request(audio_path=sound.name, options=options)
            streams.append((case, requests.stream(mel, made)))
            if run.is_paced or time.perf_counter() > end_s:
                return

    raised: list[Exception] = []

    def fail() -> None:
        try:
            fail_gpus(mel, found, is_trap_first=run.is_trap_first)
        except Exception as error:  # noqa: BLE001  (raised below)
            raised.append(error)

    failing = threading.Thread(target=fail)
    failing.start()
    requests.on_threads(run.streams, work)
    failing.join()
    if raised:
        raise raised[0]
    found["after"] = seen(mel)
    expected = [sound.expected(*case) for case in CASES]
    for case, streamed in streams[:: max(1, len(streams) // COMPARED_MAX)]:
        error_of(streamed, "binary", expected[case], "float32", CASES[case][1])
    found["silence_ms"] = max(one.longest_gap_ms for case, one in streams if CASES[case][1] != "whisper")
    mel.close()
    return found


def main(name: str, folder: Path) -> None:
    """Carry out one of `RUNS`; errors of the backend go to standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    print(json.dumps(carry_out(RUNS[name], folder)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
