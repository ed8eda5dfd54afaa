"""The settings of [backend.mel]. What each choice means is said in docs/mel.md and docs/backends.md."""

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
    """Mel features of audio: from files below `server.data_dir`, or from uploads that are still arriving."""

    enabled: Annotated[
        bool, Meta(description="have the backend, which needs the extra `mel`; it is also there as the default one")
    ] = False
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Meta(description="what computes; auto is GPUs where there are any; cuda without one is an error"),
    ] = "cpu"
    format: Annotated[MelFormat, _choice("form of a stream whose request names none")] = "sse"
    bins: Annotated[int, reloadable("mel bins of a request that names none: 80 or 128", ge=80, le=128)] = 80
    normalisation: Annotated[MelNormalisation, _choice("normalisation of a request that names none")] = "none"
    dtype: Annotated[MelNumberType, _choice("type of the numbers where a request names none")] = "float32"
    sample_format: Annotated[
        SampleFormat, _choice("samples of an upload that names none; auto is WAV by its head, otherwise s16le")
    ] = "auto"
    sample_rate: Annotated[
        int,
        reloadable("Hz, of a raw upload that names none", ge=SAMPLE_RATE_MIN_HZ, le=SAMPLE_RATE_MAX_HZ),
    ] = 16_000
    channels: Annotated[int, reloadable("of a raw upload that names none", ge=1, le=CHANNELS_MAX)] = 1
    chunk_frames_max: Annotated[int, reloadable("frames of one event, line or block", ge=1, le=3000)] = 100
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
            description="directory of a Whisper model in CTranslate2's form, which needs the extra `transcribe`; "
            "requests may then ask for text; empty = off",
        ),
    ] = ""
    transcribe_device: Annotated[Literal["cpu", "cuda"], Meta(description="what the Whisper model runs on")] = "cpu"
    transcribe_uses_max: Annotated[
        int, Meta(ge=1, le=16, description="windows that the model works on at once; others wait")
    ] = 1
    transcribe_threads: Annotated[int, Meta(ge=1, le=64, description="threads for each of these windows, on a CPU")] = 2
    transcribe_language: Annotated[
        str,
        reloadable_text("of a request that names none, as `de`; empty = heard in its first 30 s", max_length=8),
    ] = ""
    transcribe_beam_size: Annotated[
        int, reloadable("beams of a request that names no number", ge=1, le=BEAM_SIZE_MAX)
    ] = 5
    transcribe_beam_size_max: Annotated[
        int, reloadable("beams that a request may ask for; more get a 400", ge=1, le=BEAM_SIZE_MAX)
    ] = 5
