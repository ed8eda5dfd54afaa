"""The specification of mel features: a whole clip at once, in NumPy and float64, as plainly as it can be said.

Everything else under `backends.mel` is held to this by the tests. Any thread; slow.

Sources: `log_mel_spectrogram` of https://github.com/openai/whisper (audio.py) and `WhisperFeatureExtractor` of the
transformers library, for the steps and their order; `librosa.feature.melspectrogram` (centred, reflecting) gives the
same power.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel.engine import SAMPLE_MAX
from backends.mel.spec import (
    DIVISOR,
    FFT_SAMPLES,
    HOP_SAMPLES,
    INT16_SCALE,
    OFFSET,
    PAD_SAMPLES,
    POWER_MIN,
    RANGE_DECADES,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    Normalisation,
    hann_window,
    mel_filters,
)

if TYPE_CHECKING:
    import numpy.typing as npt


def amplitudes(samples: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Samples, int16 or float32 [n], as float64 with full scale at 1.

    A float sample that is no finite number is 0, and one beyond SAMPLE_MAX is SAMPLE_MAX: neither may spoil its
    neighbours, as one NaN would spoil three frames. Clipped audio is left as it is.
    """
    if samples.dtype == np.int16:
        return samples.astype(np.float64) * INT16_SCALE
    floats = samples.astype(np.float64)
    return np.clip(np.where(np.isfinite(floats), floats, 0.0), -SAMPLE_MAX, SAMPLE_MAX)


def reflected(amplitudes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A clip with 200 samples before it and behind it, its mirror images: frame i is centred on sample 160 i.

    The first and last sample are not repeated. A clip shorter than that is mirrored again and again, and one of a
    single sample is that sample throughout: `numpy.pad` with mode "reflect".
    """
    return np.pad(amplitudes, PAD_SAMPLES, mode="reflect")


def raw_frames(padded: npt.NDArray[np.float64], bin_count: int) -> npt.NDArray[np.float64]:
    """Raw log-mel frames, float64 [n, bin_count], of 400 + 160 (n - 1) samples or up to 159 more.

    Frame i is log10(max(filters @ |FFT(window * samples)| ** 2, 1e-10)) of samples 160 i to 160 i + 399.
    """
    pieces = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[::HOP_SAMPLES]
    power = np.abs(np.fft.rfft(pieces * hann_window())) ** 2
    return np.log10(np.maximum(power @ mel_filters(bin_count).T, POWER_MIN))


def normalised(frames: npt.NDArray[np.float64], maxima: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Whisper's formula: 8 decades below the maximum are kept, and 4 decades become 1. `maxima` goes with `frames`."""
    kept: npt.NDArray[np.float64] = np.maximum(frames, maxima - RANGE_DECADES)
    return (kept + OFFSET) / DIVISOR


def features(samples: npt.NDArray[Any], bin_count: int, normalisation: Normalisation) -> npt.NDArray[np.float64]:
    """Features of a clip, float64 [frame, bin]; `samples` are int16 or float32 [n], mono, 16 kHz.

    none: 1 + n // 160 raw frames (no frame of no sample). running: the same, normalised with the maximum of all frames
    so far, their own included. whisper: 3,000 frames for each 30 s that have begun, and at least 3,000; each 30 s are a
    clip of their own, filled up with zeros, whose last of 3,001 frames is dropped, normalised with the clip's maximum.
    """
    clip = amplitudes(samples)
    if normalisation == "whisper":
        count = max(1, -(-len(clip) // WINDOW_SAMPLES))
        windows = np.zeros(count * WINDOW_SAMPLES)
        windows[: len(clip)] = clip
        return np.concatenate([_window_features(window, bin_count) for window in windows.reshape(count, -1)])
    if len(clip) == 0:
        return np.zeros((0, bin_count))
    frames = raw_frames(reflected(clip), bin_count)
    if normalisation == "running":
        return normalised(frames, np.maximum.accumulate(frames.max(axis=1))[:, None])
    return frames


def _window_features(window: npt.NDArray[np.float64], bin_count: int) -> npt.NDArray[np.float64]:
    frames = raw_frames(reflected(window), bin_count)[:WINDOW_FRAMES]
    return normalised(frames, np.asarray(frames.max()))
