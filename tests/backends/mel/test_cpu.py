"""Frames on the CPU against the specification, and the steps they are made of against NumPy's transforms."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from backends.mel import transform
from backends.mel.cpu import FRAMES_PER_CALL_MAX, CpuEngine
from backends.mel.engine import SAMPLE_MAX
from backends.mel.reference import amplitudes, raw_frames, reflected
from backends.mel.spec import FFT_SAMPLES, HOP_SAMPLES, MEL_BINS
from config.library import LEVEL_VARIABLE
from tests.backends.mel.signals import SOUNDS

ROOT = Path(__file__).resolve().parents[3]
# Of a logarithm in float32 in [-10, 15]. Asked for are 1e-4, and that only 6 decades down.
TOLERANCE = 2e-6
Floats = npt.NDArray[np.float64]


@dataclass
class Value:
    """A NumPy array that adds and multiplies as the vectors of compiled code do."""

    of: Floats

    def __add__(self, other: Value, /) -> Value:
        return Value(self.of + other.of)

    def __sub__(self, other: Value, /) -> Value:
        return Value(self.of - other.of)

    def __neg__(self) -> Value:
        return Value(-self.of)

    def __mul__(self, other: Value | float, /) -> Value:
        return Value(self.of * _plain(other))

    def times_plus(self, factor: Value | float, summand: Value | float, /) -> Value:
        return Value(self.of * _plain(factor) + _plain(summand))


def _plain(value: Value | float) -> Floats | float:
    return value.of if isinstance(value, Value) else value


def _numbers(count: int) -> npt.NDArray[np.complex128]:
    random = np.random.default_rng(count)
    return random.standard_normal((count, 7)) + 1j * random.standard_normal((count, 7))


@pytest.mark.parametrize(("count", "transformed"), [(4, transform.dft4), (5, transform.dft5), (8, transform.dft8)])
def test_small_transforms_are_numpys(count: int, transformed: Callable[..., list[tuple[Value, Value]]]) -> None:
    numbers = _numbers(count)
    results = transformed([(Value(number.real), Value(number.imag)) for number in numbers])
    found = np.array([real.of + 1j * imaginary.of for real, imaginary in results])
    np.testing.assert_allclose(found, np.fft.fft(numbers, axis=0), atol=1e-13)


def test_splitting_a_complex_transform_gives_the_powers_of_a_real_one() -> None:
    samples = np.random.default_rng(4).standard_normal(FFT_SAMPLES)
    half = np.fft.fft(samples[::2] + 1j * samples[1::2])
    expected = 4 * np.abs(np.fft.rfft(samples)) ** 2
    for k in range(1, 200):
        turn = np.exp(-2j * np.pi * k / FFT_SAMPLES)
        pairs = [(Value(np.array(value.real)), Value(np.array(value.imag))) for value in (half[k], half[-k], turn)]
        low, high = transform.split_powers(*pairs)
        np.testing.assert_allclose([low.of, high.of], [expected[k], expected[200 - k]], rtol=1e-10)


def test_the_logarithm_is_as_good_as_float32_allows() -> None:
    values = np.concatenate([np.geomspace(1e-10, 1e15, 200_001), 2.0 ** np.arange(-33, 49), [0.999999, 1.000001]])
    fractions, exponents = np.frexp(values)
    low = fractions < np.sqrt(0.5)
    found = transform.log10(
        Value(np.where(low, exponents - 1.0, exponents)), Value(np.where(low, fractions * 2, fractions) - 1)
    )
    np.testing.assert_allclose(found.of, np.log10(values), atol=1e-7)


def _engine_frames(engine: CpuEngine, samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Any number of frames, in calls of the largest size."""
    count = 1 + (len(samples) - FFT_SAMPLES) // HOP_SAMPLES
    frames = np.full((count, engine.bin_count), np.nan, np.float32)
    for first in range(0, count, engine.frame_count_max):
        part = frames[first : first + engine.frame_count_max]
        start = first * HOP_SAMPLES
        engine.compute(samples[start : start + FFT_SAMPLES + HOP_SAMPLES * (len(part) - 1)], part)
    return frames


