"""Sounds to compute features of: float32 at 16 kHz, each made anew from its own seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from backends.mel.spec import SAMPLE_RATE_HZ

Sound = npt.NDArray[np.float32]

SECONDS = 2.0
SAMPLES = int(SECONDS * SAMPLE_RATE_HZ)
TIME_S = np.arange(SAMPLES) / SAMPLE_RATE_HZ


def _scaled(values: npt.NDArray[np.float64]) -> Sound:
    return np.asarray(values * (0.9 / np.abs(values).max()), np.float32)


def speech() -> Sound:
    """Syllables: a buzz of changing pitch through two changing formants, hisses between them, and pauses."""
    random = np.random.default_rng(1)
    pitch_hz = 120 + 40 * np.sin(2 * np.pi * 1.3 * TIME_S)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    formants_hz = 600 + 300 * np.sin(2 * np.pi * 2.1 * TIME_S), 1700 + 600 * np.sin(2 * np.pi * 1.7 * TIME_S)
    buzz = np.zeros(SAMPLES)
    for harmonic in range(1, 40):
        closeness = [np.exp(-(((harmonic * pitch_hz - formant_hz) / 250) ** 2)) for formant_hz in formants_hz]
        buzz += (0.02 / harmonic + closeness[0] + 0.5 * closeness[1]) * np.sin(harmonic * phase)
    syllable = np.clip(np.sin(2 * np.pi * 2 * TIME_S), 0, None) ** 0.5
    hiss = np.diff(random.standard_normal(SAMPLES + 1)) * np.clip(np.sin(2 * np.pi * 2 * TIME_S + 2.6), 0, None) ** 4
    return _scaled(buzz * syllable + hiss)


def music() -> Sound:
    """Chords of decaying strings, with their harmonics, over a beat."""
    sound = np.zeros(SAMPLES)
    for beat in range(8):
        since_s = np.clip(TIME_S - beat * 0.25, 0, None)
        struck = np.sign(since_s)
        for note in (0, 4, 7, 12):
            frequency_hz = 220 * 2 ** ((note + 5 * (beat % 3)) / 12)
            for harmonic in range(1, 8):
                sound += (
                    struck * np.exp(-4 * harmonic * since_s) * np.sin(2 * np.pi * harmonic * frequency_hz * since_s)
                )
        sound += struck * 4 * np.exp(-60 * since_s) * np.sin(2 * np.pi * 60 * since_s)
    return _scaled(sound)


def noise() -> Sound:
    return _scaled(np.random.default_rng(2).standard_normal(SAMPLES))


def silence() -> Sound:
    return np.zeros(SAMPLES, np.float32)


def tones() -> Sound:
    """On a bin, between two, and loud beside quiet."""
    sound = np.zeros(SAMPLES)
    for frequency_hz, level in ((1000, 1.0), (3333.3, 0.3), (60, 1e-3)):
        sound += level * np.sin(2 * np.pi * frequency_hz * TIME_S)
    return _scaled(sound)


def sweep() -> Sound:
    return _scaled(np.sin(2 * np.pi * (20 * TIME_S + (7900 - 20) / (2 * SECONDS) * TIME_S**2)))


def impulse() -> Sound:
    sound = silence()
    sound[SAMPLES // 3] = 1.0
    return sound


def clipped() -> Sound:
    """Far too loud, and cut at full scale."""
    sound: Sound = np.clip(speech() * np.float32(20), np.float32(-1), np.float32(1))
    return sound


def quiet() -> Sound:
    """One step of 16 bits up and down."""
    return np.asarray(np.random.default_rng(3).integers(-1, 2, SAMPLES) / 32768, np.float32)


def offset() -> Sound:
    """A constant, with little on it."""
    return np.asarray(0.5 + 0.01 * noise(), np.float32)


def one_sample() -> Sound:
    return np.array([0.5], np.float32)


def short() -> Sound:
    """Too short to be mirrored once."""
    return noise()[:150]


SOUNDS: dict[str, Callable[[], Sound]] = {
    make.__name__: make
    for make in (*(speech, music, noise, silence, tones, sweep, impulse, clipped, quiet, offset, one_sample, short),)
}
