"""Text of audio: windows of 30 s, as `MelStream` makes them, through a Whisper model that CTranslate2 runs. Any thread.

Each window stands by itself: it is heard once, without sampling, and what was said before is not shown to the model.
How windows are prompted, and when one is taken for silence, is as in `whisper/decoding.py` and `whisper/transcribe.py`
of openai/whisper. Nothing is ever downloaded: the model is a directory.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from backends.mel.engine import EngineError
from backends.mel.spec import MEL_BINS, WINDOW_FRAMES, WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.mel.engine import Frames

EXTRA = "transcribe"
FILES = ("model.bin", "config.json")
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
START, TASK, FIRST_TASK = "<|startoftranscript|>", "<|transcribe|>", "<|translate|>"
# A window is silence where the model believes that nobody speaks, and what it heard all the same is unlikely.
SILENCE_PROBABILITY_MIN = 0.6
SILENCE_LOG_PROBABILITY_MAX = -1.0
WAIT_S = 0.05  # between looks at whether the stream is over, while others have the model

_SPECIAL = re.compile(r"<\|(.*)\|>")
_TIME = re.compile(r"\d+\.\d\d")

logger = logging.getLogger(__name__)


class ModelError(ValueError):
    """A model cannot be used; the message says why, and what would be right."""


class Segment(NamedTuple):
    """A piece of text, and when it was said, in seconds from the audio's beginning."""

    text: str
    start_s: float
    end_s: float


def check_model(directory: str) -> None:
    """Whether a directory looks like a model, and what runs it is installed. Raises ModelError."""
    missing = [name for name in FILES if not (Path(directory) / name).is_file()]
    if not any((Path(directory) / name).is_file() for name in VOCABULARIES):
        missing.append(VOCABULARIES[0])
    if missing:
        raise ModelError(
            f"{directory} has no {', '.join(missing)}: the directory of a Whisper model is expected, as "
            "ct2-transformers-converter writes it"
        )
    _library()


def _library() -> Any:  # noqa: ANN401  (it has no types)
    try:
        return importlib.import_module("ctranslate2")
    except (ImportError, OSError) as error:
        raise ModelError(f"the extra `{EXTRA}` is needed (pip install 'streaming-daemon[{EXTRA}]'): {error}") from error


class Transcriber:
    """A model, for any number of streams; so many windows at once, on so many threads each, and no more."""

    def __init__(self, directory: str, device: str = "cpu", *, uses_max: int = 1, threads: int = 2) -> None:
        """Load it. Raises ModelError."""
        check_model(directory)
        self._library = _library()
        try:
            self._model: Any = self._library.models.Whisper(
                directory, device=device, inter_threads=uses_max, intra_threads=threads
            )
            self.languages = _languages(Path(directory))
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(f"{directory} cannot be used: {error}") from error
        self.bins: int = self._model.n_mels
        if self.bins not in MEL_BINS:
            raise ModelError(f"{directory} takes features of {self.bins} bins; there are 80 and 128")
        self.is_multilingual: bool = self._model.is_multilingual
        self._uses = threading.BoundedSemaphore(uses_max)

    def knows(self, language: str) -> bool:
        """Whether the model knows a language; the empty one is to be heard."""
        return not language or language in (self.languages if self.is_multilingual else ("en",))

    def transcript(self, language: str, beam_size: int, is_over: Callable[[], bool]) -> Transcript:
        """For one stream; `is_over` is asked while others have the model."""
        return Transcript(self, language, beam_size, is_over)

    def hear(self, window: Frames, transcript: Transcript) -> list[str] | None:
        """The tokens of a window, times included; None when the stream is over. Raises EngineError."""
        assert window.shape == (WINDOW_FRAMES, self.bins), f"a window of {window.shape}"
        while not self._uses.acquire(timeout=WAIT_S):
            if transcript.is_over():
                return None
        try:
            features = self._library.StorageView.from_array(np.ascontiguousarray(window.T)[None])
            if self.is_multilingual and not transcript.language:
                token: str = self._model.detect_language(features)[0][0][0]
                transcript.language = token.removeprefix("<|").removesuffix("|>")
            return self._generate(features, transcript)
        except (RuntimeError, ValueError) as error:
            logger.error("the Whisper model failed: %s", error)  # noqa: TRY400  (its traceback says no more)
            raise EngineError("the Whisper model failed") from error
        finally:
            self._uses.release()

    def _generate(self, features: Any, transcript: Transcript) -> list[str]:  # noqa: ANN401
        task = [f"<|{transcript.language}|>", TASK] if self.is_multilingual else []
        (result,) = self._model.generate(
            features,
            [[START, *task]],
            beam_size=transcript.beam_size,
            return_scores=True,
            return_no_speech_prob=True,
        )
        tokens: list[str] = result.sequences[0]
        # A score is the mean over the tokens; the end's own counts, too.
        log_probability = result.scores[0] * len(tokens) / (len(tokens) + 1)
        is_silence = result.no_speech_prob > SILENCE_PROBABILITY_MIN and log_probability < SILENCE_LOG_PROBABILITY_MAX
        return [] if is_silence else tokens

    def close(self) -> None:
        """Let go of the model. No window is heard any more."""
        self._model.unload_model()


