"""The head of a WAV file that is still arriving, and raw samples in pieces that are cut anywhere. Pure.

Sources: Microsoft and IBM, Multimedia Programming Interface and Data Specifications 1.0 (RIFF, fmt, data); Microsoft,
Multiple Channel Audio Data and WAVE Files (the extensible format); EBU Tech 3306 (RF64 and ds64).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backends.interface import BackendError, BodyTruncated
from config.mel import CHANNELS_MAX, SAMPLE_RATE_MAX_HZ, SAMPLE_RATE_MIN_HZ

if TYPE_CHECKING:
    import numpy.typing as npt

HEAD_BYTES_MAX = 1 << 20  # pictures and texts may stand before the samples
FMT_BYTES_MAX = 1024
CHUNK_HEAD_BYTES = 8
RIFF_HEAD_BYTES = 12
UNKNOWN_SIZE = 0xFFFF_FFFF  # of a file that was written to a pipe
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
KNOWN = "uint8, int16, int24, int32, float32 and float64"


class SampleLayout(NamedTuple):
    """How raw samples are written: little-endian, channels interleaved."""

    is_float: bool
    sample_bytes: int
    channels: int
    rate_hz: int

    @property
    def frame_bytes(self) -> int:
        """One sample of each channel."""
        return self.sample_bytes * self.channels


def unpacked(data: bytes, layout: SampleLayout) -> npt.NDArray[np.float32]:
    """Whole frames as float32 [n, channels] with full scale at 1."""
    kind = (layout.is_float, layout.sample_bytes)
    values: npt.NDArray[np.float32]
    if kind == (False, 2):
        values = np.frombuffer(data, "<i2").astype(np.float32) * np.float32(2**-15)
    elif kind == (True, 4):
        values = np.frombuffer(data, "<f4").astype(np.float32)
    elif kind == (True, 8):
        with np.errstate(over="ignore"):  # to infinity, which becomes 0
            values = np.frombuffer(data, "<f8").astype(np.float32)
    elif kind == (False, 4):
        values = (np.frombuffer(data, "<i4") * 2.0**-31).astype(np.float32)
    elif kind == (False, 1):
        values = (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) * np.float32(2**-7)
    else:
        assert kind == (False, 3), f"samples of {kind}"
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = (wide.reshape(-1).view("<i4") * 2.0**-31).astype(np.float32)
    return values.reshape(-1, layout.channels)


class RawSamples:
    """Samples of pieces that are cut anywhere: what is left of one is put before the next."""

    def __init__(self, layout: SampleLayout) -> None:
        """No piece has come."""
        self.layout = layout
        self._rest = b""

    def take(self, piece: bytes) -> npt.NDArray[np.float32]:
        """The frames that a piece completes, float32 [n, channels]."""
        data = self._rest + piece if self._rest else piece
        whole = len(data) - len(data) % self.layout.frame_bytes
        self._rest = data[whole:]
        return unpacked(data[:whole], self.layout)

    def finish(self) -> None:
        """The upload has ended. BodyTruncated where that is inside a sample."""
        if self._rest:
            raise BodyTruncated("the upload ends inside a sample")


class WavHead:
    """Takes pieces until the samples begin. `layout` is then set, and `data_bytes`: None where nobody knows."""

    def __init__(self) -> None:
        """No byte has come."""
        self.layout: SampleLayout | None = None
        self.data_bytes: int | None = None
        self._held = b""
        self._skip = 0
        self._taken = 0
        self._wide_data_bytes: int | None = None
        self._is_begun = False

    def take(self, piece: bytes) -> bytes | None:
        """None as long as the head goes on, then the first samples. BackendError: 415 for what is not understood."""
        if self._taken > HEAD_BYTES_MAX:
            raise _malformed(f"no samples in its first {HEAD_BYTES_MAX} bytes")
        self._taken += len(piece)
        self._held += piece
        while True:
            if self._skip > 0:
                dropped = min(self._skip, len(self._held))
                self._held, self._skip = self._held[dropped:], self._skip - dropped
                if self._skip > 0:
                    return None
            if not self._is_begun:
                if len(self._held) < RIFF_HEAD_BYTES:
                    return None
                self._begin()
                continue
            if len(self._held) < CHUNK_HEAD_BYTES:
                return None
            name, size = struct.unpack_from("<4sI", self._held)
            if name == b"data":
                return self._data(size)
            if name in {b"fmt ", b"ds64"}:
                if size > FMT_BYTES_MAX:
                    raise _malformed(f"a chunk `{name.decode().strip()}` of {size} bytes")
                if len(self._held) < CHUNK_HEAD_BYTES + size:
                    return None
                self._read(name, self._held[CHUNK_HEAD_BYTES : CHUNK_HEAD_BYTES + size])
            self._skip = CHUNK_HEAD_BYTES + size + size % 2

    def finish(self) -> None:
        """The upload has ended. BodyTruncated where the head has not."""
        raise BodyTruncated("the upload ends inside its WAV head")

    def _begin(self) -> None:
        if not is_wav(self._held):
            raise BackendError(415, "the upload is no WAV: it begins with no RIFF head")
        self._is_begun = True
        self._skip = RIFF_HEAD_BYTES

    def _read(self, name: bytes, chunk: bytes) -> None:
        if name == b"fmt ":
            self.layout = _layout(chunk)
        elif len(chunk) >= 16:
            self._wide_data_bytes = int.from_bytes(chunk[8:16], "little")

    def _data(self, size: int) -> bytes:
        if self.layout is None:
            raise _malformed("its samples come before their format")
        if size == UNKNOWN_SIZE:
            self.data_bytes = self._wide_data_bytes
        else:
            self.data_bytes = size or None
        return self._held[CHUNK_HEAD_BYTES:]


def is_wav(beginning: bytes) -> bool:
    """Whether 12 bytes are the beginning of a WAV file."""
    return beginning[:4] in {b"RIFF", b"RF64"} and beginning[8:12] == b"WAVE"


def _layout(chunk: bytes) -> SampleLayout:
    if len(chunk) < 16:
        raise _malformed("a chunk `fmt` that is too short")
    tag, channels, rate_hz, _, block_bytes, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 40 and chunk[26:40] == _GUID_TAIL:
        tag = int.from_bytes(chunk[24:26], "little")
    sample_bytes = (bits + 7) // 8
    sizes = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}.get(tag, ())
    if sample_bytes not in sizes:
        raise BackendError(415, f"a WAV with samples of format {tag} and {bits} bits: known are {KNOWN}")
    if not 1 <= channels <= CHANNELS_MAX:
        raise BackendError(415, f"a WAV of {channels} channels: 1 to {CHANNELS_MAX} are expected")
    if not SAMPLE_RATE_MIN_HZ <= rate_hz <= SAMPLE_RATE_MAX_HZ:
        raise BackendError(415, f"a WAV of {rate_hz} Hz: {SAMPLE_RATE_MIN_HZ} to {SAMPLE_RATE_MAX_HZ} are expected")
    if block_bytes != sample_bytes * channels:
        raise _malformed("sizes in its head that contradict one another")
    return SampleLayout(tag == _FLOAT, sample_bytes, channels, rate_hz)


def _malformed(what: str) -> BackendError:
    return BackendError(400, f"the WAV cannot be read: {what}")
