"""The CUDA kernels alone over buffers of one GPU, engines of one GPU, and audio to feed them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel import spec
from backends.mel.cpu import CpuEngine
from backends.mel.cuda import layout, pycuda_device
from backends.mel.cuda.device import ArrayArgument, KernelKey
from backends.mel.cuda.engine import CudaEngine
from backends.mel.cuda.worker import CudaLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from backends.mel.cuda.device import DeviceMemory
    from backends.mel.cuda.layout import FrameType, SampleType

CLIPS = 512
CLIP = spec.WINDOW_SAMPLES
FRAMES = spec.WINDOW_FRAMES
AUDIO_S = CLIPS * spec.WINDOW_SECONDS
CHUNK_FRAMES = 100  # a second
CHUNK = spec.FFT_SAMPLES + spec.HOP_SAMPLES * (CHUNK_FRAMES - 1)

Results = dict[str, Any]


def noise(shape: tuple[int, ...], sample_type: str, *, soft: bool = False, seed: int = 0) -> npt.NDArray[Any]:
    """Audio of no particular kind; `soft`: its second half is, so that the clamp has work."""
    random = np.random.default_rng(seed)
    samples = random.standard_normal(shape, np.float32) * np.float32(0.1)
    if soft:
        samples[..., shape[-1] // 2 :] *= np.float32(1e-4)
    return (samples * 32_767).astype(np.int16) if sample_type == "int16" else samples


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the most."""
    array = np.asarray(values)
    return {
        name: round(float(np.percentile(array, at)), 4)
        for name, at in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100))
    }


def million_s(milliseconds: float) -> float:
    """Throughput of 512 clips of 30 s, in millions of seconds of audio a second."""
    return round(AUDIO_S / milliseconds / 1000, 3)


def wall_ms(work: Callable[[], Any], repeats: int = 9) -> float:
    """Median time of the clock on the wall."""
    times: list[float] = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[2:])


def open_engine(limits: CudaLimits | None = None, bins: int = 80) -> CudaEngine:
    """An engine of the first GPU."""
    engine = CudaEngine(
        [lambda: pycuda_device.open_device(0)], CpuEngine(bins), limits or CudaLimits(frames_in_call_max=FRAMES)
    )
    if not engine.workers:
        raise RuntimeError("no GPU was opened")
    return engine


class Rig:
    """The CUDA kernels alone, over buffers of one device."""

    def __init__(self, sample_type: SampleType, frame_type: FrameType, bins: int, clips: int, length: int) -> None:
        self.device = pycuda_device.PycudaDevice(0)
        self.shape = (clips, FRAMES, bins)
        self.frame_type = frame_type
        self.samples = self.device.memory(clips * length * layout.SAMPLE_BYTES[sample_type])
        self.table = self.device.memory(clips * layout.CHUNK_BYTES)
        self.frames = self.device.memory(clips * FRAMES * bins * layout.FRAME_BYTES[frame_type])
        self.extremes = self.device.memory(clips * FRAMES * 8)
        self.stream = self.device.stream()
        samples = ArrayArgument(self.samples, 0, sample_type, (clips * length,))
        table = ArrayArgument(self.table, 0, "int32", (clips, layout.CHUNK_FIELDS))
        frames = ArrayArgument(self.frames, 0, frame_type, (clips * FRAMES * bins,))
        extremes = ArrayArgument(self.extremes, 0, "float32", (2, clips * FRAMES))
        scale = spec.INT16_SCALE if sample_type == "int16" else 1.0
        self.log_mel = self.device.prepare(
            KernelKey("log_mel", bins, sample_type, frame_type), (samples, table, frames, extremes, scale)
        )
        self.clamp = self.device.prepare(KernelKey("clamp", bins, "float32", frame_type), (table, frames, extremes))
        rows = np.zeros((clips, layout.CHUNK_FIELDS), np.int32)
        for clip in range(clips):
            rows[clip] = layout.clip_row(clip * length, length, clip * FRAMES)
        self.put(self.table, rows)

    def put(self, memory: DeviceMemory, array: npt.NDArray[Any]) -> None:
        """Copy an array to the device, and wait for it."""
        pages = self.device.pinned(array.nbytes)
        pages[:] = array.reshape(-1).view(np.uint8)
        self.device.copy_in(memory, 0, pages, self.stream)
        self.stream.wait()

    def get(self) -> npt.NDArray[Any]:
        """The frames."""
        pages = self.device.pinned(self.frames.byte_count)
        pages[:] = 0xFF
        self.device.copy_out(pages, self.frames, 0, self.stream)
        self.stream.wait()
        return pages.view(self.frame_type).reshape(self.shape)

    def poison(self) -> None:
        """Fill the frames with what no kernel writes."""
        self.put(self.frames, np.full(self.frames.byte_count, 0xFF, np.uint8))

    def run(self, *, clamp: bool = True) -> None:
        """Launch the CUDA kernels over all clips."""
        clips = self.shape[0]
        self.log_mel(layout.log_mel_grid(FRAMES, clips), self.stream)
        if clamp:
            self.clamp(layout.clamp_grid(clips), self.stream)

    def milliseconds(self, repeats: int = 15, *, clamp: bool = True) -> float:
        """Median time of the device for one run over all clips."""
        times: list[float] = []
        for _ in range(repeats + 3):
            start, end = self.device.event(), self.device.event()
            start.record(self.stream)
            self.run(clamp=clamp)
            end.record(self.stream)
            end.wait()
            times.append(end.milliseconds_since(start))
        return statistics.median(times[3:])

    def close(self) -> None:
        """Give the device back."""
        del self.samples, self.table, self.frames, self.extremes, self.log_mel, self.clamp
        self.device.close()


def run_small() -> None:
    """A little of each CUDA kernel, for a tool that is slow."""
    for bins in spec.MEL_BINS:
        rig = Rig("int16", "float32", bins, 2, 16_000)
        rig.put(rig.samples, noise((2, 16_000), "int16"))
        rig.run()
        rig.stream.wait()
        rig.close()


if __name__ == "__main__":
    run_small()
