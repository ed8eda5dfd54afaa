"""Is it right, does it touch what it must not, does it leave anything behind?"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from backends.mel import reference, spec
from backends.mel.cuda.layout import FrameType, SampleType
from scripts.gpu_mel.rig import CHUNK, CHUNK_FRAMES, Results, Rig, noise, open_engine

_SAMPLE_TYPES: tuple[SampleType, ...] = ("int16", "float32")
_FRAME_TYPES: tuple[FrameType, ...] = ("float32", "float16")


def check(results: Results) -> None:
    """Every variant of the kernels against the float64 reference, from poisoned buffers and fresh random audio."""
    found: dict[str, float] = {}
    for bins in spec.MEL_BINS:
        for sample_type in _SAMPLE_TYPES:
            for frame_type in _FRAME_TYPES:
                length = 480_000 if sample_type == "int16" else 123_457
                samples = noise((3, length), sample_type, soft=True)
                rig = Rig(sample_type, frame_type, bins, 3, length)
                rig.put(rig.samples, samples)
                rig.poison()
                rig.run()
                rig.stream.wait()
                frames = rig.get().astype(np.float64)
                expected = np.stack([reference.features(clip, bins, "whisper") for clip in samples])
                found[f"clips {bins} {sample_type} {frame_type}"] = float(np.abs(frames - expected).max())
                rig.close()
        found.update(_check_chunks(bins))
    results["largest error"] = found
    for name, error in found.items():
        limit = 2e-3 if "float16" in name else 1e-4
        if not error <= limit:  # NaN must not pass
            raise AssertionError(f"{name}: {error} is more than {limit}")


def _check_chunks(bins: int) -> dict[str, float]:
    """Chunks of all sizes and both types at once, through the engine; each alone must be the same to the bit."""
    found: dict[str, float] = {}
    random = np.random.default_rng()
    engine = open_engine(bins=bins)
    for sample_type in _SAMPLE_TYPES:
        counts = [1, 2, 31, 32, 33, 64, 100, 1000, *random.integers(1, 400, 24).tolist()]
        samples = [noise((400 + 160 * (count - 1),), sample_type) for count in counts]
        frames = [np.full((count, bins), np.nan, np.float32) for count in counts]
        for pending in [engine.submit(part, rows) for part, rows in zip(samples, frames, strict=True)]:
            pending.wait()
        worst = 0.0
        for part, rows in zip(samples, frames, strict=True):
            amplitudes = part * (spec.INT16_SCALE if sample_type == "int16" else 1.0)
            exact = reference.raw_frames(amplitudes.astype(np.float64), bins)
            worst = max(worst, float(np.abs(rows - np.maximum(exact, exact.max() - 6))[exact >= exact.max() - 6].max()))
            if not np.isfinite(rows).all():
                raise AssertionError("a value was not written, or is not finite")
        last = np.full((1, bins), np.nan, np.float32)
        engine.compute(np.ascontiguousarray(samples[7][-400:]), last)
        if not np.array_equal(last[0], frames[7][-1]):
            raise AssertionError("a frame alone differs from the same frame among others")
        found[f"chunks {bins} {sample_type}"] = worst
    engine.close()
    return found


def sanitize(results: Results) -> None:
    """compute-sanitizer over a small run."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    found: dict[str, str] = {}
    for name in ("memcheck", "racecheck"):
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m", "scripts.gpu_mel", "small"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        found[name] = f"exit {done.returncode}: " + " ".join((done.stdout + done.stderr).strip().splitlines()[-2:])
    results["compute-sanitizer"] = found


def small(results: Results) -> None:
    """A little of each kernel, for a tool that is slow."""
    for bins in spec.MEL_BINS:
        rig = Rig("int16", "float32", bins, 2, 16_000)
        rig.put(rig.samples, noise((2, 16_000), "int16"))
        rig.run()
        rig.stream.wait()
        rig.close()
    results["small"] = "done"


def leaks(results: Results) -> None:
    """Ten thousand streams, one after the other, eight at a time."""
    engine = open_engine()
    samples, frames = noise((CHUNK,), "int16"), np.empty((CHUNK_FRAMES, 80), np.float32)

    def streams(count: int) -> None:
        for _ in range(count // 8):
            places = [engine.place() for _ in range(8)]
            for place in places:
                place.compute(samples, frames)
                place.close()

    streams(1000)
    before = _memory()
    streams(10_000)
    after = _memory()
    engine.close()
    results["leaks"] = {"GPU MiB before, after": [before[0], after[0]], "RSS MiB before, after": [before[1], after[1]]}


def _memory() -> tuple[float, float]:
    """Memory of the GPU in use and resident memory of this process, MiB."""
    torch: Any = importlib.import_module("torch")
    free, total = torch.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round((total - free) / 2**20, 1), round(pages * 4096 / 2**20, 1)
