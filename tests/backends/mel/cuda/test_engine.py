"""The engine over fake GPUs: what it computes, what goes in one launch, where streams go, and what a fault leads to."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.mel import reference, spec
from backends.mel.cuda.device import DeviceError
from backends.mel.cuda.engine import CudaEngine, open_cuda_engine
from backends.mel.cuda.jobs import CudaJob
from backends.mel.cuda.loads import Loads
from backends.mel.cuda.slots import Slot
from backends.mel.cuda.worker import Busy, CudaLimits
from backends.mel.engine import EngineError
from backends.mel.stream import MelStream
from tests.backends.mel.cuda.fake_device import FakeDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from backends.mel.cuda.device import KernelKey
    from backends.mel.engine import Frames, Samples

BINS = 80
WITHIN = 1e-4


class Reference:
    """The specification as the engine of last resort."""

    bin_count = BINS
    frame_count_max = 64

    def compute(self, samples: Samples, frames: Frames) -> None:
        assert len(frames) <= self.frame_count_max
        frames[:] = reference.raw_frames(reference.amplitudes(samples), BINS)

    def close(self) -> None:
        pass


class Rig:
    """Engines of fake devices, closed at the end."""

    def __init__(self) -> None:
        self.devices: list[FakeDevice] = []
        self.engines: list[CudaEngine] = []

    def engine(
        self,
        *faults: dict[str, int],
        limits: CudaLimits | None = None,
        kernels: Callable[[KernelKey], Callable[..., None]] | None = None,
        loads: Loads | None = None,
    ) -> CudaEngine:
        """One device for each of `faults`."""

        def opener(number: int, wanted: dict[str, int]) -> Callable[[], FakeDevice]:
            def open_device() -> FakeDevice:
                self.devices.append(FakeDevice(number, wanted, kernels))
                return self.devices[-1]

            return open_device

        openers = [opener(number, wanted) for number, wanted in enumerate(faults)]
        self.engines.append(CudaEngine(openers, Reference(), limits, loads))
        return self.engines[-1]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    for engine in made.engines:
        engine.close()
    assert all(device.closed for device in made.devices)


def chunk(frame_count: int, seed: int = 0, dtype: str = "int16") -> npt.NDArray[Any]:
    samples = np.random.default_rng(seed).integers(-9_000, 9_000, 400 + 160 * (frame_count - 1))
    return (samples / 32_768).astype(np.float32) if dtype == "float32" else samples.astype(np.int16)


def poisoned(*shape: int, dtype: str = "float32") -> npt.NDArray[Any]:
    return np.full(shape, np.nan, dtype)


def assert_right(samples: npt.NDArray[Any], frames: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(frames, reference.raw_frames(reference.amplitudes(samples), BINS), atol=WITHIN)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("frame_count", [1, 31, 100, 3000])
def test_chunks_are_those_of_the_specification(rig: Rig, dtype: str, frame_count: int) -> None:
    engine = rig.engine({}, limits=CudaLimits(frames_in_call_max=frame_count))
    samples, frames = chunk(frame_count, dtype=dtype), poisoned(frame_count, BINS)
    engine.compute(samples, frames)
    assert_right(samples, frames)
    frames[:] = np.nan
    place = engine.place()
    place.compute(samples, frames)
    assert_right(samples, frames)
    place.close()


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_clips_are_whispers(rig: Rig, dtype: str, *, pinned: bool) -> None:
    engine = rig.engine({})
    samples = np.stack([chunk(1000, seed) for seed in range(10 if pinned else 3)])
    samples[:, 50_000:] //= 3_000
    features = poisoned(len(samples), spec.WINDOW_FRAMES, BINS, dtype=dtype)
    for job in engine.submit_clips(samples, features, pinned=pinned):
        job.wait()
    for clip, made in zip(samples, features, strict=True):
        expected = reference.features(clip, BINS, "whisper")
        np.testing.assert_allclose(made, expected, atol=2e-3 if dtype == "float16" else WITHIN)


def test_chunks_of_many_streams_go_in_one_launch_and_come_back_to_each(rig: Rig) -> None:
    engine = rig.engine({})
    device = rig.devices[0]
    device.launch_s = 0.05
    samples = [chunk(20 + number, number) for number in range(40)]
    frames = [poisoned(20 + number, BINS) for number in range(40)]
    # The first keeps the device at work while the others arrive.
    pending = [engine.submit(*pair) for pair in zip(samples, frames, strict=True)]
    for one in pending:
        one.wait()
        assert one.done()
    for pair in zip(samples, frames, strict=True):
        assert_right(*pair)
    counters = engine.workers[0].counters
    assert counters.jobs == 40
    assert counters.launches <= 1 + CudaLimits().slots
    assert counters.jobs_in_launch_max >= 30
    assert counters.frames == sum(map(len, frames))


def test_a_table_that_the_device_has_is_not_copied_again(rig: Rig) -> None:
    engine = rig.engine({}, limits=CudaLimits(slots=1))
    samples = np.stack([chunk(100, seed) for seed in range(24)])
    features = poisoned(24, spec.WINDOW_FRAMES, BINS)
    for _ in range(2):
        features[:] = np.nan
        for job in engine.submit_clips(samples, features, pinned=True):
            job.wait()
        for clip in (0, 9, 23):
            expected = reference.features(samples[clip], BINS, "whisper")
            np.testing.assert_allclose(features[clip], expected, atol=WITHIN)
    assert rig.devices[0].copies_in == 1 + 6
    part, frames = chunk(5), poisoned(5, BINS)
    engine.compute(part, frames)
    assert_right(part, frames)
    assert rig.devices[0].copies_in == 1 + 6 + 1


def test_nobody_waits_for_streams_that_have_all_sent_their_chunks(rig: Rig) -> None:
    engine = rig.engine({}, limits=CudaLimits(window_ms=2_000, latency_budget_ms=10_000))
    rig.devices[0].launch_s = 0.005
    places = [engine.place() for _ in range(4)]
    started_s = time.monotonic()
    for _ in range(40):
        pending = [place.submit(chunk(2), poisoned(2, BINS)) for place in places]
        for one in pending:
            one.wait()
    assert time.monotonic() - started_s < 2, "a window was waited for"


@pytest.mark.parametrize("faults", [{}, {"launch": 3}])
def test_a_stream_of_audio_is_what_it_is_on_the_cpu(rig: Rig, faults: dict[str, int]) -> None:
    place = rig.engine(faults, limits=CudaLimits(frames_in_call_max=64)).place()
    stream = MelStream(place, "none", np.int16)
    audio = chunk(200)
    pieces = [stream.push(audio[first : first + 2_000]).copy() for first in range(0, len(audio), 2_000)]
    pieces.append(stream.finish())
    np.testing.assert_allclose(np.concatenate(pieces), reference.features(audio, BINS, "none"), atol=WITHIN)
    place.close()


def test_types_are_not_mixed_in_a_launch(rig: Rig) -> None:
    engine = rig.engine({})
    rig.devices[0].launch_s = 0.02
    jobs: list[tuple[Any, npt.NDArray[Any], npt.NDArray[Any]]] = []
    for number in range(12):
        samples = chunk(5, number, "float32" if number % 3 else "int16")
        frames = poisoned(5, BINS)
        jobs.append((engine.submit(samples, frames), samples, frames))
    for pending, samples, frames in jobs:
        pending.wait()
        assert_right(samples, frames)


def test_a_lone_stream_is_computed_on_its_own_thread(rig: Rig) -> None:
    threads: list[int] = []

    def kernels(key: KernelKey) -> Callable[..., None]:
        del key
        return lambda *_: threads.append(threading.get_ident())

    engine = rig.engine({}, kernels=kernels)
    engine.place().compute(chunk(3), poisoned(3, BINS))
    assert set(threads) == {threading.get_ident()}


def test_many_threads_at_once(rig: Rig) -> None:
    engine = rig.engine({}, {})
    failures: list[BaseException] = []

    def stream(seed: int) -> None:
        try:
            place = engine.place()
            for number in range(20):
                samples, frames = chunk(1 + number, seed), poisoned(1 + number, BINS)
                place.compute(samples, frames)
                assert_right(samples, frames)
            place.close()
        except BaseException as error:  # noqa: BLE001  (shown by the test's own thread)
            failures.append(error)

    threads = [threading.Thread(target=stream, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert sum(worker.counters.jobs for worker in engine.workers) == 160
    assert [worker.streams for worker in engine.workers] == [0, 0]


def test_streams_are_spread_and_stay_where_they_are(rig: Rig) -> None:
    engine = rig.engine({}, {}, {})
    places = [engine.place() for _ in range(9)]
    assert [worker.streams for worker in engine.workers] == [3, 3, 3]
    for place in places[:3]:
        for _ in range(4):
            place.compute(chunk(2), poisoned(2, BINS))
    assert [worker.counters.jobs for worker in engine.workers] == [4, 4, 4]
    for place in places:
        place.close()
        place.close()
    assert [worker.streams for worker in engine.workers] == [0, 0, 0]


def test_ten_thousand_streams_leave_nothing_behind(rig: Rig) -> None:
    engine = rig.engine({}, kernels=lambda _: lambda *_: None)
    device = rig.devices[0]
    samples, frames = chunk(2), poisoned(2, BINS)
    held = device.bytes_held
    for _ in range(10_000):
        place = engine.place()
        place.compute(samples, frames)
        place.close()
    assert device.bytes_held == held
    assert engine.workers[0].counters.jobs == 10_000
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, CudaJob)]


def test_more_than_the_queue_holds_is_refused(rig: Rig) -> None:
    engine = rig.engine({}, limits=CudaLimits(jobs_max=8, slots=1, jobs_in_launch_max=1))
    rig.devices[0].launch_s = 0.2
    pending: list[Any] = []

    def submit_too_many() -> None:
        for _ in range(12):
            pending.append(engine.submit(chunk(2), poisoned(2, BINS)))  # noqa: PERF401  (what came before is waited for)

    with pytest.raises(Busy, match="8 chunks are waiting for fake GPU 0"):
        submit_too_many()
    rig.devices[0].launch_s = 0.0
    for one in pending:
        one.wait()


def test_without_a_device_the_cpu_computes_and_it_is_said_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    engine = rig.engine()
    for _ in range(3):
        samples, frames = chunk(100), poisoned(100, BINS)
        place = engine.place()
        place.compute(samples, frames)
        place.submit(samples, frames).wait()
        assert_right(samples, frames)
    assert engine.counters.jobs_on_cpu == 6
    assert [record.message for record in caplog.records] == ["no GPU: mel frames are computed on the CPU"]


def test_without_pycuda_or_a_driver_there_is_an_engine_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    engine = open_cuda_engine(Reference())
    if engine.workers:
        pytest.skip("this machine has a GPU")
    engine.compute(chunk(3), poisoned(3, BINS))
    assert caplog.records[0].message.startswith("GPUs are not used: ")
    engine.close()


@pytest.mark.parametrize("works", [0, 3, 11])
def test_a_device_without_memory_is_not_used(rig: Rig, works: int, caplog: pytest.LogCaptureFixture) -> None:
    engine = rig.engine({"memory": works}, {})
    samples, frames = chunk(7), poisoned(7, BINS)
    engine.compute(samples, frames)
    assert_right(samples, frames)
    assert [worker.name for worker in engine.workers] == ["fake GPU 1"]
    assert rig.devices[0].closed
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "a GPU is not used: memory failed: the test wants it"
    ]


@pytest.mark.parametrize("fault", ["copy_in", "launch", "copy_out", "wait"])
@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_device_that_fails_in_mid_stream_is_left_and_said_once(
    rig: Rig, fault: str, devices: int, caplog: pytest.LogCaptureFixture, *, submitted: bool
) -> None:
    sound: list[dict[str, int]] = [{} for _ in range(devices - 1)]
    engine = rig.engine({fault: 5}, *sound)
    places = [engine.place() for _ in range(4)]
    for turn in range(6):
        for number, place in enumerate(places):
            samples, frames = chunk(4 + turn, number), poisoned(4 + turn, BINS)
            if submitted:
                place.submit(samples, frames).wait()
            else:
                place.compute(samples, frames)
            assert_right(samples, frames)
    assert engine.counters.devices_lost == 1
    assert len(engine.workers) == devices - 1
    assert (engine.counters.jobs_on_cpu > 0) == (devices == 1)
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith(f"fake GPU 0 failed ({fault} failed: the test wants it): its streams and 1 chunks move")
    assert errors[0].endswith("the CPU" if devices == 1 else "1 other GPUs")
    for place in places:
        place.close()


def test_a_device_that_cannot_be_entered_any_more_is_left(rig: Rig) -> None:
    engine = rig.engine({"enter": 2})
    place = engine.place()
    for turn in range(4):
        samples, frames = chunk(4, turn), poisoned(4, BINS)
        place.compute(samples, frames)
        assert_right(samples, frames)
    assert (engine.counters.devices_lost, engine.counters.jobs_on_cpu) == (1, 2)


@pytest.mark.parametrize("error", [DeviceError, RuntimeError, AssertionError])
@pytest.mark.parametrize("submitted", [False, True])
def test_an_error_of_any_kind_gives_a_device_up(
    rig: Rig, error: type[Exception], caplog: pytest.LogCaptureFixture, *, submitted: bool
) -> None:
    engine = rig.engine({"launch": 1, "close": 0})
    rig.devices[0].error = error
    place = engine.place()
    for turn in range(3):
        samples, frames = chunk(4, turn), poisoned(4, BINS)
        if submitted:
            place.submit(samples, frames).wait()
        else:
            place.compute(samples, frames)
        assert_right(samples, frames)
    assert engine.counters.devices_lost == 1
    (said,) = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert "launch failed: the test wants it" in said
    assert (error.__name__ in said) == (error is not DeviceError)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("fault", ["memory", "prepare", "close"])
def test_a_device_that_does_not_open_for_any_reason_is_not_used(
    rig: Rig, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {"prepare": 2, "close": 0} if fault == "close" else {fault: 2}
    monkeypatch.setattr(FakeDevice, "error_default", RuntimeError)
    engine = rig.engine(faults)
    samples, frames = chunk(7), poisoned(7, BINS)
    engine.place().compute(samples, frames)
    assert_right(samples, frames)
    assert engine.workers == []
    assert caplog.records[0].message.startswith("a GPU is not used: RuntimeError: ")


@pytest.mark.timeout(120)
def test_streams_on_many_threads_outlive_each_device(rig: Rig) -> None:
    """Whoever waits for the device, uses it, or is about to, when it fails: none hangs and none fails."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    failures: list[BaseException] = []
    try:
        for turn in range(25):
            engine = rig.engine({"launch": 2 + turn % 5}, {"wait": 4 + turn % 7}, kernels=lambda _: lambda *_: None)

            def stream(number: int, engine: CudaEngine = engine) -> None:
                try:
                    place = engine.place()
                    for _ in range(8):
                        pair = chunk(2, number), poisoned(2, BINS)
                        if number % 4 == 0:
                            place.submit(*pair).wait()
                        else:
                            place.compute(*pair)
                    place.close()
                except BaseException as error:  # noqa: BLE001  (shown by the test's own thread)
                    failures.append(error)

            threads = [threading.Thread(target=stream, args=(number,), daemon=True) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(5)
            assert not any(thread.is_alive() for thread in threads), "a stream hangs"
            assert not failures, failures
            assert engine.counters.devices_lost >= 1
    finally:
        sys.setswitchinterval(interval_s)


class Turn:
    """The turn of a device: whoever asks for it first finds that another has just lost the device."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.may_close = threading.Event()  # what the device's own thread does when it is lost
        self._lock = threading.Lock()
        self._meanwhile: Callable[[], None] | None = meanwhile

    def acquire(self, *, blocking: bool = True) -> bool:
        if blocking:
            self.may_close.wait(20)
        elif self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            meanwhile()
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.timeout(60)
def test_a_stream_that_gets_the_turn_of_a_device_just_lost_goes_elsewhere(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = rig.engine({"launch": 0})
    first, second = engine.place(), engine.place()
    right = [(chunk(4, seed), poisoned(4, BINS)) for seed in range(2)]

    def lose() -> None:
        thread = threading.Thread(target=second.compute, args=right[1])
        thread.start()
        thread.join()

    turn = Turn(lose)
    monkeypatch.setattr(engine.workers[0], "_turn", turn)
    first.compute(*right[0])
    turn.may_close.set()
    for pair in right:
        assert_right(*pair)
    assert (engine.counters.devices_lost, engine.counters.jobs_on_cpu) == (1, 2)


def test_a_device_that_failed_holds_nothing_of_its_streams(rig: Rig) -> None:
    engine = rig.engine({"launch": 1})
    place = engine.place()
    for _ in range(3):
        place.compute(chunk(2), poisoned(2, BINS))
    engine.close()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, CudaJob | Slot)]
    assert rig.devices[0].bytes_held == 0


def test_engines_that_share_devices_share_their_loads(rig: Rig) -> None:
    loads = Loads()
    engines = [rig.engine({}, {}, loads=loads) for _ in range(2)]
    places = [engine.place() for engine in engines for _ in range(3)]
    assert [[worker.streams for worker in engine.workers] for engine in engines] == [[2, 1], [1, 2]]
    for place in places:
        place.close()
    assert set(loads.streams.values()) == {0}


def test_what_was_queued_when_a_device_failed_is_not_lost(rig: Rig) -> None:
    engine = rig.engine({"wait": 1}, {}, limits=CudaLimits(jobs_in_launch_max=4, slots=2))
    rig.devices[0].launch_s = 0.02
    place = engine.place()
    jobs = [(chunk(3, number), poisoned(3, BINS)) for number in range(40)]
    pending = [place.submit(*job) for job in jobs]
    for one in pending:
        one.wait()
    for job in jobs:
        assert_right(*job)
    assert engine.counters.devices_lost == 1


def test_an_error_of_the_cpu_reaches_whoever_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Reference, _samples: Samples, _frames: Frames) -> None:
        raise EngineError("broken")

    monkeypatch.setattr(Reference, "compute", fail)
    engine = rig.engine()
    with pytest.raises(EngineError, match="broken"):
        engine.compute(chunk(3), poisoned(3, BINS))


def test_a_callback_comes_when_the_frames_are_there(rig: Rig) -> None:
    engine = rig.engine({})
    called = threading.Event()
    samples, frames = chunk(3), poisoned(3, BINS)

    def done(job: CudaJob) -> None:
        assert job.done()
        called.set()

    engine.place().submit(samples, frames, callback=done)
    assert called.wait(5)
    assert_right(samples, frames)
