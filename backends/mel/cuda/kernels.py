"""The CUDA kernels: one makes log-mel frames of samples, one applies Whisper's clamp. Compiled by Numba, pure.

`log_mel` fuses framing, window, a real FFT of 400, power, mel filters and logarithm. A block of 10 warps computes a
tile of 32 frames; a lane is a frame, a warp a row of the transform, so every index but the lane's is the same in a
warp: shared memory is read without bank conflicts and tables are broadcast. The FFT is 20 x 20 (n = column + 20 j,
k = row + 20 i), each transform of 20 in one thread's registers, as 4 x 5 by the prime-factor algorithm, which needs
no twiddles. The samples are real: a column gives 9 complex rows and two real ones, and rows 11 to 19 are conjugates,
so nothing is computed twice. Rows 0 and 10 together are a real transform of 40 numbers, packed as a complex one of 20.

Source of the prime-factor map: I. J. Good, The Interaction Algorithm and Practical Fourier Analysis, Journal of the
Royal Statistical Society B 20 (1958).

A kernel reads a table of chunks, int32 [chunks, CHUNK_FIELDS], so that one launch serves many streams. Compiled code:
constants are float32, since Python's floats would make the arithmetic float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.mel.cuda import tables
from backends.mel.cuda.layout import (
    CLAMP_PARTS,
    CLAMP_THREADS,
    FRAME_COUNT,
    FRAME_OFFSET,
    LENGTH,
    NORMALISED,
    ORIGIN,
    POWER_ROWS,
    SAMPLE_OFFSET,
    TILE_FRAMES,
    WARPS,
    WINDOW,
)
from backends.mel.cuda.toolchain import cuda, float32, inlined
from backends.mel.spec import DIVISOR, HOP_SAMPLES, POWER_MIN, RANGE_DECADES

if TYPE_CHECKING:
    from collections.abc import Callable

_HOP = HOP_SAMPLES
_ROW = _HOP + 1  # of samples in shared memory: one word more, so that lanes, a hop apart, meet no bank twice
_SAMPLE_ROWS = TILE_FRAMES + 2  # 32 hops and what the last frame has of the next two
_EXCHANGE = POWER_ROWS * TILE_FRAMES
_ENDS = _EXCHANGE + 130 * TILE_FRAMES  # behind the finished frames
_STAGE_TURNS = -(-_SAMPLE_ROWS // WARPS)
_FRAME_TURNS = -(-TILE_FRAMES // WARPS)

_F32 = np.float32
_C1 = np.float32(math.cos(2 * math.pi / 5))
_C2 = np.float32(math.cos(4 * math.pi / 5))
_S1 = np.float32(math.sin(2 * math.pi / 5))
_S2 = np.float32(math.sin(4 * math.pi / 5))
_HALF = np.float32(0.5)
# Half the cosine and sine of a twentieth and a tenth of a turn; those of three and four twentieths mirror them.
_COSINE_1 = np.float32(0.5 * math.cos(math.pi / 10))
_SINE_1 = np.float32(0.5 * math.sin(math.pi / 10))
_COSINE_2 = np.float32(0.5 * math.cos(math.pi / 5))
_SINE_2 = np.float32(0.5 * math.sin(math.pi / 5))
_QUARTER = np.float32(0.25)  # also 1 / spec.DIVISOR
_ZERO = np.float32(0.0)
_POWER_MIN = np.float32(POWER_MIN)
_ONE = np.float32(1.0)  # also spec.OFFSET / spec.DIVISOR
_RANGE = np.float32(RANGE_DECADES / DIVISOR)
_HUGE = np.float32(3e38)

_COLUMN_TABLE = tables.column_table()
_UNPACK_TABLE = tables.unpack_table()


@inlined
def _real_5(x0: Any, x1: Any, x2: Any, x3: Any, x4: Any) -> Any:
    """DFT of 5 real numbers: X0, then X1 and X2 as (re, im)."""
    s1 = x1 + x4
    s2 = x2 + x3
    d1 = x1 - x4
    d2 = x2 - x3
    return (
        x0 + s1 + s2,
        x0 + _C1 * s1 + _C2 * s2,
        -(_S1 * d1 + _S2 * d2),
        x0 + _C2 * s1 + _C1 * s2,
        _S1 * d2 - _S2 * d1,
    )


@inlined
def _complex_4(ar: Any, ai: Any, br: Any, bi: Any, cr: Any, ci: Any, dr: Any, di: Any) -> Any:
    """DFT of 4 complex numbers."""
    pr = ar + cr
    pi = ai + ci
    mr = ar - cr
    mi = ai - ci
    qr = br + dr
    qi = bi + di
    nr = br - dr
    ni = bi - di
    return pr + qr, pi + qi, mr + ni, mi - nr, pr - qr, pi - qi, mr - ni, mi + nr


@inlined
def _put(shared: Any, row: Any, place: Any, real: Any, imaginary: Any, c: Any, s: Any) -> None:
    """Turn by a twiddle (c, s) and write to the exchange."""
    shared[_EXCHANGE + row * 1280 + place] = real * c - imaginary * s
    shared[_EXCHANGE + row * 1280 + 640 + place] = real * s + imaginary * c


@inlined
def _sample(samples: Any, offset: Any, position: Any, length: Any, window: Any, scale: Any) -> Any:
    """The sample at a position that may be outside the audio: reflected, or 0."""
    if position < 0:
        position = -position
    if position >= window:
        position = 2 * window - 2 - position
    if position < 0 or position >= length:
        return _ZERO
    return _F32(samples[np.uint64(offset + position)]) * scale


@inlined
def _stage(shared: Any, samples: Any, chunks: Any, chunk: Any, first: Any, lane: Any, warp: Any, scale: Any) -> None:
    """Read the tile's samples once, in order, as float32. A warp takes rows of a hop: its own, and every tenth."""
    offset = chunks[chunk, SAMPLE_OFFSET]
    length = chunks[chunk, LENGTH]
    window = chunks[chunk, WINDOW]
    start = first * _HOP + chunks[chunk, ORIGIN]
    source = start + warp * _HOP + lane
    target = warp * _ROW + lane
    if start >= 0 and start + _SAMPLE_ROWS * _HOP <= length:
        for turn in range(_STAGE_TURNS):
            if turn < _STAGE_TURNS - 1 or warp < _SAMPLE_ROWS - (_STAGE_TURNS - 1) * WARPS:
                for part in range(5):
                    value = samples[np.uint64(offset + source + turn * WARPS * _HOP + part * 32)]
                    shared[target + turn * WARPS * _ROW + part * 32] = _F32(value) * scale
    else:
        for _ in range(warp, _SAMPLE_ROWS, WARPS):
            for part in range(5):
                value = _sample(samples, offset, source + part * 32, length, window, scale)
                shared[np.uint64(target + part * 32)] = value
            source += WARPS * _HOP
            target += WARPS * _ROW


