"""How fast: in the GPU's memory, over the bus, and one chunk at a time."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel import reference, spec
from backends.mel.cuda.layout import FrameType, SampleType
from scripts.gpu_mel.rig import CLIP, CLIPS, FRAMES, Results, Rig, million_s, noise, open_engine, percentiles, wall_ms
from scripts.gpu_mel.torch_features import Torch, pinned

if TYPE_CHECKING:
    from backends.mel.cuda.engine import CudaEngine

_VARIANTS: tuple[tuple[SampleType, FrameType], ...] = (
    ("int16", "float32"),
    ("int16", "float16"),
    ("float32", "float32"),
)


def device(results: Results) -> None:
    """Samples and frames in the GPU's memory: 512 clips of 30 s."""
    found = _others_on_device()
    importlib.import_module("torch").cuda.empty_cache()
    for bins in spec.MEL_BINS:
        for sample_type, frame_type in _VARIANTS:
            rig = Rig(sample_type, frame_type, bins, CLIPS, CLIP)
            rig.put(rig.samples, noise((CLIPS, CLIP), sample_type))
            name = f"{bins} bins, {sample_type} to {frame_type}"
            raw_ms, whisper_ms = rig.milliseconds(clamp=False), rig.milliseconds()
            found[f"ours, {name}, log10 alone"] = million_s(raw_ms)
            found[f"ours, {name}"] = million_s(whisper_ms)
            found[f"ours, {name}, TB/s at least"] = round(
                (rig.samples.byte_count + rig.frames.byte_count) / whisper_ms / 1e9, 3
            )
            rig.put(rig.samples, noise((CLIPS, CLIP), sample_type, soft=True))
            found[f"ours, {name}, half of it soft"] = million_s(rig.milliseconds())
            rig.close()
    found["ratio to PyTorch"] = round(found["ours, 80 bins, int16 to float32"] / found["PyTorch"], 2)
    results["device only, 512 x 30 s, million audio-seconds per second"] = found


def _others_on_device() -> Results:
    """PyTorch and torchaudio over the same work, and the memory's speed."""
    found: Results = {}
    torch = Torch()
    samples = torch.torch.randn(CLIPS, CLIP, device="cuda") * 0.1
    found["PyTorch, log10 alone"] = million_s(torch.milliseconds(lambda: torch.raw(samples)))
    found["PyTorch"] = million_s(torch.milliseconds(lambda: torch.features(samples)))
    audio: Any = importlib.import_module("torchaudio")
    mel = audio.transforms.MelSpectrogram(16_000, 400, hop_length=160, n_mels=80).cuda()
    found["torchaudio MelSpectrogram, without log10"] = million_s(torch.milliseconds(lambda: mel(samples)))
    source, target = samples.view(-1), torch.torch.empty_like(samples.view(-1))
    copy_ms = torch.milliseconds(lambda: target.copy_(source))
    found["memory, TB/s read and written"] = round(2 * source.nbytes / copy_ms / 1e9, 3)
    return found


def bus(results: Results) -> None:
    """512 clips of 30 s from page-locked int16 to page-locked features, and the bare copies as the limit."""
    torch = Torch()
    cuda = torch.torch.cuda
    tensor_in, samples = pinned(torch.torch, (CLIPS, CLIP), "int16")
    samples[:] = noise((CLIPS, CLIP), "int16")
    found: Results = {}
    for frame_type in ("float32", "float16"):
        tensor_out, frames = pinned(torch.torch, (CLIPS, FRAMES, 80), frame_type)
        device_in, device_out = tensor_in.cuda(), torch.torch.empty_like(tensor_out, device="cuda")
        streams = cuda.Stream(), cuda.Stream()

        def bare(target: Any = device_in, source: Any = device_out, out: Any = tensor_out, pair: Any = streams) -> None:
            with cuda.stream(pair[0]):
                target.copy_(tensor_in, non_blocking=True)
            with cuda.stream(pair[1]):
                out.copy_(source, non_blocking=True)
            cuda.synchronize()

        limit_ms = wall_ms(bare)
        del device_in, device_out
        half = frame_type == "float16"

        def theirs(out: Any = tensor_out, half: bool = half) -> None:
            audio = tensor_in.cuda(non_blocking=True).float() * spec.INT16_SCALE
            features = torch.features(audio).transpose(1, 2)
            out.copy_((features.half() if half else features).contiguous(), non_blocking=True)
            cuda.synchronize()

        torch_ms = wall_ms(theirs)
        cuda.empty_cache()
        engine = open_engine()

        def ours(engine: CudaEngine = engine, out: Any = frames) -> None:
            for job in engine.submit_clips(samples, out, pinned=True):
                job.wait()

        frames[:] = np.nan
        ours_ms = wall_ms(ours)
        engine.close()
        exact = reference.features(samples[CLIPS - 1], 80, "whisper")
        error = float(np.abs(frames[CLIPS - 1].astype(np.float64) - exact).max())
        if not error < (2e-3 if half else 1e-4):
            raise AssertionError(f"the last clip is wrong by {error}")
        found[frame_type] = {
            "bare copies ms": limit_ms,
            "PyTorch ms": torch_ms,
            "ours ms": ours_ms,
            "ours, million audio-s/s": million_s(ours_ms),
            "ratio to PyTorch": round(torch_ms / ours_ms, 2),
            "share of the limit": round(limit_ms / ours_ms, 3),
        }
    results["end to end, 512 x 30 s"] = found


def latency(results: Results) -> None:
    """One chunk at a time, in and out: 1 s, 10 s and 30 s."""
    torch = Torch()
    found: Results = {}
    engine = open_engine()
    place = engine.place()
    for seconds in (1, 10, 30):
        count = 100 * seconds
        length = 400 + 160 * (count - 1)
        tensor_in, pinned_in = pinned(torch.torch, (1, length), "int16")
        pinned_in[:] = noise((1, length), "int16")
        tensor_out, _ = pinned(torch.torch, (1, 80, length // 160), "float32")
        samples, frames = pinned_in[0].copy(), np.empty((count, 80), np.float32)

        def theirs(source: Any = tensor_in, out: Any = tensor_out) -> None:
            features = torch.features(source.cuda(non_blocking=True).float() * spec.INT16_SCALE)
            out.copy_(features[..., : out.shape[-1]], non_blocking=True)
            torch.torch.cuda.synchronize()

        def ours(samples: Any = samples, frames: Any = frames) -> None:
            place.compute(samples, frames)

        _, pinned_out = pinned(torch.torch, (count, 80), "float32")

        def direct(source: Any = pinned_in[0], out: Any = pinned_out) -> None:
            place.compute(source, out, pinned=True)

        for name, work in (("PyTorch", theirs), ("ours", ours), ("ours, page-locked", direct)):
            times: list[float] = []
            for _ in range(3100):
                start = time.perf_counter()
                work()
                times.append((time.perf_counter() - start) * 1000)
            found[f"{name}, {seconds} s"] = percentiles(times[100:])
    engine.close()
    results["one chunk in and out, ms"] = found
