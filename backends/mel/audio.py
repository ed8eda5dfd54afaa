"""Audio as it comes, file or upload, to what a stream of features takes: mono float32 at 16 kHz, in pieces.

Nothing is held but one piece and what the resampler keeps, however long the audio. Worker threads; blocks.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from backends.interface import BackendError, BodyTruncated, OptionError
from backends.mel.engine import SAMPLE_MAX
from backends.mel.spec import SAMPLE_RATE_HZ
from backends.mel.wav import HEAD_BYTES_MAX, RawSamples, SampleLayout, WavHead, is_wav
from config.mel import CHANNELS_MAX, SAMPLE_RATE_MAX_HZ, SAMPLE_RATE_MIN_HZ

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from backends.mel.asked import MelOptions

EXTRA = "mel"
FILE_FORMATS = {"WAV": "WAV", "WAVEX": "WAV", "RF64": "WAV", "FLAC": "FLAC", "OGG": "Ogg"}
KNOWN_FILES = "WAV, FLAC and Ogg"
PIECE_BYTES_MAX = 65_536
PIECE_SAMPLES_MAX = 65_536  # of all channels
_FRAMES_KNOWN_MAX = 1 << 60  # libsndfile says more where it does not know
# How a compressed upload begins, which must not be taken for samples.
_FOREIGN = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"\x1aE\xdf\xa3", b"FORM", b".snd")


class Libraries(NamedTuple):
    """What the extra installs. Neither has types."""

    soundfile: Any
    soxr: Any


def libraries() -> Libraries:
    """Import them. OptionError where they are missing, or not usable on this machine."""
    try:
        return Libraries(importlib.import_module("soundfile"), importlib.import_module("soxr"))
    except (ImportError, OSError) as error:
        raise OptionError(
            f"backend.mel needs the extra `{EXTRA}` (pip install 'streaming-daemon[{EXTRA}]'): {error}"
        ) from error


@dataclass(frozen=True)
class AudioLimits:
    """How much audio there may be; 0 is no limit."""

    bytes_max: int
    seconds_max: int

    def check_bytes(self, count: int) -> None:
        """BackendError 413."""
        if 0 < self.bytes_max < count:
            raise BackendError(413, f"the audio is larger than {self.bytes_max} bytes")

    def check_seconds(self, seconds: float) -> None:
        """BackendError 413."""
        if 0 < self.seconds_max < seconds:
            raise BackendError(413, f"the audio is longer than {self.seconds_max} s")


class Mixer:
    """Channels to one, and any rate to 16 kHz."""

    def __init__(self, rate_hz: int, soxr: Any) -> None:  # noqa: ANN401  (it has no types)
        """For one stream."""
        self._resampler: Any = None
        if rate_hz != SAMPLE_RATE_HZ:
            self._resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")

    def take(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Mono of frames [n, channels]. What is no finite number is 0, or it would spoil its neighbours, too."""
        if not np.isfinite(frames).all():
            frames = np.where(np.isfinite(frames), frames, np.float32(0))
        frames = np.clip(frames, -SAMPLE_MAX, SAMPLE_MAX)
        mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
        return mono if self._resampler is None else self._resampled(mono, last=False)

    def finish(self) -> npt.NDArray[np.float32]:
        """What the resampler still holds."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._resampler is None else self._resampled(nothing, last=True)

    def _resampled(self, mono: npt.NDArray[np.float32], *, last: bool) -> npt.NDArray[np.float32]:
        resampled: npt.NDArray[np.float32] = self._resampler.resample_chunk(np.ascontiguousarray(mono), last=last)
        return resampled


# ---- files


def of_file(descriptor: int, limits: AudioLimits, used: Libraries) -> Iterator[npt.NDArray[np.float32]]:
    """Samples of an open file, which is closed at the end. BackendError: 400, 413, 415."""
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise BackendError(400, "field `audio_path`: the file is empty")
        limits.check_bytes(size)
        _check_whole(descriptor, size)
        with _opened(descriptor, used.soundfile) as sound:
            yield from _blocks(sound, limits, used)
    finally:
        os.close(descriptor)


def _opened(descriptor: int, soundfile: Any) -> Any:  # noqa: ANN401  (it has no types)
    try:
        sound = soundfile.SoundFile(descriptor, closefd=False)
    except soundfile.LibsndfileError:
        raise BackendError(415, f"field `audio_path`: the file is no audio of a known form: {KNOWN_FILES}") from None
    fault = None
    if sound.format not in FILE_FORMATS:
        fault = f"the form of the file is not known; known are {KNOWN_FILES}"
    elif not SAMPLE_RATE_MIN_HZ <= sound.samplerate <= SAMPLE_RATE_MAX_HZ:
        fault = f"{sound.samplerate} Hz; {SAMPLE_RATE_MIN_HZ} to {SAMPLE_RATE_MAX_HZ} are expected"
    elif not 1 <= sound.channels <= CHANNELS_MAX:
        fault = f"{sound.channels} channels; 1 to {CHANNELS_MAX} are expected"
    if fault is not None:
        sound.close()
        raise BackendError(415, f"field `audio_path`: {fault}")
    return sound


def _blocks(sound: Any, limits: AudioLimits, used: Libraries) -> Iterator[npt.NDArray[np.float32]]:  # noqa: ANN401
    if sound.frames < _FRAMES_KNOWN_MAX:
        limits.check_seconds(sound.frames / sound.samplerate)
    mixer = Mixer(sound.samplerate, used.soxr)
    buffer = np.empty((max(1, min(sound.samplerate, PIECE_SAMPLES_MAX // sound.channels)), sound.channels), np.float32)
    done = 0
    while True:
        try:
            block = cast("npt.NDArray[np.float32]", sound.read(out=buffer))
        except used.soundfile.LibsndfileError:
            raise BackendError(400, "field `audio_path`: the file is damaged") from None
        if len(block) == 0:
            break
        done += len(block)
        limits.check_seconds(done / sound.samplerate)
        yield mixer.take(block)
    yield mixer.finish()


def _check_whole(descriptor: int, size: int) -> None:
    """A WAV file that is shorter than its head says is one that was cut: libsndfile would not mention it."""
    head, offset = WavHead(), 0
    beginning = os.pread(descriptor, PIECE_BYTES_MAX, 0)
    if not is_wav(beginning):
        return
    try:
        while (rest := head.take(beginning)) is None:
            offset += len(beginning)
            beginning = os.pread(descriptor, PIECE_BYTES_MAX, offset)
            if not beginning or offset > HEAD_BYTES_MAX:
                return
    except BackendError:
        return  # libsndfile knows more forms of WAV
    begin = offset + len(beginning) - len(rest)
    if head.data_bytes is not None and begin + head.data_bytes > size:
        raise BackendError(400, "field `audio_path`: the file ends before its audio does")


# ---- uploads


def of_upload(
    body: Iterator[bytes], wanted: MelOptions, limits: AudioLimits, used: Libraries
) -> Iterator[npt.NDArray[np.float32]]:
    """Samples of a body that is still arriving. BackendError: 400, 413, 415; BodyTruncated."""
    counted = _counted(body, limits)
    beginning = b""
    for piece in counted:
        beginning += piece
        if len(beginning) >= 12:
            break
    if not beginning:
        raise BackendError(400, "there is no audio: neither a field `audio_path` nor a body")
    if wanted.sample_format == "wav" or (wanted.sample_format == "auto" and is_wav(beginning)):
        yield from _wav_upload(beginning, counted, limits, used)
        return
    if wanted.sample_format == "auto" and (beginning.startswith(_FOREIGN) or beginning[4:8] == b"ftyp"):
        raise BackendError(415, "the upload is of a form that is not known; known are WAV, s16le and f32le")
    is_float = wanted.sample_format == "f32le"
    layout = SampleLayout(is_float, 4 if is_float else 2, wanted.channels, wanted.sample_rate)
    yield from _raw_upload(beginning, counted, RawSamples(layout), limits, used)


def _counted(body: Iterator[bytes], limits: AudioLimits) -> Iterator[bytes]:
    """The body in pieces of a bounded size, held to its limit."""
    total = 0
    for piece in body:
        total += len(piece)
        limits.check_bytes(total)
        for start in range(0, len(piece), PIECE_BYTES_MAX):
            yield piece[start : start + PIECE_BYTES_MAX]


def _wav_upload(
    piece: bytes, rest: Iterator[bytes], limits: AudioLimits, used: Libraries
) -> Iterator[npt.NDArray[np.float32]]:
    head = WavHead()
    first = head.take(piece)
    while first is None:
        piece = next(rest, b"")
        if not piece:
            head.finish()
        first = head.take(piece)
    assert head.layout is not None, "the head has ended"
    bounded = rest if head.data_bytes is None else _first_bytes(first, rest, head.data_bytes)
    yield from _raw_upload(
        b"" if head.data_bytes is not None else first, bounded, RawSamples(head.layout), limits, used
    )


def _first_bytes(piece: bytes, rest: Iterator[bytes], count: int) -> Iterator[bytes]:
    """So many bytes of a piece and what follows; the rest is read and dropped, as a WAV may have notes behind."""
    while True:
        yield piece[:count]
        count -= min(count, len(piece))
        following = next(rest, None)
        if following is None:
            break
        piece = following
    if count > 0:
        raise BodyTruncated(f"the upload ends {count} bytes before its WAV head says")


def _raw_upload(
    piece: bytes, rest: Iterator[bytes], raw: RawSamples, limits: AudioLimits, used: Libraries
) -> Iterator[npt.NDArray[np.float32]]:
    rate_hz = raw.layout.rate_hz
    mixer, done = Mixer(rate_hz, used.soxr), 0
    while True:
        frames = raw.take(piece)
        done += len(frames)
        limits.check_seconds(done / rate_hz)
        if len(frames) > 0:
            yield mixer.take(frames)
        following = next(rest, None)
        if following is None:
            break
        piece = following
    raw.finish()
    yield mixer.finish()
