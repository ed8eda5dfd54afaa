"""PyTorch, for comparison."""

from __future__ import annotations

import importlib
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel import spec

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


class Torch:
    """Whisper's features as its own audio.py computes them on a GPU, for a batch of clips."""

    def __init__(self, bins: int = 80) -> None:
        self.torch: Any = importlib.import_module("torch")
        torch = self.torch
        self.window = torch.hann_window(400, device="cuda")
        self.filters = torch.from_numpy(spec.mel_filters(bins).astype(np.float32)).cuda()

    def raw(self, samples: Any) -> Any:
        """The logarithm of mel power, [.., bins, frames]."""
        spectrum = self.torch.stft(samples, 400, 160, window=self.window, return_complex=True)
        power = spectrum[..., :-1].abs() ** 2
        return self.torch.clamp(self.filters @ power, min=1e-10).log10()

    def features(self, samples: Any) -> Any:
        """Whisper's features, [.., bins, frames]."""
        frames = self.raw(samples)
        frames = self.torch.maximum(frames, frames.amax(dim=(-2, -1), keepdim=True) - 8.0)
        return (frames + 4.0) / 4.0

    def milliseconds(self, work: Callable[[], Any], repeats: int = 10) -> float:
        """Median time of the device."""
        torch = self.torch
        times: list[float] = []
        for _ in range(repeats + 3):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times[3:])


def pinned(torch: Any, shape: tuple[int, ...], name: str) -> tuple[Any, npt.NDArray[Any]]:
    """A page-locked tensor, and the same memory as an array."""
    tensor = torch.empty(shape, dtype=getattr(torch, name), pin_memory=True)
    return tensor, tensor.numpy()
