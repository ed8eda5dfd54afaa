"""How features are written: events, lines of JSON, or binary blocks. docs/backends.md shows each. Pure.

Lines and blocks end with one that says so, because the end of a connection alone does not tell a whole stream from one
that was cut.
"""

from __future__ import annotations

import binascii
import math
import struct
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from backends.interface import Form
from backends.sse import DONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.mel.engine import Frames
    from backends.mel.transcriber import Segment
    from config.mel import MelFormat, MelNumberType

FORMS: dict[MelFormat, Form] = {
    "sse": Form("content"),
    "ndjson": Form("raw", "application/x-ndjson"),
    "binary": Form("raw", "application/octet-stream"),
}
MAGIC = b"MEL1"
BLOCK = struct.Struct("<4sBBHII")  # magic, number type, kind, bins, first frame, count
TEXT_BYTES_MAX = 1 << 20  # of the whole text at the end of a stream; speech takes 20 hours for it
FRAMES, END, ERROR = 0, 1, 2  # kinds of block
NUMBER_TYPES: dict[MelNumberType, int] = {"float32": 0, "float16": 1}
_LITTLE_ENDIAN: dict[MelNumberType, str] = {"float32": "<f4", "float16": "<f2"}


class Writer:
    """Writes one stream; its subclasses know a format each."""

    def __init__(self, bins: int, dtype: MelNumberType, frames_max: int) -> None:
        """`frames_max` frames are in one event, line or block at most."""
        self.bins = bins
        self.dtype: MelNumberType = dtype
        self.first = 0  # the index of the next frame
        self.begun = False
        self._frames_max = frames_max

    def pieces(self, frames: Frames) -> Iterator[bytes]:
        """Frames, float32 [n, bins], as they leave."""
        for start in range(0, len(frames), self._frames_max):
            part = frames[start : start + self._frames_max]
            with np.errstate(over="ignore"):
                data = part.astype(_LITTLE_ENDIAN[self.dtype]).tobytes()
            piece = self._piece(len(part), data)
            self.begun = True
            self.first += len(part)
            yield piece

    def _piece(self, count: int, data: bytes) -> bytes:
        raise NotImplementedError

    def end(self) -> bytes:
        """The true end."""
        raise NotImplementedError

    def error(self, status: int, message: str) -> bytes:
        """An end that is none, after something was sent."""
        raise NotImplementedError


class EventWriter(Writer):
    """Server-sent events."""

    def _piece(self, count: int, data: bytes) -> bytes:
        return b"data: " + _object(self, count, data) + b"\n\n"

    def end(self) -> bytes:
        """`data: [DONE]`."""
        return DONE

    def error(self, status: int, message: str) -> bytes:
        """Nothing: the daemon sends its own event."""
        del status, message
        return b""


class LineWriter(Writer):
    """Lines of JSON."""

    def _piece(self, count: int, data: bytes) -> bytes:
        return _object(self, count, data) + b"\n"

    def end(self) -> bytes:
        """How many frames there were."""
        return b'{"end":true,"count":%d}\n' % self.first

    def error(self, status: int, message: str) -> bytes:
        """The status it would have been, and why."""
        return msgspec.json.encode({"error": {"status": status, "message": message}}) + b"\n"


class BlockWriter(Writer):
    """Blocks with a header of 16 bytes each."""

    def _piece(self, count: int, data: bytes) -> bytes:
        return self._header(FRAMES, count) + data

    def _header(self, kind: int, count: int) -> bytes:
        return BLOCK.pack(MAGIC, NUMBER_TYPES[self.dtype], kind, self.bins, self.first & 0xFFFF_FFFF, count)

    def end(self) -> bytes:
        """A block without frames; its first frame would be the next one."""
        return self._header(END, 0)

    def error(self, status: int, message: str) -> bytes:
        """A block of so many bytes of UTF-8."""
        text = f"{status} {message}".encode(errors="replace")
        return self._header(ERROR, len(text)) + text


class TextWriter:
    """Text, as OpenAI's transcriptions stream: each segment is a delta, which has its times besides."""

    def __init__(self) -> None:
        """For one stream."""
        self._texts: list[str] = []
        self._bytes = 0
        self._is_whole = True

    def delta(self, segment: Segment) -> bytes:
        """One segment."""
        text, start_s, end_s = segment
        self._bytes += len(text.encode())
        self._is_whole = self._is_whole and self._bytes <= TEXT_BYTES_MAX
        if self._is_whole:
            self._texts.append(text)
        said = {"type": "transcript.text.delta", "delta": text, "start": round(start_s, 2), "end": round(end_s, 2)}
        return _event(said)

    def end(self, audio_s: float, language: str) -> bytes:
        """The text and the true end. A text too long to be kept is said to be cut; its deltas were all of it."""
        said: dict[str, object] = {"type": "transcript.text.done", "text": "".join(self._texts).strip()}
        if not self._is_whole:
            said["truncated"] = True
        if language:
            said["language"] = language
        said["usage"] = {"type": "duration", "seconds": math.ceil(audio_s)}
        return _event(said) + DONE


def _event(said: object) -> bytes:
    return b"data: " + msgspec.json.encode(said) + b"\n\n"


WRITERS: dict[MelFormat, type[Writer]] = {"sse": EventWriter, "ndjson": LineWriter, "binary": BlockWriter}


def _object(writer: Writer, count: int, data: bytes) -> bytes:
    text = binascii.b2a_base64(data, newline=False)
    return b'{"first":%d,"count":%d,"bins":%d,"dtype":"%b","frames":"%b"}' % (
        writer.first, count, writer.bins, writer.dtype.encode(), text,
    )  # fmt: skip
