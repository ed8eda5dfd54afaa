"""The settings of [backend.mel]. docs/mel.md and docs/backends.md explain each choice."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from config.declaring import RELOADABLE, reloadable, reloadable_text

MelFormat = Literal["sse", "ndjson", "binary"]
MelNormalisation = Literal["none", "running", "whisper"]
MelNumberType = Literal["float32", "float16"]
SampleFormat = Literal["auto", "wav", "s16le", "f32le"]
SAMPLE_RATE_MIN_HZ = 1000
SAMPLE_RATE_MAX_HZ = 768_000
CHANNELS_MAX = 64
BEAM_SIZE_MAX = 16


def _choice(description: str) -> Meta:
    return Meta(description=description, extra=RELOADABLE)


class MelBackend(msgspec.Struct, frozen=True, kw_only=True):
    """Mel features of audio: from files below `server.data_dir`, or from uploads while they arrive."""

    enabled: Annotated[
        bool, Meta(description="enable the backend, which needs the extra `mel`; also enabled as the default backend")
    ] = False
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Meta(description="compute device; auto uses GPUs if there are any; cuda without a GPU is an error"),
    ] = "cpu"
    format: Annotated[MelFormat, _choice("default format of a stream")] = "sse"
    bins: Annotated[int, reloadable("default number of mel bins: 80 or 128", ge=80, le=128)] = 80
    normalisation: Annotated[MelNormalisation, _choice("default normalisation")] = "none"
    dtype: Annotated[MelNumberType, _choice("default number type")] = "float32"
    sample_format: Annotated[
        SampleFormat, _choice("default sample format of an upload; auto detects WAV, otherwise s16le")
    ] = "auto"
    sample_rate: Annotated[
        int,
        reloadable("default sample rate of a raw upload, in Hz", ge=SAMPLE_RATE_MIN_HZ, le=SAMPLE_RATE_MAX_HZ),
    ] = 16_000
    channels: Annotated[int, reloadable("default channel count of a raw upload", ge=1, le=CHANNELS_MAX)] = 1
    chunk_frames_max: Annotated[int, reloadable("frames per event, line or block", ge=1, le=3000)] = 100
    audio_bytes_max: Annotated[
        int, reloadable("size of a file or an upload; more gets a 413; 0 = no limit", ge=0, le=1 << 44)
    ] = 1 << 30
    audio_seconds_max: Annotated[
        int, reloadable("length of the audio; more gets a 413; 0 = no limit", ge=0, le=10_000_000)
    ] = 36_000
    transcribe_model: Annotated[
        str,
        Meta(
            max_length=4096,
            description="directory of a Whisper model in CTranslate2 format, which needs the extra `transcribe`; "
            "requests may then request text; empty = off",
        ),
    ] = ""
    transcribe_device: Annotated[Literal["cpu", "cuda"], Meta(description="device of the Whisper model")] = "cpu"
    transcribe_uses_max: Annotated[
        int, Meta(ge=1, le=16, description="windows transcribed concurrently; others wait")
    ] = 1
    transcribe_threads: Annotated[int, Meta(ge=1, le=64, description="threads per window, on a CPU")] = 2
    transcribe_language: Annotated[
        str,
        reloadable_text("default language, such as `de`; empty = detected in the first 30 s", max_length=8),
    ] = ""
    transcribe_beam_size: Annotated[int, reloadable("default beam size", ge=1, le=BEAM_SIZE_MAX)] = 5
    transcribe_beam_size_max: Annotated[
        int, reloadable("largest beam size of a request; more gets a 400", ge=1, le=BEAM_SIZE_MAX)
    ] = 5