def assert_close(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bin_count", MEL_BINS)
@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_frames_are_the_specifications(name: str, bin_count: int, kind: type) -> None:
    sound = SOUNDS[name]()
    padded = reflected(amplitudes(sound))
    samples = np.round(padded * 32767).astype(np.int16) if kind is np.int16 else padded.astype(np.float32)
    found = _engine_frames(CpuEngine(bin_count), samples)
    assert_close(found, raw_frames(amplitudes(samples), bin_count))


@pytest.mark.parametrize("bin_count", MEL_BINS)
def test_noise_is_within_the_tolerance_wherever_a_bin_happens_to_be_empty(bin_count: int) -> None:
    engine = CpuEngine(bin_count)
    for seed in range(10):
        samples = np.random.default_rng(seed).standard_normal(FFT_SAMPLES + HOP_SAMPLES * 2999).astype(np.float32) * 0.2
        assert_close(_engine_frames(engine, samples), raw_frames(samples.astype(np.float64), bin_count))


def test_silence_is_the_floor() -> None:
    frames = _engine_frames(CpuEngine(80), np.zeros(FFT_SAMPLES, np.float32))
    np.testing.assert_allclose(frames, -10.0, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bin_count", MEL_BINS)
def test_a_frame_is_the_same_to_the_bit_in_every_lane_and_number(bin_count: int) -> None:
    engine = CpuEngine(bin_count)
    samples = np.random.default_rng(5).integers(-32768, 32768, FFT_SAMPLES + HOP_SAMPLES * 69).astype(np.int16)
    together = _engine_frames(engine, samples)
    for count in (*range(1, 20), 31, 32, 33, 48, 69):
        for first in (0, 1, 70 - count):
            frames = np.full((count, bin_count), np.nan, np.float32)
            start = first * HOP_SAMPLES
            engine.compute(samples[start : start + FFT_SAMPLES + HOP_SAMPLES * (count - 1)].copy(), frames)
            assert frames.tobytes() == together[first : first + count].tobytes(), f"{count} frames from {first} on"


def test_sixteen_bits_and_floats_of_the_same_sound_are_the_same_to_the_bit() -> None:
    engine = CpuEngine(128)
    samples = np.random.default_rng(6).integers(-32768, 32768, FFT_SAMPLES + HOP_SAMPLES * 40).astype(np.int16)
    floats = samples.astype(np.float32) / 32768
    assert _engine_frames(engine, samples).tobytes() == _engine_frames(engine, floats).tobytes()


def test_nothing_is_written_beside_the_frames() -> None:
    engine = CpuEngine(80)
    samples = np.random.default_rng(7).standard_normal(FFT_SAMPLES + HOP_SAMPLES * 255).astype(np.float32)
    for count in (1, 7, 16, 17, 256):
        around = np.full((count + 2, 80), 77.0, np.float32)
        engine.compute(samples[: FFT_SAMPLES + HOP_SAMPLES * (count - 1)], around[1:-1])
        assert (around[0] == 77).all()
        assert (around[-1] == 77).all()
        assert (around[1:-1] != 77).all()


def test_the_loudest_samples_stay_finite() -> None:
    signs = np.where(np.arange(FFT_SAMPLES + HOP_SAMPLES * 20) // 40 % 2, -1, 1)
    samples = (signs * SAMPLE_MAX).astype(np.float32)
    assert_close(_engine_frames(CpuEngine(80), samples), raw_frames(samples.astype(np.float64), 80))


def test_threads_compute_beside_one_another() -> None:
    engine = CpuEngine(80)
    sounds = [
        np.random.default_rng(seed).standard_normal(FFT_SAMPLES + HOP_SAMPLES * 30).astype(np.float32)
        for seed in range(4)
    ]
    expected = [_engine_frames(engine, sound).tobytes() for sound in sounds]
    wrong: list[int] = []

    def repeat(index: int) -> None:
        wrong.extend(index for _ in range(50) if _engine_frames(engine, sounds[index]).tobytes() != expected[index])

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_is_held_to_its_contract() -> None:
    engine = CpuEngine(80)
    samples, frames = np.zeros(FFT_SAMPLES, np.float32), np.zeros((1, 80), np.float32)
    wrong: list[tuple[Any, Any]] = [
        (samples[:-1], frames),
        (samples.astype(np.float64), frames),
        (np.zeros(2 * FFT_SAMPLES, np.float32)[::2], frames),
        (samples, np.zeros((1, 128), np.float32)),
        (samples, np.zeros((1, 80))),
        (samples, np.zeros((2, 80), np.float32)),
        (samples, np.zeros((0, 80), np.float32)),
        (np.zeros(FFT_SAMPLES + HOP_SAMPLES * FRAMES_PER_CALL_MAX, np.float32), np.zeros((257, 80), np.float32)),
    ]
    for given_samples, given_frames in wrong:
        with pytest.raises(AssertionError):
            engine.compute(given_samples, given_frames)


OTHER_LEVELS = ["v2", "v3"] if platform.machine() == "x86_64" else []


@pytest.mark.parametrize("level", OTHER_LEVELS)
def test_processors_with_narrower_registers_compute_the_same(level: str, tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
from backends.mel.cpu import CpuEngine
from backends.mel.vectors import LANES
assert LANES == 4
samples, frames = np.load(sys.argv[1]), np.zeros((203, 128), np.float32)
CpuEngine(128).compute(samples, frames)
np.save(sys.argv[2], frames)
"""
    samples = np.random.default_rng(8).standard_normal(FFT_SAMPLES + HOP_SAMPLES * 202).astype(np.float32)
    np.save(tmp_path / "samples.npy", samples)
    environment = os.environ | {LEVEL_VARIABLE: level}
    command = [sys.executable, "-c", program, str(tmp_path / "samples.npy"), str(tmp_path / "frames.npy")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=100)
    assert_close(np.load(tmp_path / "frames.npy"), raw_frames(samples.astype(np.float64), 128))


def test_samples_and_frames_may_lie_anywhere() -> None:
    numbers = np.random.default_rng(5).integers(-3000, 3000, 3 * FFT_SAMPLES).astype(np.int16)
    unaligned = np.frombuffer(b"\0" + numbers[:FFT_SAMPLES].tobytes(), np.int16, offset=1)
    read_only = np.frombuffer(numbers[:FFT_SAMPLES].astype(np.float32).tobytes(), np.float32)
    for bin_count in MEL_BINS:
        engine = CpuEngine(bin_count)
        expected, found = np.zeros((1, bin_count), np.float32), np.zeros((3, bin_count), np.float32)
        engine.compute(numbers[:FFT_SAMPLES].copy(), expected)
        scaled = read_only / np.float32(2**15)
        for samples in (unaligned, scaled, np.concatenate([numbers[:160], numbers])[160 : 160 + FFT_SAMPLES]):
            found[:] = -1
            engine.compute(samples, found[1:2])
            assert np.array_equal(found[1:2], expected)
            assert (found[[0, 2]] == -1).all()


def test_whisper_has_no_other_number_of_bins() -> None:
    with pytest.raises(ValueError, match="64 mel bins: Whisper has 80 or 128"):
        CpuEngine(64)
