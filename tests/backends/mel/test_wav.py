"""WAV heads in any pieces, and every form of sample."""

from __future__ import annotations

import importlib
import io
import struct
from typing import Any

import numpy as np
import pytest

from backends.interface import BackendError, BodyTruncated
from backends.mel.wav import RawSamples, SampleLayout, WavHead, unpacked

soundfile: Any = importlib.import_module("soundfile")
SOUND = (np.random.default_rng(3).uniform(-0.9, 0.9, (500, 2))).astype(np.float32)


def wav(subtype: str = "PCM_16", form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SOUND, 22_050, subtype=subtype, format=form)
    return file.getvalue()


def read(data: bytes, size: int) -> tuple[WavHead, bytes]:
    head, samples = WavHead(), b""
    is_head = True
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        if is_head:
            first = head.take(piece)
            is_head, samples = first is None, first or b""
        else:
            samples += piece
    return head, samples


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 12, 13, 44, 45, 4096])
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_a_head_in_any_pieces(form: str, size: int) -> None:
    head, samples = read(wav(form=form), size)
    assert head.layout == SampleLayout(is_float=False, sample_bytes=2, channels=2, rate_hz=22_050)
    assert head.data_bytes == 2000
    assert samples[:2000] == wav(form=form)[-2000:]


@pytest.mark.parametrize(
    ("subtype", "step"),
    [("PCM_U8", 2**-6), ("PCM_16", 2**-14), ("PCM_24", 2**-22), ("PCM_32", 1e-6), ("FLOAT", 1e-7), ("DOUBLE", 1e-7)],
)
def test_every_form_of_sample(subtype: str, step: float) -> None:
    head, samples = read(wav(subtype), 4096)
    assert head.layout is not None
    assert head.data_bytes is not None
    assert np.abs(unpacked(samples[: head.data_bytes], head.layout) - SOUND).max() <= step


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF])
def test_a_wav_that_is_being_made_does_not_know_its_size(size: int) -> None:
    data = wav()
    at = data.index(b"data") + 4
    head, _ = read(data[:at] + struct.pack("<I", size) + data[at + 4 :], 100)
    assert head.data_bytes is None


def test_what_stands_before_the_samples_is_passed_over() -> None:
    data = wav()
    head, samples = read(data[:12] + b"LIST" + struct.pack("<I", 5) + b"odd!!\0" + data[12:], 3)
    assert head.data_bytes == 2000
    assert len(samples) >= 2000


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"OggS" + bytes(100), 415),
        (wav("ULAW"), 415),
        (wav()[:12] + b"data" + bytes(40), 400),
        (wav()[:12] + b"LIST" + b"\xff\xff\xff\x7f" + bytes(2 << 20), 400),
        (wav()[:12] + b"fmt " + struct.pack("<I", 1 << 30) + bytes(100), 400),
        (wav()[:12] + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 0, 16_000, 0, 0, 16), 415),
        (wav()[:12] + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 10, 20, 2, 16), 415),
        (wav()[:12] + b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 0, 7, 16), 400),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes, status: int) -> None:
    with pytest.raises(BackendError) as raised:
        read(data, 65_536)
    assert raised.value.status == status


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 400])
def test_samples_that_are_cut_anywhere(cut: int) -> None:
    layout = SampleLayout(is_float=True, sample_bytes=4, channels=2, rate_hz=16_000)
    data, raw = SOUND.tobytes(), RawSamples(layout)
    parts = [raw.take(data[start : start + cut]) for start in range(0, len(data), cut)]
    raw.finish()
    assert np.array_equal(np.concatenate(parts), SOUND)
    raw.take(b"x")
    with pytest.raises(BodyTruncated):
        raw.finish()
