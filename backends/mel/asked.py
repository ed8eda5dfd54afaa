"""What a request asks of the backend: its field `audio_path`, and those below `options`. Pure; any thread."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from backends.interface import BackendError
from config.mel import (
    BEAM_SIZE_MAX,
    CHANNELS_MAX,
    SAMPLE_RATE_MAX_HZ,
    SAMPLE_RATE_MIN_HZ,
    MelBackend,
    MelFormat,
    MelNormalisation,
    MelNumberType,
    SampleFormat,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.interface import Request
    from backends.mel.transcriber import Transcriber

_CHOICES: dict[str, tuple[object, ...]] = {
    "format": typing.get_args(MelFormat),
    "bins": (80, 128),
    "normalisation": typing.get_args(MelNormalisation),
    "dtype": typing.get_args(MelNumberType),
    "sample_format": typing.get_args(SampleFormat),
    "transcribe": (False, True),
}
_NUMBERS = {
    "sample_rate": (SAMPLE_RATE_MIN_HZ, SAMPLE_RATE_MAX_HZ),
    "channels": (1, CHANNELS_MAX),
    "beam_size": (1, BEAM_SIZE_MAX),
}
_TEXTS = {"language": 8}  # and the most characters
_KNOWN = sorted(_CHOICES.keys() | _NUMBERS.keys() | _TEXTS.keys())
NAME_CHARACTERS_MAX = 64  # of a field that is not known, in what its sender is told
_OF_TEXT = ("language", "beam_size")  # only with `transcribe`
_OF_FEATURES = ("bins", "normalisation", "dtype")  # only without
_UPLOADS = "WAV, s16le and f32le"
# Types of an upload that say nothing, and those of WAV; other sounds and films are known not to be understood.
_WAV_TYPES = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"})
_RAW_TYPES = frozenset({"audio/pcm", "audio/x-pcm", "audio/raw", "audio/x-raw", "audio/basic-pcm"})


class MelOptions(NamedTuple):
    """One request, checked."""

    audio_path: str | None  # None where the audio is the upload
    format: MelFormat
    bins: int
    normalisation: MelNormalisation
    dtype: MelNumberType
    sample_format: SampleFormat
    sample_rate: int
    channels: int
    transcribe: bool
    language: str  # empty where it is to be heard
    beam_size: int


def asked(request: Request, defaults: MelBackend, transcriber: Transcriber | None = None) -> MelOptions:
    """What a request asks, with the section's values for what it leaves out.

    Over HTTP options are parameters of the query, and are called so.

    BackendError: 400 that names the field, 403 for a path in a request over HTTP, 415 for audio that is not understood,
    501 for text where there is no model.
    """
    try:
        return _asked(request, defaults, transcriber)
    except BackendError as error:
        if request.endpoint != "audio":
            raise
        message = error.message.replace("field `options.", "parameter `")
        param = None if error.param is None else error.param.removeprefix("options.")
        raise BackendError(error.status, message, param=param) from None


def _asked(request: Request, defaults: MelBackend, transcriber: Transcriber | None) -> MelOptions:
    said = request.options
    options = said.get("options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise _wrong("options", "an object is expected")
    values = _checked(cast("dict[str, Any]", options))
    path = said.get("audio_path")
    if path is None:
        values.setdefault("sample_format", _of_content_type(request.headers) or defaults.sample_format)
    elif not isinstance(path, str):
        raise _wrong("audio_path", "a text is expected")
    elif request.headers:
        # Whoever hands over has decided what its client may hear; who comes over HTTP has not been asked.
        raise _wrong("audio_path", "over HTTP the audio is the request's body", 403)
    section = {
        **msgspec.structs.asdict(defaults),
        "transcribe": False,
        "language": defaults.transcribe_language,
        "beam_size": defaults.transcribe_beam_size,
    }
    if values.get("transcribe"):
        values.update(_of_model(values, defaults, transcriber))
    elif given := [name for name in _OF_TEXT if name in values]:
        raise _wrong(f"options.{given[0]}", "it goes with `transcribe`")
    return MelOptions(audio_path=path, **{name: values.get(name, section[name]) for name in MelOptions._fields[1:]})


def _of_model(values: dict[str, Any], defaults: MelBackend, transcriber: Transcriber | None) -> dict[str, Any]:
    """What a request for text leaves no choice of."""
    if transcriber is None:
        raise _wrong("options.transcribe", "this server has no model (backend.mel.transcribe_model)", 501)
    if values.get("format", "sse") != "sse":
        raise _wrong("options.format", "text comes as `sse`")
    for name in _OF_FEATURES:
        if name in values:
            raise _wrong(f"options.{name}", "with `transcribe` the model says it")
    if values.get("beam_size", 1) > defaults.transcribe_beam_size_max:
        most = defaults.transcribe_beam_size_max
        raise _wrong("options.beam_size", f"an integer from 1 to {most} is expected")
    if not transcriber.knows(values.get("language", "")):
        known = ", ".join(transcriber.languages) if transcriber.is_multilingual else "en"
        raise _wrong("options.language", f"the model knows {known}")
    return {"format": "sse", "bins": transcriber.bins, "normalisation": "whisper"}


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        choices, bounds = _CHOICES.get(name), _NUMBERS.get(name)
        if choices is not None:
            if not any(value == choice and type(value) is type(choice) for choice in choices):
                status = 415 if name == "sample_format" else 400
                raise _wrong(f"options.{name}", f"known are {', '.join(map(str, choices))}", status)
        elif name in _TEXTS:
            if not isinstance(value, str) or len(value) > _TEXTS[name]:
                raise _wrong(f"options.{name}", f"a text of at most {_TEXTS[name]} letters is expected")
        elif bounds is None:
            raise _wrong(f"options.{_shown(name)}", f"it is not known; known are {', '.join(_KNOWN)}")
        elif type(value) is not int or not bounds[0] <= value <= bounds[1]:
            raise _wrong(f"options.{name}", f"an integer from {bounds[0]} to {bounds[1]} is expected")
    return dict(options)


def _wrong(field: str, why: str, status: int = 400) -> BackendError:
    return BackendError(status, f"field `{field}`: {why}", param=field)


def _shown(name: str) -> str:
    """A name that a client made up."""
    return "".join(character if " " <= character <= "~" else "?" for character in name[:NAME_CHARACTERS_MAX])


def _of_content_type(headers: Mapping[str, str]) -> SampleFormat | None:
    """What an upload's type says of its samples; None where it leaves that open."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _WAV_TYPES:
        return "wav"
    if kind.startswith(("audio/", "video/")) and kind not in _RAW_TYPES:
        raise BackendError(415, f"header `content-type`: uploads may be {_UPLOADS}", param="content-type")
    return None
