"""Makes audio to test with, as WAV files of 16 bits: the same seed makes the same file.

    python -m scripts.make_audio sweep --output sweep.wav
    python -m scripts.make_audio all --output audio --seconds 30 --seed 7

Speech is spoken by espeak-ng (Debian's package of that name), in a voice whose pitch and speed are the seed's.
"""

from __future__ import annotations

import argparse
import importlib
import io
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Sound = npt.NDArray[np.float64]

SECONDS_MAX = 86_400.0
RATE_HZ_DEFAULT = 16_000
WAV_BYTES_MAX = 0xFFFF_FFFF - 36  # what its head can count
WAV_HEAD_BYTES = 44
SPEECH_TIMEOUT_S = 60.0
TEXT_DEFAULT = (
    "The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore, and he asks: how much wood "
    "would a woodchuck chuck? Features of speech leave while it is still being spoken."
)


class AudioError(Exception):
    """The audio cannot be made; the message says why, and what would help."""


# ---- sounds, each of so many samples at a rate, of any level


def _times_s(count: int, rate_hz: int) -> Sound:
    return np.arange(count) / rate_hz


def tones(count: int, rate_hz: int, random: np.random.Generator) -> Sound:
    """Five tones that last, from 60 Hz to nine tenths of the highest there can be, the quietest 40 dB below."""
    highest_hz = 0.45 * rate_hz
    frequencies_hz = 60 * (highest_hz / 60) ** random.random(5)
    levels = 10 ** -np.linspace(0, 2, 5)
    phases = 2 * np.pi * random.random(5)
    sound = np.zeros(count)
    for frequency_hz, level, phase in zip(frequencies_hz, levels, phases, strict=True):
        sound += level * np.sin(2 * np.pi * frequency_hz * _times_s(count, rate_hz) + phase)
    return sound


def sweep(count: int, rate_hz: int, random: np.random.Generator) -> Sound:
    """One tone from 20 Hz to nearly the highest there can be, each octave in the same time; the phase is the seed's."""
    octaves_log = np.log(0.49 * rate_hz / 20)
    length_s = max(count, 1) / rate_hz
    turns = 20 * length_s / octaves_log * np.expm1(_times_s(count, rate_hz) / length_s * octaves_log)
    swept: Sound = np.sin(2 * np.pi * (turns + random.random()))
    return swept


def white(count: int, _rate_hz: int, random: np.random.Generator) -> Sound:
    """Noise with the same power at all frequencies."""
    return random.standard_normal(count)


