"""The backend `mel`: features of a file that a handoff names, or of an upload that is still arriving.

What a request may say and what comes out stands in docs/backends.md, what is computed in docs/mel.md. `chunks` runs on
a worker's thread: it pulls audio, and everything between pulls the next piece only when the last one has left, so a
client that does not read stops its own upload, or the reading of its file.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from backends.interface import Backend, BackendError, BodyTruncated, Form, OptionError, Request
from backends.mel.asked import MelOptions, asked
from backends.mel.audio import AudioLimits, libraries, of_file, of_upload
from backends.mel.engine import EngineError
from backends.mel.engines import Engines
from backends.mel.formats import FORMS, WRITERS, TextWriter, Writer
from backends.mel.paths import open_beneath
from backends.mel.spec import MEL_BINS, SAMPLE_RATE_HZ
from backends.mel.stream import MelStream
from backends.mel.transcriber import ModelError, Transcriber, check_model
from config.mel import MelBackend

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    import numpy.typing as npt

    from backends.mel.engine import MelEngine

logger = logging.getLogger(__name__)


class Mel(Backend):
    """Options: those of [backend.mel], and `data_dir` of [server]."""

    end = b""  # a writer's own end goes before it

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Import what the extra installs, and make an engine. OptionError where either cannot be had."""
        super().__init__(options)
        self._libraries = libraries()
        self._transcriber = _transcriber_of(_section_of(options))
        self.reload(options)
        self._engines = Engines(self._section.device, self._section.bins)

    def reload(self, options: Mapping[str, Any]) -> None:
        """Defaults and limits, for streams that start from now. Raises OptionError, and then nothing has changed."""
        section = _section_of(options)
        language = section.transcribe_language
        if self._transcriber is not None and not self._transcriber.knows(language):
            raise OptionError(f"backend.mel.transcribe_language = {language!r}: the model does not know it")
        self.options = options
        self._section = section
        self._data_dir = str(options.get("data_dir", ""))
        self._limits = AudioLimits(self._section.audio_bytes_max, self._section.audio_seconds_max)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> list[str]:
        """Whether the extra is there, and the section right; no device is looked for."""
        libraries()
        section = _section_of(options)
        if section.transcribe_model:
            with _told():
                check_model(section.transcribe_model)
        return []

    def close(self) -> None:
        """Give the devices back."""
        self._engines.close()
        if self._transcriber is not None:
            self._transcriber.close()

    def form(self, request: Request) -> Form:
        """Events, lines or blocks, as the request asks; one that asks for what is not there is refused here."""
        length = request.headers.get("content-length", "")
        if length.isdecimal():
            self._limits.check_bytes(int(length[:20]))  # before any of it is sent
        return FORMS[asked(request, self._section, self._transcriber).format]

    def chunks(self, request: Request) -> Iterator[bytes]:
        """The features, as they become known."""
        section = self._section
        wanted = asked(request, section, self._transcriber)
        writer = WRITERS[wanted.format](wanted.bins, wanted.dtype, section.chunk_frames_max)
        try:
            with (
                self._engines.place(wanted.bins) as engine,
                contextlib.closing(self._audio(request, wanted)) as audio,
            ):
                if wanted.transcribe:
                    assert self._transcriber is not None, "it was asked for its bins"
                    yield from _text(audio, engine, wanted, self._transcriber, request)
                else:
                    yield from _features(audio, engine, wanted, writer, request)
        except (BackendError, BodyTruncated, EngineError) as error:
            status = (
                error.status if isinstance(error, BackendError) else 400 if isinstance(error, BodyTruncated) else 500
            )
            if writer.begun and (last := writer.error(status, str(error))):
                yield last
            if isinstance(error, EngineError):
                raise BackendError(status, str(error)) from error
            raise

    def _audio(self, request: Request, wanted: MelOptions) -> Generator[npt.NDArray[np.float32]]:
        if wanted.audio_path is None:
            yield from of_upload(request.body, wanted, self._limits, self._libraries)
        else:
            descriptor = open_beneath(self._data_dir, wanted.audio_path)
            yield from of_file(descriptor, self._limits, self._libraries)


def _section_of(options: Mapping[str, Any]) -> MelBackend:
    section = msgspec.convert({name: value for name, value in options.items() if name != "data_dir"}, MelBackend)
    if section.bins not in MEL_BINS:
        raise OptionError(f"backend.mel.bins = {section.bins} is refused: permitted is 80 or 128")
    if section.transcribe_beam_size > section.transcribe_beam_size_max:
        raise OptionError("backend.mel.transcribe_beam_size is more than backend.mel.transcribe_beam_size_max")
    return section


def _transcriber_of(section: MelBackend) -> Transcriber | None:
    if not section.transcribe_model:
        return None
    with _told():
        made = Transcriber(
            section.transcribe_model,
            section.transcribe_device,
            uses_max=section.transcribe_uses_max,
            threads=section.transcribe_threads,
        )
    logger.info("text is made by %s, of %d bins", section.transcribe_model, made.bins)
    return made


@contextlib.contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except ModelError as error:
        raise OptionError(f"backend.mel.transcribe_model: {error}") from error


def _features(
    audio: Iterator[npt.NDArray[np.float32]], engine: MelEngine, wanted: MelOptions, writer: Writer, request: Request
) -> Iterator[bytes]:
    stream = MelStream(engine, wanted.normalisation, np.float32)
    for samples in audio:
        yield from writer.pieces(stream.push(samples))
        # Where nothing is yielded for long, as in a window of 30 s, nobody else would notice.
        if request.cancelled():
            return
    _check_samples(stream)
    if stream.repaired_count > 0:
        logger.debug("%d samples that were no audio", stream.repaired_count)
    yield from writer.pieces(stream.finish())
    yield writer.end()


def _text(
    audio: Iterator[npt.NDArray[np.float32]],
    engine: MelEngine,
    wanted: MelOptions,
    transcriber: Transcriber,
    request: Request,
) -> Iterator[bytes]:
    """Segments of text as their windows of 30 s close, and all of it at the end."""
    stream = MelStream(engine, "whisper", np.float32)
    transcript = transcriber.transcript(wanted.language, wanted.beam_size, request.cancelled)
    writer = TextWriter()
    for samples in audio:
        for segment in transcript.windows(stream.push(samples), stream.sample_count / SAMPLE_RATE_HZ):
            yield writer.delta(segment)
        if request.cancelled():
            return
    _check_samples(stream)
    audio_s = stream.sample_count / SAMPLE_RATE_HZ
    for segment in transcript.windows(stream.finish(), audio_s):
        yield writer.delta(segment)
    yield writer.end(audio_s, transcript.language)


def _check_samples(stream: MelStream) -> None:
    if stream.sample_count == 0:
        raise BackendError(400, "the audio has no samples")
