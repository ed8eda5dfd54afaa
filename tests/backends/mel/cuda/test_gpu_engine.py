"""The CUDA kernels and the engine on a real GPU: every variant, chunks beside each other, and nothing left behind."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from backends.mel import reference, spec
from backends.mel.cuda.layout import FrameType, SampleType
from config.library import ROOT
from scripts.gpu_mel.rig import CHUNK, CHUNK_FRAMES, Rig, noise, open_engine
from tests.backends.mel.cuda.gpu_state import state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.mel.cuda.engine import CudaEngine

pytestmark = pytest.mark.gpu

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
ERROR_MAX = {"float32": 1e-4, "float16": 2e-3}
GROWTH_MIB_MAX = 4.0


@pytest.mark.parametrize("frame_type", get_args(FrameType))
@pytest.mark.parametrize("sample_type", get_args(SampleType))
@pytest.mark.parametrize("bins", spec.MEL_BINS)
def test_clips_are_those_of_the_specification(bins: int, sample_type: SampleType, frame_type: FrameType) -> None:
    length = 480_000 if sample_type == "int16" else 123_457
    samples = noise((3, length), sample_type, soft=True)
    with contextlib.closing(Rig(sample_type, frame_type, bins, 3, length)) as rig:
        rig.put(rig.samples, samples)
        rig.poison()
        rig.run()
        rig.stream.wait()
        frames = rig.get().astype(np.float64)
    expected = np.stack([reference.features(clip, bins, "whisper") for clip in samples])
    assert np.abs(frames - expected).max() <= ERROR_MAX[frame_type]  # NaN does not pass


@pytest.fixture(params=spec.MEL_BINS)
def engine(request: pytest.FixtureRequest) -> Iterator[CudaEngine]:
    bins: int = request.param
    with contextlib.closing(open_engine(bins=bins)) as made:
        yield made


@pytest.mark.parametrize("sample_type", get_args(SampleType))
def test_chunks_of_all_sizes_at_once_are_right_and_the_same_alone(engine: CudaEngine, sample_type: str) -> None:
    bins = engine.bin_count
    counts = [1, 2, 31, 32, 33, 64, 100, 1000, *np.random.default_rng(7).integers(1, 400, 24).tolist()]
    samples = [noise((400 + 160 * (count - 1),), sample_type, seed=seed) for seed, count in enumerate(counts)]
    frames = [np.full((count, bins), np.nan, np.float32) for count in counts]
    for pending in [engine.submit(part, rows) for part, rows in zip(samples, frames, strict=True)]:
        pending.wait()
    for part, rows in zip(samples, frames, strict=True):
        assert np.isfinite(rows).all(), "a value was not written"
        exact = reference.raw_frames(reference.amplitudes(part), bins)
        compared = exact >= exact.max() - 6
        assert np.abs(rows - exact)[compared].max() <= ERROR_MAX["float32"]
    alone = np.full((1, bins), np.nan, np.float32)
    engine.compute(np.ascontiguousarray(samples[7][-400:]), alone)
    assert np.array_equal(alone[0], frames[7][-1])


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    assert SANITIZER is not None
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "scripts.gpu_mel.rig"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_ten_thousand_streams_leave_nothing_behind() -> None:
    samples, frames = noise((CHUNK,), "int16"), np.empty((CHUNK_FRAMES, 80), np.float32)
    with contextlib.closing(open_engine()) as engine:

        def streams(count: int) -> None:
            for _ in range(count // 8):
                places = [engine.place() for _ in range(8)]
                for place in places:
                    place.compute(samples, frames)
                    place.close()

        streams(1_000)
        before = state()
        streams(10_000)
        assert state().grown(before) <= GROWTH_MIB_MAX
