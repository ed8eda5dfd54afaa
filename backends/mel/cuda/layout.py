"""What a launch is told: the table of chunks, the grid and the tiles. Imports `spec` alone; any thread.

A launch serves many chunks. A chunk is a run of samples of one stream, already padded, or a whole clip, which the CUDA
kernel pads itself. The table has a row of CHUNK_FIELDS for each, int32:

    SAMPLE_OFFSET  where its samples begin, in samples
    LENGTH         how many samples there are
    WINDOW         how many there would be with a clip's zeros behind them: from there on they are reflected
    ORIGIN         the position of its first frame's first sample: 0, or -200 where the kernel pads
    FRAME_COUNT    how many frames it makes
    FRAME_OFFSET   where its frames go, in frames
    NORMALISED     1: Whisper's normalisation of a clip, by its maximum; 0: the logarithm as it is
"""

from __future__ import annotations

from typing import Literal

from backends.mel.spec import FFT_SAMPLES, HOP_SAMPLES, PAD_SAMPLES, WINDOW_FRAMES, WINDOW_SAMPLES

SAMPLE_OFFSET, LENGTH, WINDOW, ORIGIN, FRAME_COUNT, FRAME_OFFSET, NORMALISED, _SPARE = range(8)
CHUNK_FIELDS = 8
CHUNK_BYTES = CHUNK_FIELDS * 4

TILE_FRAMES = 32  # frames of a block
WARPS = 10
LOG_MEL_BLOCK = (TILE_FRAMES, WARPS, 1)
CLAMP_THREADS = 256
CLAMP_PARTS = 16  # blocks for each clip
CLAMP_BLOCK = (CLAMP_THREADS, 1, 1)

# Shared memory of a block, in words of 4 bytes: the powers of bins 1 to 199 (over the samples, which are done with by
# then), then the exchange between the two passes of the FFT (and over it the finished frames and their extremes). Three
# blocks fit into one multiprocessor of 228 KiB: 30 warps, which need at most 64 registers a thread.
POWER_ROWS = 199
EXCHANGE_ROWS = FFT_SAMPLES
SHARED_WORDS = (POWER_ROWS + EXCHANGE_ROWS) * TILE_FRAMES
SHARED_BYTES = SHARED_WORDS * 4

KernelName = Literal["log_mel", "clamp"]
SampleType = Literal["int16", "float32"]
FrameType = Literal["float32", "float16"]

SAMPLE_BYTES: dict[SampleType, int] = {"int16": 2, "float32": 4}
FRAME_BYTES: dict[FrameType, int] = {"float32": 4, "float16": 2}


def chunk_row(sample_offset: int, frame_count: int, frame_offset: int) -> tuple[int, ...]:
    """The row of a chunk that is padded already: 400 + 160 * (frame_count - 1) samples, raw frames."""
    length = FFT_SAMPLES + HOP_SAMPLES * (frame_count - 1)
    return sample_offset, length, length, 0, frame_count, frame_offset, 0, 0


def clip_row(sample_offset: int, length: int, frame_offset: int) -> tuple[int, ...]:
    """The row of a clip of at most 30 s: zeros to 30 s, reflection, 3000 frames, Whisper's normalisation."""
    return sample_offset, length, WINDOW_SAMPLES, -PAD_SAMPLES, WINDOW_FRAMES, frame_offset, 1, 0


def log_mel_grid(frame_count_max: int, chunk_count: int) -> tuple[int, int]:
    """Blocks of `log_mel`: tiles of the longest chunk, and chunks."""
    return -(-frame_count_max // TILE_FRAMES), chunk_count


def clamp_grid(chunk_count: int) -> tuple[int, int]:
    """Blocks of `clamp`."""
    return CLAMP_PARTS, chunk_count