class Transcript:
    """The text of one stream, as its windows close. One thread at a time uses it."""

    def __init__(self, model: Transcriber, language: str, beam_size: int, is_over: Callable[[], bool]) -> None:
        """Made by `Transcriber.transcript`. `language` is "" until it is known."""
        self.language = language
        self.beam_size = beam_size
        self.is_over = is_over
        self._model = model
        self._window_count = 0

    def windows(self, frames: Frames, audio_s: float) -> Iterator[Segment]:
        """Segments of whole windows, float32 [3000 * n, bins]; `audio_s` is how much audio there was until now.

        Raises EngineError.
        """
        for first in range(0, len(frames), WINDOW_FRAMES):
            start_s = float(self._window_count * WINDOW_SECONDS)
            tokens = self._model.hear(frames[first : first + WINDOW_FRAMES], self)
            if tokens is None:
                return
            self._window_count += 1
            yield from segments_of(tokens, start_s, min(start_s + WINDOW_SECONDS, audio_s))


def segments_of(tokens: list[str], start_s: float, end_s: float) -> Iterator[Segment]:
    """Take a window's tokens apart at their times; text without one ends with the window's audio, at `end_s`."""
    since_s, words = start_s, list[str]()
    for token in tokens:
        special = _SPECIAL.fullmatch(token)
        if special is None:
            words.append(token)
        elif _TIME.fullmatch(special[1]):
            time_s = min(start_s + float(special[1]), end_s)
            if words:
                yield Segment(text_of(words), since_s, time_s)
                words.clear()
            since_s = time_s
    if words:
        yield Segment(text_of(words), since_s, end_s)


def _byte_letters() -> dict[str, int]:
    """The alphabet of byte-level tokenizers: printable bytes are themselves, the others letters from U+0100 on.

    Source: `bytes_to_unicode` in openai/gpt-2, `src/encoder.py`.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in letters)
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_letters()


def text_of(tokens: list[str]) -> str:
    """What byte-level tokens say. A character that was cut is U+FFFD."""
    return bytes(_BYTES[letter] for token in tokens for letter in token if letter in _BYTES).decode(errors="replace")


def _languages(directory: Path) -> tuple[str, ...]:
    """The languages of a vocabulary: the tokens between the start and the tasks."""
    path = next(directory / name for name in VOCABULARIES if (directory / name).is_file())
    text = path.read_text(encoding="utf-8")
    tokens: list[str] = json.loads(text) if path.suffix == ".json" else text.splitlines()
    found = tokens[tokens.index(START) + 1 : tokens.index(FIRST_TASK)]
    return tuple(token.removeprefix("<|").removesuffix("|>") for token in found)
