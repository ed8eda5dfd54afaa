"""What a query says of audio, and how blocks are cut out of a stream."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mel.formats import BlockWriter
from daemon.control.http.api.audio_blocks import BlockError, Blocks
from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn.audio import options_of


def test_a_querys_values_have_their_types() -> None:
    parameters = [("bins", "128"), ("normalisation", "none"), ("transcribe", "true"), ("language", "true")]
    assert options_of(parameters) == {"bins": 128, "normalisation": "none", "transcribe": True, "language": "true"}


@pytest.mark.parametrize("value", ["", "8x", "-1", "1.5", "\u0663", "9" * 30])
def test_what_is_no_number_stays_a_text_that_the_backend_refuses(value: str) -> None:
    assert options_of([("bins", value)]) == {"bins": value}


def test_a_parameter_may_be_there_once() -> None:
    with pytest.raises(ApiError, match="parameter `bins`: it is there twice") as raised:
        options_of([("bins", "80"), ("bins", "80")])
    assert (raised.value.status, raised.value.param) == (400, "bins")


@pytest.mark.parametrize("piece_bytes", [1, 7, 16, 1000, 1 << 20])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blocks_come_out_as_they_went_in(piece_bytes: int, dtype: str) -> None:
    writer = BlockWriter(80, "float16" if dtype == "float16" else "float32", 7)
    expected = [*writer.pieces(np.zeros((20, 80), np.float32)), writer.end()]
    data, blocks = b"".join(expected), Blocks()
    pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]
    assert [block for piece in pieces for block in blocks.take(piece)] == expected


def test_an_error_is_what_it_says() -> None:
    writer = BlockWriter(80, "float32", 7)
    frames = next(writer.pieces(np.zeros((1, 80), np.float32)))
    cut = Blocks().take(frames + writer.error(413, "too long"))
    assert next(cut) == frames
    with pytest.raises(BlockError, match="too long") as raised:
        next(cut)
    assert raised.value.status == 413
