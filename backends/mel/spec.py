"""The numbers of Whisper's log-mel features, and the tables made of them. Imports NumPy alone; any thread.

Sources: the constants are those of `whisper/audio.py` (https://github.com/openai/whisper) and of the transformers
library's WhisperFeatureExtractor; the mel scale is that of Malcolm Slaney, Auditory Toolbox, Technical Report 1998-010,
Interval Research, `mfcc.m`, as `librosa.filters.mel` states it (htk=False, norm="slaney").

Compiled code takes tables as arguments and these constants in when it is compiled: that is why this file names
config.compilation, by which a change of it is part of the key of the cache of compiled code.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

SAMPLE_RATE_HZ = 16_000
FFT_SAMPLES = 400  # one frame: 25 ms
HOP_SAMPLES = 160  # from one frame to the next: 10 ms
OVERLAP_SAMPLES = FFT_SAMPLES - HOP_SAMPLES  # what two frames share
PAD_SAMPLES = FFT_SAMPLES // 2  # before the first sample and behind the last, so that frame i is centred on i * hop
SPECTRUM_BINS = FFT_SAMPLES // 2 + 1
MEL_BINS = (80, 128)  # 128 since Whisper large-v3
FREQUENCY_MAX_HZ = 8_000.0
POWER_MIN = 1e-10  # the floor under the logarithm
INT16_SCALE = 1.0 / 32_768  # one step of a 16-bit sample; a power of two, so that the product is exact

WINDOW_SECONDS = 30  # what Whisper takes at once
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE_HZ
WINDOW_FRAMES = WINDOW_SAMPLES // HOP_SAMPLES  # the last of 3,001 is dropped

# Whisper's normalisation: (max(x, maximum - RANGE_DECADES) + OFFSET) / DIVISOR.
RANGE_DECADES = 8.0
OFFSET = 4.0
DIVISOR = 4.0

# none: the logarithm as it is. running: Whisper's formula with the maximum up to and including the frame.
# whisper: Whisper's formula with the maximum of the window of 30 s, each window a clip of its own.
Normalisation = Literal["none", "running", "whisper"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "running", "whisper")

# Slaney's scale: linear below 1 kHz with 3 mels for 200 Hz, above it 27 mels for a factor of 6.4.
_HZ_PER_MEL = 200.0 / 3
_LOG_FROM_HZ = 1000.0
_LOG_FROM_MEL = _LOG_FROM_HZ / _HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def hz_to_mel(frequency_hz: float) -> float:
    """Slaney's mel scale."""
    if frequency_hz < _LOG_FROM_HZ:
        return frequency_hz / _HZ_PER_MEL
    return _LOG_FROM_MEL + math.log(frequency_hz / _LOG_FROM_HZ) / _LOG_STEP


def mel_to_hz(mel: float) -> float:
    """The inverse of `hz_to_mel`."""
    if mel < _LOG_FROM_MEL:
        return mel * _HZ_PER_MEL
    return _LOG_FROM_HZ * math.exp((mel - _LOG_FROM_MEL) * _LOG_STEP)


@cache
def hann_window() -> npt.NDArray[np.float64]:
    """The periodic Hann window, float64 [400], read-only: 0.5 - 0.5 cos(2 pi n / 400).

    Source: A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing; periodic as `torch.hann_window` is.
    """
    phases = np.arange(FFT_SAMPLES, dtype=np.float64) * (2 * np.pi / FFT_SAMPLES)
    window = 0.5 - 0.5 * np.cos(phases)
    window.flags.writeable = False
    return window


@cache
def mel_filters(bin_count: int) -> npt.NDArray[np.float64]:
    """The mel filter bank, float64 [bin_count, 201], read-only: power spectrum to mel bins.

    Triangles over Slaney's scale from 0 to 8000 Hz, each scaled to the same area: 2 / (its width in Hz). The first is 0
    below 0 Hz, so bin 0 of the spectrum counts for nothing, and so does bin 200. Raises ValueError for a number of bins
    that no Whisper model has. Source: `librosa.filters.mel`.
    """
    if bin_count not in MEL_BINS:
        raise ValueError(f"{bin_count} mel bins: Whisper has {' or '.join(map(str, MEL_BINS))}")
    mels = np.linspace(hz_to_mel(0.0), hz_to_mel(FREQUENCY_MAX_HZ), bin_count + 2)
    edges_hz = np.array([mel_to_hz(float(mel)) for mel in mels])
    spectrum_hz = np.arange(SPECTRUM_BINS) * (SAMPLE_RATE_HZ / FFT_SAMPLES)
    low_hz, centre_hz, high_hz = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (spectrum_hz - low_hz) / (centre_hz - low_hz)
    falling = (high_hz - spectrum_hz) / (high_hz - centre_hz)
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high_hz - low_hz))
    filters.flags.writeable = False
    return filters


def frame_count(sample_count: int) -> int:
    """How many frames samples make that are padded already: whole ones, each 160 samples after the one before."""
    return 0 if sample_count < FFT_SAMPLES else 1 + (sample_count - FFT_SAMPLES) // HOP_SAMPLES
