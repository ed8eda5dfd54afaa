"""What is to be computed, and how its caller learns that it has been. Any thread makes a job; a device's does it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from backends.mel import spec
from backends.mel.engine import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from backends.mel.cuda.layout import FrameType, SampleType

Array: TypeAlias = "npt.NDArray[Any]"


class CudaJob:
    """Frames to be made of one chunk, or features of some clips; also what its caller waits on (`engine.Pending`).

    A chunk: samples [400 + 160 (n - 1)], frames [n, bins], raw. Clips: samples [clips, up to 480000], frames
    [clips, 3000, bins] with Whisper's normalisation. `pinned` says that both arrays are page-locked memory, which is
    then copied from and to directly.
    """

    __slots__ = ("_callback", "_error", "_finished", "_lock", "clips", "frames", "pinned", "samples", "submitted_ns")

    def __init__(
        self, samples: Array, frames: Array, *, pinned: bool = False, callback: Callable[[CudaJob], None] | None = None
    ) -> None:
        """`callback` is called on the device's thread when the job is done; it must not block."""
        assert samples.flags.c_contiguous and frames.flags.c_contiguous, "arrays are strided"  # noqa: PT018
        self.samples = samples
        self.frames = frames
        self.pinned = pinned
        self.clips = samples.ndim == 2
        self.submitted_ns = 0
        self._callback = callback
        self._error: EngineError | None = None
        self._finished = False
        self._lock = threading.Lock()
        self._lock.acquire()

    @property
    def types(self) -> tuple[SampleType, FrameType]:
        """Jobs of one launch are alike in these."""
        return cast("tuple[SampleType, FrameType]", (self.samples.dtype.name, self.frames.dtype.name))

    @property
    def chunk_count(self) -> int:
        """Rows of the table."""
        return len(self.samples) if self.clips else 1

    @property
    def frame_count(self) -> int:
        """Frames of all its chunks."""
        return int(self.frames.size // self.frames.shape[-1])

    @property
    def audio_s(self) -> float:
        """How much audio, in seconds."""
        return self.samples.size / spec.SAMPLE_RATE_HZ

    def finish(self, error: EngineError | None = None) -> None:
        """The frames are there, or will not come."""
        assert not self._finished, "a job is finished once"
        self._error = error
        self._finished = True
        self._lock.release()
        if self._callback is not None:
            self._callback(self)

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._finished

    def wait(self) -> None:
        """Return when the frames are there. Raises EngineError."""
        if not self._finished:
            self._lock.acquire()
            self._lock.release()
        if self._error is not None:
            raise self._error


def check_clips(samples: Array, frames: Array, bin_count: int) -> None:
    """Hold clips to the contract: int16 or float32 [n, up to 480000] in, float32 or float16 [n, 3000, bins] out."""
    assert samples.ndim == 2, f"samples are {samples.shape}"
    assert 1 <= samples.shape[1] <= spec.WINDOW_SAMPLES, f"samples are {samples.shape}"
    assert frames.shape == (len(samples), spec.WINDOW_FRAMES, bin_count), f"features are {frames.shape}"
    assert samples.dtype in (np.int16, np.float32), f"samples are {samples.dtype}"
    assert frames.dtype in (np.float32, np.float16), f"features are {frames.dtype}"