@inlined
def _windowed(x: Any, shared: Any, base: Any, j: Any, p: Any, q: Any) -> None:
    """Four samples of a column, windowed: number j, and those that a quarter turn and its mirror image make of it.

    The window is 0.5 - 0.5 cos(2 pi (column + 20 j) / 400), whose cosine is a sum of two products of the column's and
    j's cosines and sines: `p` and `q`. Two instructions a sample cost less than reading the window.
    """
    low = _HALF - p
    high = _HALF + p
    x[j] = shared[base + 20 * j + j // 8] * (low - q)
    x[20 - j] = shared[base + 20 * (20 - j) + (20 - j) // 8] * (low + q)
    x[10 - j] = shared[base + 20 * (10 - j) + (10 - j) // 8] * (high - q)
    x[10 + j] = shared[base + 20 * (10 + j) + (10 + j) // 8] * (high + q)


@inlined
def _column(shared: Any, table: Any, column: Any, lane: Any) -> None:
    """First pass: one column of 20 samples, windowed, transformed, turned, to the exchange."""
    x = cuda.local.array(20, float32)
    base = lane * _ROW + column
    cosine = table[column, 0]
    sine = table[column, 1]
    x[0] = shared[base] * (_HALF - _HALF * cosine)
    x[5] = shared[base + 100] * (_HALF - _HALF * sine)
    x[10] = shared[base + 201] * (_HALF + _HALF * cosine)
    x[15] = shared[base + 301] * (_HALF + _HALF * sine)
    _windowed(x, shared, base, 1, cosine * _COSINE_1, sine * _SINE_1)
    _windowed(x, shared, base, 2, cosine * _COSINE_2, sine * _SINE_2)
    _windowed(x, shared, base, 3, cosine * _SINE_2, sine * _COSINE_2)
    _windowed(x, shared, base, 4, cosine * _SINE_1, sine * _COSINE_1)
    for a in range(4):
        r0, r1, i1, r2, i2 = _real_5(
            x[5 * a], x[(5 * a + 4) % 20], x[(5 * a + 8) % 20], x[(5 * a + 12) % 20], x[(5 * a + 16) % 20]
        )
        x[5 * a] = r0
        x[(5 * a + 4) % 20] = r1
        x[(5 * a + 16) % 20] = i1
        x[(5 * a + 8) % 20] = r2
        x[(5 * a + 12) % 20] = i2
    # Rows 0 and 10 are the transform of 40 sums of samples, which go where the packed numbers of row 0 are looked for.
    place = (column & 1) * 640 + (column >> 1) * 32 + lane
    shared[_EXCHANGE + place] = x[0] + x[10]
    shared[_EXCHANGE + 320 + place] = x[5] + x[15]
    place = column * 32 + lane
    _put(shared, 5, place, x[0] - x[10], x[15] - x[5], table[column, 8], table[column, 9])
    r0, i0, r1, i1, r2, i2, r3, i3 = _complex_4(x[4], x[16], x[9], x[1], x[14], x[6], x[19], x[11])
    _put(shared, 4, place, r0, -i0, table[column, 6], table[column, 7])
    _put(shared, 1, place, r1, i1, table[column, 0], table[column, 1])
    _put(shared, 6, place, r2, i2, table[column, 10], table[column, 11])
    _put(shared, 9, place, r3, -i3, table[column, 16], table[column, 17])
    r0, i0, r1, i1, r2, i2, r3, i3 = _complex_4(x[8], x[12], x[13], x[17], x[18], x[2], x[3], x[7])
    _put(shared, 8, place, r0, -i0, table[column, 14], table[column, 15])
    _put(shared, 3, place, r1, -i1, table[column, 4], table[column, 5])
    _put(shared, 2, place, r2, i2, table[column, 2], table[column, 3])
    _put(shared, 7, place, r3, i3, table[column, 12], table[column, 13])


@inlined
def _complex_20(re: Any, im: Any) -> None:
    """DFT of 20 complex numbers in place: X[k] is left where k = (5 a + 16 b) % 20 says (5 a + 4 b) % 20."""
    for a in range(4):
        n0 = 5 * a
        n1 = (5 * a + 4) % 20
        n2 = (5 * a + 8) % 20
        n3 = (5 * a + 12) % 20
        n4 = (5 * a + 16) % 20
        p0, p1, q1, p2, q2 = _real_5(re[n0], re[n1], re[n2], re[n3], re[n4])
        r0, r1, s1, r2, s2 = _real_5(im[n0], im[n1], im[n2], im[n3], im[n4])
        re[n0] = p0
        im[n0] = r0
        re[n1] = p1 - s1
        im[n1] = q1 + r1
        re[n4] = p1 + s1
        im[n4] = r1 - q1
        re[n2] = p2 - s2
        im[n2] = q2 + r2
        re[n3] = p2 + s2
        im[n3] = r2 - q2
    for b in range(5):
        m0 = 4 * b
        m1 = (4 * b + 5) % 20
        m2 = (4 * b + 10) % 20
        m3 = (4 * b + 15) % 20
        r0, i0, r1, i1, r2, i2, r3, i3 = _complex_4(re[m0], im[m0], re[m1], im[m1], re[m2], im[m2], re[m3], im[m3])
        re[m0] = r0
        im[m0] = i0
        re[m1] = r1
        im[m1] = i1
        re[m2] = r2
        im[m2] = i2
        re[m3] = r3
        im[m3] = i3


@inlined
def _slot(k: Any) -> Any:
    """Where `_complex_20` left X[k]: k is 5 a + 16 b, so a = k % 4 and b = k % 5, and the slot is 5 a + 4 b."""
    return (5 * (k % 4) + 4 * (k % 5)) % 20


@inlined
def _row(shared: Any, unpack: Any, row: Any, lane: Any) -> None:
    """Second pass: one row of 20 complex numbers, transformed, as the power of 20 bins; row 0 stands for 0 and 10."""
    re = cuda.local.array(20, float32)
    im = cuda.local.array(20, float32)
    place = row * 1280 + lane
    for i in range(20):
        re[i] = shared[_EXCHANGE + place + 32 * i]
        im[i] = shared[_EXCHANGE + place + 640 + 32 * i]
    _complex_20(re, im)
    if row == 0:
        shared[99 * 32 + lane] = re[10] * re[10] + im[10] * im[10]
        for k in range(1, 10):
            m = _slot(k)
            n = _slot(20 - k)
            er = re[m] + re[n]
            ei = im[m] - im[n]
            dr = im[m] + im[n]
            di = re[n] - re[m]
            tr = dr * unpack[k, 0] - di * unpack[k, 1]
            ti = dr * unpack[k, 1] + di * unpack[k, 0]
            shared[np.uint64((10 * k - 1) * 32 + lane)] = _QUARTER * ((er + tr) * (er + tr) + (ei + ti) * (ei + ti))
            shared[np.uint64((199 - 10 * k) * 32 + lane)] = _QUARTER * ((er - tr) * (er - tr) + (ei - ti) * (ei - ti))
    else:
        for k in range(10):
            m = _slot(k)
            shared[np.uint64((row - 1 + 20 * k) * 32 + lane)] = re[m] * re[m] + im[m] * im[m]
            n = _slot(19 - k)
            shared[np.uint64((19 - row + 20 * k) * 32 + lane)] = re[n] * re[n] + im[n] * im[n]


@inlined
def _no_turn(
    shared: Any, weights: Any, places: Any, lane: Any, warp: Any, gain: Any, shift: Any, least: Any, greatest: Any
) -> Any:
    """Before the first turn."""
    return least, greatest


def _turn(before: Any, number: int, turn: tables.Turn, row_words: int) -> Any:
    """A function for turns up to this one: each warp makes one mel bin of its 32 frames in a turn.

    A function for each, because a turn's number of weights is a constant then, and its loop is unrolled. Returns the
    least and the greatest value of a lane so far.
    """
    first, pairs, filter_count = turn
    forwards = number % 2 == 0
    mel_first = number * WARPS

    @inlined
    def turns(
        shared: Any, weights: Any, places: Any, lane: Any, warp: Any, gain: Any, shift: Any, least: Any, greatest: Any
    ) -> Any:
        least, greatest = before(shared, weights, places, lane, warp, gain, shift, least, greatest)
        order = warp if forwards else WARPS - 1 - warp
        if order < filter_count:
            place = np.uint64(places[number, warp] + lane)
            total = _ZERO
            for pair in range(pairs):
                total += weights[first + warp * pairs + pair, 0] * shared[place + np.uint64(64 * pair)]
                total += weights[first + warp * pairs + pair, 1] * shared[place + np.uint64(64 * pair + 32)]
            value = _F32(math.log10(max(total, _POWER_MIN))) * gain + shift
            shared[np.uint64(_EXCHANGE + lane * row_words + mel_first + order)] = value
            least = min(least, value)
            greatest = max(greatest, value)
        return least, greatest

    return turns


def log_mel(bin_count: int) -> Callable[..., None]:
    """The kernel for `bin_count` mel bins; grid: tiles of the longest chunk x chunks; block: LOG_MEL_BLOCK.

    Its arguments: `samples` int16 or float32 [..], `chunks` int32 [chunks, CHUNK_FIELDS], `frames` float32 or float16
    [.. * bin_count], `extremes` float32 [2, frames] (of each frame of a normalised chunk the least value, then of each
    the greatest) and `scale` (what a sample is multiplied with).
    """
    filters = tables.filters(bin_count, WARPS, TILE_FRAMES)
    all_weights, all_places = filters.weights, filters.places
    row_words = bin_count + 1
    parts = -(-bin_count // 32)
    all_turns = _no_turn
    for number, turn in enumerate(filters.turns):
        all_turns = _turn(all_turns, number, turn, row_words)

    def kernel(samples: Any, chunks: Any, frames: Any, extremes: Any, scale: Any) -> None:
        lane = cuda.threadIdx.x & 31  # said to the compiler: an index that cannot be negative is not tested
        warp = cuda.threadIdx.y & 15
        chunk = cuda.blockIdx.y
        first = cuda.blockIdx.x * TILE_FRAMES
        frame_count = chunks[chunk, FRAME_COUNT] - first
        if frame_count <= 0:
            return
        shared = cuda.shared.array(0, float32)
        table = cuda.const.array_like(_COLUMN_TABLE)
        unpack = cuda.const.array_like(_UNPACK_TABLE)
        weights = cuda.const.array_like(all_weights)
        places = cuda.const.array_like(all_places)
        _stage(shared, samples, chunks, chunk, first, lane, warp, scale)
        cuda.syncthreads()
        _column(shared, table, warp, lane)
        _column(shared, table, warp + WARPS, lane)
        cuda.syncthreads()
        _row(shared, unpack, warp, lane)
        cuda.syncthreads()
        normalised = chunks[chunk, NORMALISED] != 0
        gain = _QUARTER if normalised else _ONE
        shift = _ONE if normalised else _ZERO
        least, greatest = all_turns(shared, weights, places, lane, warp, gain, shift, _HUGE, -_HUGE)
        ends = _ENDS + warp * 64 + lane
        shared[ends] = least
        shared[ends + 32] = greatest
        cuda.syncthreads()
        frame_offset = chunks[chunk, FRAME_OFFSET] + first
        target = (frame_offset + warp) * bin_count + lane
        for turn in range(_FRAME_TURNS):
            if warp + turn * WARPS < min(frame_count, TILE_FRAMES):
                for part in range(parts):
                    if part * 32 + lane < bin_count:
                        value = shared[_EXCHANGE + (warp + turn * WARPS) * row_words + part * 32 + lane]
                        frames[np.uint64(target + turn * WARPS * bin_count + part * 32)] = value
        if warp == 0 and lane < frame_count and normalised:
            for other in range(1, WARPS):
                least = min(least, shared[_ENDS + other * 64 + lane])
                greatest = max(greatest, shared[_ENDS + other * 64 + lane + 32])
            extremes[0, np.uint64(frame_offset + lane)] = least
            extremes[1, np.uint64(frame_offset + lane)] = greatest

    return kernel


def clamp(bin_count: int) -> Callable[..., None]:
    """Whisper's clamp of normalised clips: nothing below a clip's maximum less 8 decades.

    Grid: CLAMP_PARTS x chunks; block: CLAMP_THREADS. Only frames that have such a value are read and written, which
    their least value tells. `chunks`, `frames` and `extremes` are those of `log_mel`.
    """
    parts = -(-bin_count // 32)

    def kernel(chunks: Any, frames: Any, extremes: Any) -> None:
        thread = cuda.threadIdx.x & (CLAMP_THREADS - 1)
        chunk = cuda.blockIdx.y
        if chunks[chunk, NORMALISED] == 0:
            return
        frame_count = chunks[chunk, FRAME_COUNT]
        frame_offset = chunks[chunk, FRAME_OFFSET]
        reduced = cuda.shared.array(CLAMP_THREADS, float32)
        greatest = -_HUGE
        for frame in range(thread, frame_count, CLAMP_THREADS):
            greatest = max(greatest, extremes[1, np.uint64(frame_offset + frame)])
        reduced[thread] = greatest
        cuda.syncthreads()
        half = CLAMP_THREADS // 2
        while half > 0:
            if thread < half:
                reduced[thread] = max(reduced[thread], reduced[thread + half])
            cuda.syncthreads()
            half = half // 2
        floor = reduced[0] - _RANGE
        lane = thread & 31
        row = cuda.blockIdx.x * (CLAMP_THREADS // 32) + (thread >> 5)
        for frame in range(row, frame_count, CLAMP_PARTS * (CLAMP_THREADS // 32)):
            if extremes[0, np.uint64(frame_offset + frame)] < floor:
                place = (frame_offset + frame) * bin_count + lane
                for part in range(parts):
                    if part * 32 + lane < bin_count:
                        value = _F32(frames[np.uint64(place + part * 32)])
                        frames[np.uint64(place + part * 32)] = max(value, floor)

    return kernel
