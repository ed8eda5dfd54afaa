"""Frames of audio that is still arriving: chunks of any size in, frames out as soon as their samples are there.

A stream cuts its audio so that an engine sees nothing of it: it keeps what the next frame shares with the last, mirrors
the beginning and the end, and normalises. The frames are the same to the bit however the audio was cut, because an
engine's are, and all else here is done frame by frame. One thread at a time uses a stream.

Memory is that of two fixed buffers (`MelStream.buffer_bytes`), however long the audio: samples for one call of the
engine, and with Whisper's normalisation the frames of the window of 30 s that is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from backends.mel.engine import SAMPLE_MAX
from backends.mel.spec import (
    DIVISOR,
    FFT_SAMPLES,
    HOP_SAMPLES,
    NORMALISATIONS,
    OFFSET,
    PAD_SAMPLES,
    RANGE_DECADES,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    Normalisation,
    frame_count,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from backends.mel.engine import Frames, MelEngine, Samples

SampleType: TypeAlias = "type[np.int16 | np.float32]"

# A clip must hold the samples that its beginning mirrors before its first frame can be made.
_FIRST_SAMPLES = PAD_SAMPLES + 1
# The rest of a clip and its mirror image, at the end: fewer than 400 samples, and 200.
_BUFFER_SAMPLES_MIN = FFT_SAMPLES - 1 + PAD_SAMPLES


class _Clip:
    """Raw frames of one clip after the other. Its buffer holds what came and is still needed, the padding included."""

    def __init__(self, engine: MelEngine, sample_type: SampleType) -> None:
        frame_count_max = engine.frame_count_max
        assert frame_count_max >= 1, f"an engine that computes {frame_count_max} frames"
        buffer_samples = max(_BUFFER_SAMPLES_MIN, FFT_SAMPLES + HOP_SAMPLES * (frame_count_max - 1))
        self.engine = engine
        self.buffer: npt.NDArray[Any] = np.zeros(buffer_samples, sample_type)
        self.repaired_count = 0
        self.begin()

    def begin(self) -> None:
        """A new clip: room for the mirror image of its beginning, and nothing else."""
        self.sample_count = 0
        self.filled = PAD_SAMPLES

    def frames_due(self, sample_count: int) -> int:
        """How many frames the next `sample_count` samples complete."""
        return _complete(self.sample_count + sample_count) - _complete(self.sample_count)

    def push(self, samples: Samples, frames: Frames) -> int:
        """Take all samples, put the frames that they complete into `frames`, and return how many those are."""
        done = 0
        while len(samples) > 0:
            taken = samples[: len(self.buffer) - self.filled]
            samples = samples[len(taken) :]
            target = self.buffer[self.filled : self.filled + len(taken)]
            target[:] = taken
            self.repaired_count += _repair(target)
            begun = self.sample_count < _FIRST_SAMPLES
            self.sample_count += len(taken)
            self.filled += len(taken)
            if self.sample_count < _FIRST_SAMPLES:
                continue
            if begun:
                self.buffer[:PAD_SAMPLES] = self.buffer[2 * PAD_SAMPLES : PAD_SAMPLES : -1]
            done += self._compute(frames[done:])
        return done

    def finish(self, frames: Frames) -> int:
        """The clip ends: put its last frames, as many as there is room for, into `frames`."""
        if self.sample_count < _FIRST_SAMPLES:
            clip = self.buffer[PAD_SAMPLES : self.filled]
            self.buffer[: len(clip) + 2 * PAD_SAMPLES] = np.pad(clip, PAD_SAMPLES, mode="reflect")
        else:
            last = self.filled - 1
            mirrored = self.buffer[last - 1 : last - 1 - PAD_SAMPLES : -1]
            self.buffer[self.filled : self.filled + PAD_SAMPLES] = mirrored
        self.filled += PAD_SAMPLES
        return self._compute(frames)

    def _compute(self, frames: Frames) -> int:
        """Frames of what the buffer holds, as many as `frames` has room for; what is still used moves to its start."""
        count = min(frame_count(self.filled), len(frames))
        done = 0
        while done < count:
            part = frames[done : min(count, done + self.engine.frame_count_max)]
            first = done * HOP_SAMPLES
            self.engine.compute(self.buffer[first : first + FFT_SAMPLES + HOP_SAMPLES * (len(part) - 1)], part)
            done += len(part)
        used = count * HOP_SAMPLES
        self.buffer[: self.filled - used] = self.buffer[used : self.filled]
        self.filled -= used
        return count


class MelStream:
    """Frames, float32 [n, bins], of one stream of mono audio at 16 kHz.

    Normalisations, with the maximum taken over all bins of raw frames:

    - `none`: raw log10 of mel power, at least -10. A frame leaves as soon as its 400 samples are there.
    - `running`: (max(x, m - 8) + 4) / 4, where m is the maximum of all frames up to and including this one. Leaves as
      soon as with `none`. From the loudest frame on it is Whisper's; a frame before that knows nothing of what comes.
    - `whisper`: what WhisperFeatureExtractor makes of each 30 s as a clip of its own. 3,000 frames leave when a window
      of 30 s closes, since its maximum is not known earlier; at the end the open one is filled up with zeros.

    Samples that are no finite number become 0, those beyond SAMPLE_MAX become it, and `repaired_count` counts both;
    clipped audio is computed as it is.
    """

    def __init__(
        self, engine: MelEngine, normalisation: Normalisation = "none", sample_type: SampleType = np.int16
    ) -> None:
        """Chunks will have this type: int16, or float32 with full scale at 1. ValueError for what is not known."""
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {normalisation!r}: known are {', '.join(NORMALISATIONS)}")
        if sample_type not in (np.int16, np.float32):
            raise ValueError(f"unknown type of sample {sample_type!r}: known are int16 and float32")
        self.bin_count = engine.bin_count
        self.normalisation = normalisation
        self.sample_count = 0
        self.frame_count = 0
        self.finished = False
        self._clip = _Clip(engine, sample_type)
        self._maximum = np.float32(-np.inf)
        self._window = self._empty(WINDOW_FRAMES if normalisation == "whisper" else 0)
        self._window_filled = 0

    @property
    def repaired_count(self) -> int:
        """How many samples so far were no finite number or beyond SAMPLE_MAX."""
        return self._clip.repaired_count

    @property
    def buffer_bytes(self) -> int:
        """What the stream holds besides a few numbers; the same from beginning to end."""
        return self._clip.buffer.nbytes + self._window.nbytes

    def push(self, samples: Samples) -> Frames:
        """Take a chunk, [n], and return the frames that it completes, a new array; often none.

        The result is as large as the chunk makes it: whoever has hours of audio pushes them in pieces. ValueError for
        another type or shape; EngineError, after which the stream cannot go on.
        """
        assert not self.finished, "audio after its end"
        if samples.ndim != 1 or samples.dtype != self._clip.buffer.dtype:
            raise ValueError(f"a chunk of {samples.dtype} {samples.shape}, not of {self._clip.buffer.dtype} (n,)")
        self.sample_count += len(samples)
        frames = self._push_windows(samples) if self.normalisation == "whisper" else self._push(samples)
        self.frame_count += len(frames)
        return frames

    def finish(self) -> Frames:
        """The audio has ended: return the frames that are left, [n, bins]. Raises EngineError."""
        assert not self.finished, "a second end"
        self.finished = True
        if self.normalisation == "whisper":
            frames = self._finish_window()
        else:
            clip = self._clip
            frames = self._empty(_in_all(clip.sample_count) - _complete(clip.sample_count))
            if clip.sample_count > 0:
                count = clip.finish(frames)
                assert count == len(frames), f"{count} frames instead of {len(frames)}"
            self._normalise(frames)
        self.frame_count += len(frames)
        return frames

    def _push(self, samples: Samples) -> Frames:
        frames = self._empty(self._clip.frames_due(len(samples)))
        count = self._clip.push(samples, frames)
        assert count == len(frames), f"{count} frames instead of {len(frames)}"
        self._normalise(frames)
        return frames

    def _normalise(self, frames: Frames) -> None:
        """Apply the running maximum, in place."""
        if self.normalisation != "running" or len(frames) == 0:
            return
        maxima = np.maximum(np.maximum.accumulate(frames.max(axis=1)), self._maximum)
        self._maximum = maxima[-1]
        _apply(frames, maxima[:, None])

    def _push_windows(self, samples: Samples) -> Frames:
        windows: list[Frames] = []
        while len(samples) > 0:
            taken = samples[: WINDOW_SAMPLES - self._clip.sample_count]
            samples = samples[len(taken) :]
            self._window_filled += self._clip.push(taken, self._window[self._window_filled :])
            if self._clip.sample_count == WINDOW_SAMPLES:
                windows.append(self._close_window())
        if len(windows) == 1:
            return windows[0]
        return np.concatenate([self._empty(0), *windows])

    def _finish_window(self) -> Frames:
        """The window that is open, if any audio is in it, or if there was none at all: then it is one of silence."""
        if self._clip.sample_count == 0 and self.sample_count > 0:
            return self._empty(0)
        silence = np.zeros(min(len(self._clip.buffer), WINDOW_SAMPLES), self._clip.buffer.dtype)
        while self._clip.sample_count < WINDOW_SAMPLES:
            taken = silence[: WINDOW_SAMPLES - self._clip.sample_count]
            self._window_filled += self._clip.push(taken, self._window[self._window_filled :])
        return self._close_window()

    def _close_window(self) -> Frames:
        """The frames of 30 s, normalised; the last of 3,001 finds no room."""
        self._window_filled += self._clip.finish(self._window[self._window_filled :])
        assert self._window_filled == WINDOW_FRAMES, f"{self._window_filled} frames in a window"
        window, self._window = self._window, self._empty(WINDOW_FRAMES)
        self._window_filled = 0
        self._clip.begin()
        _apply(window, window.max())
        return window

    def _empty(self, count: int) -> Frames:
        return np.empty((count, self.bin_count), np.float32)


def _complete(sample_count: int) -> int:
    """How many frames of a clip can be made when so many of its samples are there, and more may come."""
    return 0 if sample_count < _FIRST_SAMPLES else frame_count(PAD_SAMPLES + sample_count)


def _in_all(sample_count: int) -> int:
    """How many frames a clip of so many samples has."""
    return 0 if sample_count == 0 else frame_count(2 * PAD_SAMPLES + sample_count)


def _apply(frames: Frames, maxima: Any) -> None:  # noqa: ANN401  (one float32, or one for each frame)
    """Whisper's formula, in place."""
    np.maximum(frames, maxima - np.float32(RANGE_DECADES), out=frames)
    np.add(frames, np.float32(OFFSET), out=frames)
    np.divide(frames, np.float32(DIVISOR), out=frames)


def _repair(samples: npt.NDArray[Any]) -> int:
    """Hold float samples to what an engine takes, in place; returns how many had to change."""
    if samples.dtype == np.int16 or len(samples) == 0:
        return 0
    if samples.min() >= -SAMPLE_MAX and samples.max() <= SAMPLE_MAX:  # neither is so where there is a NaN
        return 0
    wrong = ~(np.abs(samples) <= SAMPLE_MAX)
    samples[~np.isfinite(samples)] = 0
    np.clip(samples, -SAMPLE_MAX, SAMPLE_MAX, out=samples)
    return int(np.count_nonzero(wrong))
