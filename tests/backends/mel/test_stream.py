"""A stream of audio against the specification of the whole clip, however it is cut."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.mel.cpu import CpuEngine
from backends.mel.engine import SAMPLE_MAX, EngineError
from backends.mel.reference import features
from backends.mel.spec import MEL_BINS, NORMALISATIONS, WINDOW_FRAMES, WINDOW_SAMPLES, Normalisation
from backends.mel.stream import MelStream, SampleType
from tests.backends.mel.signals import SOUNDS

if TYPE_CHECKING:
    from backends.mel.engine import Frames, Samples

TOLERANCE = 2e-6  # asked for are 1e-4, and with no normalisation only 6 decades down


@functools.cache
def engine_of(bin_count: int) -> CpuEngine:
    """Made when a test asks: this file is also collected where nothing is compiled."""
    return CpuEngine(bin_count)


HOUR_SAMPLES = 3600 * 16_000


class FewAtOnce:
    """An engine that takes no more than so many frames in one call."""

    def __init__(self, frame_count_max: int) -> None:
        self.bin_count = 80
        self.frame_count_max = frame_count_max
        self.calls = 0

    def compute(self, samples: Samples, frames: Frames) -> None:
        assert len(frames) <= self.frame_count_max
        self.calls += 1
        engine_of(80).compute(samples, frames)

    def close(self) -> None:
        pass


def _streamed(stream: MelStream, chunks: list[npt.NDArray[Any]]) -> Frames:
    parts = [stream.push(chunk) for chunk in chunks]
    frames = np.concatenate([*parts, stream.finish()])
    assert stream.frame_count == len(frames)
    assert stream.sample_count == sum(map(len, chunks))
    return frames


def _whole(samples: npt.NDArray[Any], normalisation: Normalisation, bin_count: int = 80) -> Frames:
    return _streamed(MelStream(engine_of(bin_count), normalisation, samples.dtype.type), [samples])


def _sixteen_bits(sound: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    return np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)


@pytest.mark.parametrize("bin_count", MEL_BINS)
@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("normalisation", ["running", "whisper"])
def test_normalised_features_are_the_specifications(name: str, bin_count: int, normalisation: Normalisation) -> None:
    sound = SOUNDS[name]()
    for samples in (sound, _sixteen_bits(sound)):
        expected = features(samples, bin_count, normalisation)
        found = _whole(samples, normalisation, bin_count)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bin_count", MEL_BINS)
@pytest.mark.parametrize("name", SOUNDS)
def test_raw_features_are_the_specifications(name: str, bin_count: int) -> None:
    sound = SOUNDS[name]()
    for samples in (sound, _sixteen_bits(sound)):
        expected = features(samples, bin_count, "none")
        np.testing.assert_allclose(_whole(samples, "none", bin_count), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "count", [1, 2, 159, 160, 161, 199, 200, 201, 202, 239, 240, 241, 359, 360, 399, 400, 401, 560]
)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_clips_of_any_length_begin_and_end_as_specified(count: int, normalisation: Normalisation) -> None:
    samples = np.random.default_rng(count).standard_normal(count).astype(np.float32) * 0.1
    found = _whole(samples, normalisation)
    np.testing.assert_allclose(found, features(samples, 80, normalisation), rtol=0, atol=TOLERANCE)


def test_no_audio_has_no_frames_but_a_window_of_silence_for_whisper() -> None:
    nothing = np.zeros(0, np.float32)
    for normalisation in ("none", "running"):
        assert _whole(nothing, normalisation).shape == (0, 80)
        assert features(nothing, 80, normalisation).shape == (0, 80)
    silence = np.full((WINDOW_FRAMES, 80), -1.5)
    np.testing.assert_allclose(_whole(nothing, "whisper"), silence, atol=TOLERANCE)
    np.testing.assert_allclose(features(nothing, 80, "whisper"), silence, atol=1e-12)


def test_a_frame_leaves_as_soon_as_its_samples_are_there() -> None:
    stream = MelStream(engine_of(80), "none", np.int16)
    samples = _sixteen_bits(SOUNDS["noise"]())
    for count in range(1, 2001):
        frames = stream.push(samples[count - 1 : count])
        # Frame i is centred on sample 160 i: it reaches up to sample 160 i + 199, and the first one's image to 200.
        due = 0 if count < 201 else 1 + (count - 200) // 160
        assert stream.frame_count == due, f"after {count} samples"
        assert len(frames) in {0, 1}


cuts = st.lists(st.integers(0, 700), max_size=30)


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(0, 5000),
    sizes=cuts,
    seed=st.integers(0, 2**32 - 1),
    normalisation=st.sampled_from(NORMALISATIONS),
    sample_type=st.sampled_from([np.int16, np.float32]),
    bin_count=st.sampled_from(MEL_BINS),
)
def test_frames_do_not_depend_on_how_the_audio_was_cut(
    count: int, sizes: list[int], seed: int, normalisation: Normalisation, sample_type: SampleType, bin_count: int
) -> None:
    samples = np.random.default_rng(seed).integers(-20000, 20000, count).astype(sample_type)
    bounds = [0, *itertools.takewhile(lambda bound: bound < count, itertools.accumulate(sizes)), count]
    chunks = [samples[first:last] for first, last in itertools.pairwise(bounds)]
    cut = _streamed(MelStream(engine_of(bin_count), normalisation, sample_type), chunks)
    assert cut.tobytes() == _whole(samples, normalisation, bin_count).tobytes()


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 700_000), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_windows_do_not_depend_on_how_the_audio_was_cut(sizes: list[int], seed: int) -> None:
    count = 2 * WINDOW_SAMPLES + 12_345
    samples = np.random.default_rng(seed).integers(-20000, 20000, count).astype(np.int16)
    bounds = [0, *itertools.takewhile(lambda bound: bound < count, itertools.accumulate(itertools.cycle(sizes))), count]
    stream = MelStream(engine_of(80), "whisper", np.int16)
    cut = _streamed(stream, [samples[first:last] for first, last in itertools.pairwise(bounds)])
    windows = [samples[first : first + WINDOW_SAMPLES] for first in range(0, count, WINDOW_SAMPLES)]
    apart = np.concatenate([_whole(window, "whisper") for window in windows])
    assert cut.shape == (3 * WINDOW_FRAMES, 80)
    assert cut.tobytes() == apart.tobytes()


def test_a_window_leaves_when_it_closes_and_an_exact_end_opens_no_other() -> None:
    stream = MelStream(engine_of(80), "whisper", np.int16)
    samples = _sixteen_bits(np.tile(SOUNDS["speech"](), 16))[: WINDOW_SAMPLES + 5]
    assert len(stream.push(samples[: WINDOW_SAMPLES - 1])) == 0
    assert len(stream.push(samples[WINDOW_SAMPLES - 1 : WINDOW_SAMPLES])) == WINDOW_FRAMES
    assert len(stream.finish()) == 0
    stream = MelStream(engine_of(80), "whisper", np.int16)
    assert len(stream.push(samples)) == WINDOW_FRAMES
    assert len(stream.finish()) == WINDOW_FRAMES


def test_five_windows_in_one_chunk_are_five_clips() -> None:
    samples = _sixteen_bits(np.tile(SOUNDS["music"](), 75))
    found = _whole(samples, "whisper")
    np.testing.assert_allclose(found, features(samples, 80, "whisper"), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("frame_count_max", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_an_engine_of_few_frames_gets_more_calls_and_gives_the_same(
    frame_count_max: int, normalisation: Normalisation
) -> None:
    engine = FewAtOnce(frame_count_max)
    for count in (1, 150, 201, 777, 5000):
        samples = _sixteen_bits(SOUNDS["speech"]()[:count])
        few = _streamed(MelStream(engine, normalisation, np.int16), [samples])
        assert few.tobytes() == _whole(samples, normalisation).tobytes()
    assert engine.calls >= 5000 // 160 // frame_count_max


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_samples_that_are_no_numbers_are_silence_and_counted(normalisation: Normalisation) -> None:
    samples = SOUNDS["speech"]()
    broken, mended = samples.copy(), samples.copy()
    for index, value, instead in ((0, np.nan, 0), (777, np.inf, 0), (778, -np.inf, 0), (20_000, 1e30, SAMPLE_MAX)):
        broken[index], mended[index] = value, instead
    broken[31_999], mended[31_999] = -np.finfo(np.float32).max, -SAMPLE_MAX
    given_before = broken.copy()
    stream = MelStream(engine_of(80), normalisation, np.float32)
    found = _streamed(stream, [broken])
    assert stream.repaired_count == 5
    assert np.array_equal(broken, given_before, equal_nan=True), "a chunk belongs to its sender"
    assert found.tobytes() == _whole(mended, normalisation).tobytes()
    np.testing.assert_allclose(found, features(broken, 80, normalisation), rtol=0, atol=TOLERANCE)
    assert MelStream(engine_of(80), normalisation, np.float32).repaired_count == 0


def test_loud_samples_are_computed_as_they_are() -> None:
    loud = (SOUNDS["speech"]() * 32768).astype(np.float32)
    stream = MelStream(engine_of(80), "none", np.float32)
    found = _streamed(stream, [loud])
    assert stream.repaired_count == 0
    np.testing.assert_allclose(found, features(loud, 80, "none"), rtol=0, atol=TOLERANCE)


def test_results_belong_to_whoever_gets_them() -> None:
    samples = _sixteen_bits(np.tile(SOUNDS["noise"](), 30))
    for normalisation in NORMALISATIONS:
        stream = MelStream(engine_of(80), normalisation, np.int16)
        first = stream.push(samples[:WINDOW_SAMPLES])
        kept = first.copy()
        stream.push(samples[WINDOW_SAMPLES:])
        stream.finish()
        assert np.array_equal(first, kept)


@pytest.mark.serial
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_ten_hours_need_no_more_memory_than_ten_seconds(normalisation: Normalisation) -> None:
    second = _sixteen_bits(SOUNDS["speech"]())[:16_000]
    stream = MelStream(engine_of(80), normalisation, np.int16)
    buffers = stream.buffer_bytes
    assert buffers < 1_200_000
    for _ in range(100):
        stream.push(second)
    resident_kib = _resident_kib()
    for _ in range(36_000 - 100):
        stream.push(second)
    assert stream.buffer_bytes == buffers
    assert _resident_kib() - resident_kib < 2_048
    stream.finish()
    assert stream.sample_count == 10 * HOUR_SAMPLES
    assert stream.frame_count == 10 * HOUR_SAMPLES // 160 + (normalisation != "whisper")


def _resident_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def test_what_is_no_audio_of_this_stream_is_refused() -> None:
    stream = MelStream(engine_of(80), "none", np.int16)
    for wrong in (np.zeros(5, np.float32), np.zeros((5, 2), np.int16), np.zeros(5, ">i2")):
        with pytest.raises(ValueError, match="a chunk of"):
            stream.push(wrong)
    assert len(stream.push(np.zeros(1000, np.int16)[::2])) == 2
    stream.finish()
    with pytest.raises(AssertionError):
        stream.push(np.zeros(5, np.int16))
    with pytest.raises(AssertionError):
        stream.finish()


def test_what_a_stream_cannot_be_is_said() -> None:
    wrong: Any = "loudest"
    with pytest.raises(ValueError, match="unknown normalisation 'loudest': known are none, running, whisper"):
        MelStream(engine_of(80), wrong)
    wrong = np.float64
    with pytest.raises(ValueError, match="known are int16 and float32"):
        MelStream(engine_of(80), "none", wrong)


def test_an_engine_that_fails_is_heard_of() -> None:
    class Failing(FewAtOnce):
        def compute(self, samples: Samples, frames: Frames) -> None:
            raise EngineError(f"the device is gone, with {len(frames)} frames of {len(samples)} samples")

    stream = MelStream(Failing(8), "none", np.int16)
    assert len(stream.push(np.zeros(200, np.int16))) == 0
    with pytest.raises(EngineError, match="the device is gone"):
        stream.push(np.zeros(200, np.int16))
