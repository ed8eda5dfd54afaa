"""The frames of a stream of the backend `mel`, in each of its formats, beside the specification's."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from backends.mel.formats import BLOCK, NUMBER_TYPES
from scripts import mel_client

if TYPE_CHECKING:
    from scripts.gpu_mel.requests import Streamed

Features = npt.NDArray[np.float64]
NAMES = {number: name for name, number in NUMBER_TYPES.items()}


def frames_of(pieces: list[bytes], form: str) -> Features:
    """The frames of one stream; ValueError where it is not whole."""
    data = b"".join(pieces)
    parts: list[Features] = []
    ended = False
    if form == "binary":
        while data:
            _, number_type, kind, bins, first, count = BLOCK.unpack_from(data)
            ended = kind == 1
            dtype = np.dtype(NAMES[number_type])
            size = BLOCK.size + count * bins * dtype.itemsize
            if kind == 0:
                numbers = np.frombuffer(data[BLOCK.size : size], dtype)
                parts.append(_part(numbers.reshape(count, bins), first, parts))
            data = data[size:]
    else:
        *lines, last = data.replace(b"data: ", b"").split()
        ended = last == b"[DONE]" if form == "sse" else b'"end"' in last
        for line in lines:
            said = json.loads(line)
            numbers = np.frombuffer(base64.b64decode(said["frames"]), said["dtype"])
            parts.append(_part(numbers.reshape(said["count"], said["bins"]), said["first"], parts))
    if not ended:
        raise ValueError("the stream has no end")
    return np.concatenate(parts)


def _part(numbers: npt.NDArray[Any], first: int, parts: list[Features]) -> Features:
    if first != sum(map(len, parts)):
        raise ValueError(f"frame {first} came out of turn")
    return numbers.astype(np.float64)


def error_of(streamed: Streamed, form: str, expected: Features, dtype: str, normalisation: str) -> float:
    """The greatest difference from the specification; mel_client.ClientError where one is too great."""
    return mel_client.compare(frames_of(streamed.pieces, form), expected, dtype, normalisation)
