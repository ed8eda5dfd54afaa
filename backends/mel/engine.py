"""Who computes frames: the seam between a stream of audio and the processor that does the work. Any thread.

A stream cuts and pads; an engine turns samples into raw log-mel frames and knows nothing of streams. `backends.mel.cpu`
is one engine, a GPU's is another, and a test's may be the reference itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from backends.mel.spec import FFT_SAMPLES, HOP_SAMPLES

if TYPE_CHECKING:
    import numpy.typing as npt

# int16, or float32 with full scale at 1. Contiguous.
Samples: TypeAlias = "npt.NDArray[np.int16] | npt.NDArray[np.float32]"
Frames: TypeAlias = "npt.NDArray[np.float32]"

# Larger float samples would overflow float32 when squared and summed: a stream holds them to this before an engine sees
# them. Values of 16 bits that were cast to float32 and not scaled are below it.
SAMPLE_MAX = 65_536.0


class EngineError(Exception):
    """The engine cannot compute any more, as when its device fails. The message says why, without secrets."""


class MelEngine(Protocol):
    """Computes raw log10 mel power. One engine serves many streams, on many threads at once.

    The frames of given samples are the same to the bit on one device, whatever else is computed beside them and however
    many of them one call has. An engine keeps no state of a stream.
    """

    @property
    def bin_count(self) -> int:
        """80 or 128."""
        ...

    @property
    def frame_count_max(self) -> int:
        """The most frames of one call; a stream makes its buffers so large."""
        ...

    def compute(self, samples: Samples, frames: Frames) -> None:
        """Fill `frames` from `samples`; returns when they are there, and holds no GIL meanwhile.

        `samples`: int16 or float32 [400 + 160 * (n - 1)], contiguous, 16 kHz mono, padded already, finite and within
        SAMPLE_MAX. `frames`: float32 [n, bin_count], contiguous, with 1 <= n <= frame_count_max; frame i is that of
        samples 160 * i to 160 * i + 399: log10(max(mel power, 1e-10)). Neither array is kept. Raises EngineError.
        """
        ...

    def close(self) -> None:
        """Let go of what is held. No call is in progress, and none follows."""
        ...


class Pending(Protocol):
    """A computation that was submitted."""

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        ...

    def wait(self) -> None:
        """Return when the frames are there. Raises EngineError."""
        ...


class AsynchronousMelEngine(MelEngine, Protocol):
    """An engine that goes on while the caller does: one launch may then hold the work of many streams."""

    def submit(self, samples: Samples, frames: Frames) -> Pending:
        """As `compute`, but return at once. The caller leaves both arrays alone until `Pending.wait` has returned."""
        ...


def check_call(
    samples: np.ndarray[Any, Any], frames: np.ndarray[Any, Any], bin_count: int, frame_count_max: int
) -> int:
    """Hold a call to the contract of `MelEngine.compute`, for engines to begin with. Returns the number of frames."""
    frame_count = len(frames)
    assert 1 <= frame_count <= frame_count_max, f"{frame_count} frames in one call"
    assert frames.shape == (frame_count, bin_count), f"frames are {frames.shape}"
    assert frames.dtype == np.float32, f"frames are {frames.dtype}"
    assert samples.shape == (FFT_SAMPLES + HOP_SAMPLES * (frame_count - 1),), f"samples are {samples.shape}"
    assert samples.dtype in (np.int16, np.float32), f"samples are {samples.dtype}"
    assert samples.flags.c_contiguous, "samples are strided"
    assert frames.flags.c_contiguous, "frames are strided"
    return frame_count
