"""What librosa and transformers make of the sounds, as one .npz file.

    python -m tests.backends.mel.libraries features.npz

Run as a process of its own, because importing them takes seconds, and warns.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.mel.spec import FFT_SAMPLES, HOP_SAMPLES, MEL_BINS, POWER_MIN, SAMPLE_RATE_HZ
from tests.backends.mel.signals import SOUNDS, Sound


def whisper_features(sound: Sound, bin_count: int) -> npt.NDArray[Any]:
    """Of transformers' WhisperFeatureExtractor, float32 [3000, bins]."""
    transformers: Any = importlib.import_module("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=bin_count)
    found: npt.NDArray[Any] = extractor(sound, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_features"][0]
    return found.T


def librosa_features(sound: Sound, bin_count: int) -> npt.NDArray[Any]:
    """The logarithm of librosa's mel spectrogram, float64 [n, bins]."""
    librosa: Any = importlib.import_module("librosa")
    power: npt.NDArray[np.float64] = librosa.feature.melspectrogram(
        y=sound.astype(np.float64),
        sr=SAMPLE_RATE_HZ,
        n_fft=FFT_SAMPLES,
        hop_length=HOP_SAMPLES,
        n_mels=bin_count,
        fmax=8000,
        pad_mode="reflect",
    )
    return np.log10(np.maximum(power, POWER_MIN)).T


def main(path: str) -> None:
    """Features by the names of library, sound and number of bins."""
    found: dict[str, Any] = {}
    for name, make in SOUNDS.items():
        sound = make()
        for bin_count in MEL_BINS:
            found[f"transformers {name} {bin_count}"] = whisper_features(sound, bin_count)
            found[f"librosa {name} {bin_count}"] = librosa_features(sound, bin_count)
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