def pink(count: int, _rate_hz: int, random: np.random.Generator) -> Sound:
    """Noise with the same power in every octave: white noise whose spectrum is divided by the root of frequency."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[:1] = 0
    return np.fft.irfft(spectrum, count)


def silence(count: int, _rate_hz: int, _random: np.random.Generator) -> Sound:
    """Nothing."""
    return np.zeros(count)


def impulse(count: int, _rate_hz: int, random: np.random.Generator) -> Sound:
    """One sample of full scale, somewhere."""
    sound = np.zeros(count)
    sound[random.integers(count)] = 1
    return sound


def chords(count: int, rate_hz: int, random: np.random.Generator) -> Sound:
    """Music of a kind: every half second a chord of plucked strings, with their harmonics, and a drum."""
    sound = np.zeros(count)
    beat = rate_hz // 2
    length = min(2 * rate_hz, count)
    since_s = _times_s(length, rate_hz)
    for first in range(0, count, beat):
        struck = np.zeros(length)
        root_hz = 110 * 2 ** (random.integers(12) / 12)
        for note in ((0, 4, 7, 12), (0, 3, 7, 10))[random.integers(2)]:
            for harmonic in range(1, 8):
                hertz = root_hz * 2 ** (note / 12) * harmonic
                if hertz < rate_hz / 2:
                    struck += np.exp(-2 * harmonic * since_s) / harmonic * np.sin(2 * np.pi * hertz * since_s)
        struck += 2 * np.exp(-40 * since_s) * np.sin(2 * np.pi * 55 * since_s)
        struck += 0.3 * np.exp(-80 * since_s) * random.standard_normal(length)
        sound[first : first + length] += struck[: count - first]
    return sound


SOUNDS: dict[str, Callable[[int, int, np.random.Generator], Sound]] = {
    make.__name__: make for make in (tones, sweep, white, pink, silence, impulse, chords)
}


def speech(count: int, rate_hz: int, random: np.random.Generator, text: str) -> Sound:
    """The text, spoken again and again until the time is over. Raises AudioError."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise AudioError("espeak-ng is not installed: sudo apt-get install espeak-ng")
    voice = ["-p", str(random.integers(30, 70)), "-s", str(random.integers(140, 190))]
    try:
        spoken = subprocess.run(
            [program, *voice, "--stdin", "--stdout"],
            input=text.encode(), capture_output=True, check=True, timeout=SPEECH_TIMEOUT_S,
        ).stdout  # fmt: skip
        # Its head does not count the samples, because it was written to a pipe: they are what follows it.
        with wave.open(io.BytesIO(spoken)) as opened:
            spoken_hz = opened.getframerate()
    except (OSError, subprocess.SubprocessError, wave.Error, EOFError) as error:
        raise AudioError(f"espeak-ng failed: {error}") from error
    samples = spoken[WAV_HEAD_BYTES:]
    sound: Sound = np.frombuffer(samples, "<i2", len(samples) // 2) / 32_768
    if not sound.any():
        raise AudioError("espeak-ng said nothing of this text")
    return np.resize(_at_rate(sound, spoken_hz, rate_hz), count)


def _at_rate(sound: Sound, from_hz: int, to_hz: int) -> Sound:
    if from_hz == to_hz:
        return sound
    try:
        soxr: Any = importlib.import_module("soxr")
    except ImportError as error:
        message = f"speech comes at {from_hz} Hz, and what resamples is missing: pip install 'streaming-daemon[mel]'"
        raise AudioError(message) from error
    resampled: Sound = soxr.resample(sound, from_hz, to_hz)
    return resampled


# ---- files


def make(kind: str, options: argparse.Namespace) -> npt.NDArray[np.int16]:
    """Samples of one kind, int16 [n], mono; its loudest sample at the level asked for. Raises AudioError."""
    count = max(1, round(options.seconds * options.rate))
    random = np.random.default_rng(options.seed)
    if kind == "speech":
        sound = speech(count, options.rate, random, options.text)
    else:
        sound = SOUNDS[kind](count, options.rate, random)
    loudest = np.abs(sound).max()
    scaled = sound * (options.level / loudest) if loudest > 0 else sound
    return np.round(scaled * 32_767).astype(np.int16)


def write(file: Path, samples: npt.NDArray[np.int16], rate_hz: int) -> None:
    """One WAV file, mono, 16 bits. Raises OSError."""
    with file.open("wb") as opened, wave.open(opened, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate_hz)
        written.writeframes(samples.astype("<i2").tobytes())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.make_audio", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("kind", choices=[*SOUNDS, "speech", "all"], help="all: a file of each, in a folder")
    parser.add_argument("--output", type=Path, help="the file, or the folder for all (default: KIND.wav, or audio)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=RATE_HZ_DEFAULT, help="samples a second (default: %(default)s)")
    parser.add_argument("--level", type=float, default=0.5, help="the loudest sample, 0 to 1 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what chance does (default: %(default)s)")
    parser.add_argument("--text", default=TEXT_DEFAULT, help="what speech says")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= SECONDS_MAX:
        parser.error(f"--seconds: more than 0 and at most {SECONDS_MAX:.0f}")
    if not 1_000 <= options.rate <= 768_000:
        parser.error("--rate: 1000 to 768000")
    if not 0 <= options.level <= 1:
        parser.error("--level: 0 to 1")
    if options.seed < 0:
        parser.error("--seed: 0 or more")
    if 2 * options.seconds * options.rate > WAV_BYTES_MAX:
        parser.error("a WAV file holds 4 GB: fewer seconds, or a lower rate")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is asked for; 0, 1 if it could not be made, 2 for a wrong command line."""
    options = _parse(arguments)
    several = options.kind == "all"
    output: Path = options.output or Path("audio" if several else f"{options.kind}.wav")
    kinds = [*SOUNDS, "speech"] if several else [options.kind]
    try:
        (output if several else output.parent).mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            file = output / f"{kind}.wav" if several else output
            try:
                samples = make(kind, options)
            except AudioError as error:
                print(f"{kind}: {'left out: ' if several else ''}{error}", file=sys.stderr)
                if not several:
                    return 1
                continue
            write(file, samples, options.rate)
            print(f"{file}: {len(samples) / options.rate:.2f} s at {options.rate} Hz")
    except OSError as error:
        print(f"{error.filename or output}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
