"""`python -m scripts.bench_mel`: time the CPU's mel features beside librosa's and transformers', on one core.

Each round times everything in turn, five times each, so that a machine that slows down slows all alike and each finds
the caches as it left them. What is printed is the median, and how many times as long as ours it is. A library that is
not installed is left out, and this is said; `pip install '.[mel-check]'` installs both. Exit 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPEATS = 5
OURS = "ours: one chunk, raw"
LIBROSA = "librosa: melspectrogram (no logarithm)"
TRANSFORMERS = "transformers: WhisperFeatureExtractor"
# How many times as long as ours each must take.
BARS = {LIBROSA: 4.0, TRANSFORMERS: 15.0}


class Row(NamedTuple):
    """Something to time."""

    name: str
    run: Callable[[], object]


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # forbidden by a None in sys.modules
        return False


def _our_rows(samples: Any) -> list[Row]:  # noqa: ANN401  (float32 [n])
    numpy: Any = importlib.import_module("numpy")
    cpu: Any = importlib.import_module("backends.mel.cpu")
    stream: Any = importlib.import_module("backends.mel.stream")
    integers = (samples * 32767).astype(numpy.int16)
    engines = {bin_count: cpu.CpuEngine(bin_count) for bin_count in (80, 128)}

    def streamed(chunk: int, normalisation: str, given: Any, bin_count: int = 80) -> Callable[[], object]:  # noqa: ANN401
        def run() -> object:
            opened = stream.MelStream(engines[bin_count], normalisation, given.dtype.type)
            frames = [opened.push(given[first : first + chunk]) for first in range(0, len(given), chunk)]
            return [*frames, opened.finish()]

        return run

    whole = len(samples)
    rows = [
        Row(OURS, streamed(whole, "none", samples)),
        Row("ours: the same of int16", streamed(whole, "none", integers)),
        Row("ours: the same, 128 bins", streamed(whole, "none", samples, 128)),
        Row("ours: running maximum", streamed(whole, "running", samples)),
        Row("ours: in chunks of 100 ms", streamed(1600, "none", samples)),
        Row("ours: in chunks of 10 ms", streamed(160, "none", samples)),
    ]
    if whole % 480_000 == 0:
        rows.append(Row("ours: Whisper's window", streamed(whole, "whisper", samples)))
    return rows


def _their_rows(samples: Any) -> list[Row]:  # noqa: ANN401
    numpy: Any = importlib.import_module("numpy")
    rows: list[Row] = []
    if _is_installed("scipy"):
        fft: Any = importlib.import_module("scipy.fft")
        pieces = numpy.ascontiguousarray(numpy.lib.stride_tricks.sliding_window_view(samples, 400)[::160])
        doubles = pieces.astype(numpy.float64)
        rows.append(Row("scipy: the transforms alone, float32", partial(fft.rfft, pieces)))
        rows.append(Row("scipy: the transforms alone, float64", partial(fft.rfft, doubles)))
        rows.append(Row("numpy: the transforms alone, float64", partial(numpy.fft.rfft, doubles)))
    if _is_installed("librosa"):
        feature: Any = importlib.import_module("librosa").feature
        asked = {"sr": 16_000, "n_fft": 400, "hop_length": 160, "n_mels": 80, "pad_mode": "reflect"}
        rows.append(Row(LIBROSA, partial(feature.melspectrogram, y=samples, **asked)))
    if _is_installed("transformers"):
        extractor: Any = importlib.import_module("transformers").WhisperFeatureExtractor(feature_size=80)
        wanted = {"sampling_rate": 16_000, "return_tensors": "np", "padding": "longest"}
        rows.append(Row(TRANSFORMERS, partial(extractor, samples, **wanted)))
    return rows


def _time(rows: Sequence[Row], rounds: int) -> dict[str, float]:
    """The median of each in milliseconds, after one run that does not count."""
    taken_ms: dict[str, list[float]] = {row.name: [] for row in rows}
    for row in rows:
        row.run()
    for _ in range(rounds):
        for row in rows:
            for _ in range(REPEATS):
                before_ns = time.perf_counter_ns()
                row.run()
                taken_ms[row.name].append((time.perf_counter_ns() - before_ns) / 1e6)
    return {name: statistics.median(values) for name, values in taken_ms.items()}


def _print_table(seconds: int, taken_ms: dict[str, float]) -> bool:
    """Print one table; true if every bar that could be measured is reached."""
    print(f"\n| {seconds} s of audio, 80 bins, median | ms | times ours | bar |\n|---|---|---|---|")
    reached = True
    for name, milliseconds in taken_ms.items():
        ratio = milliseconds / taken_ms[OURS]
        bar = BARS.get(name)
        reached = reached and (bar is None or ratio >= bar)
        mark = "" if bar is None else f"{bar:.0f}: {'reached' if ratio >= bar else 'MISSED'}"
        print(f"| {name} | {milliseconds:.3f} | {ratio:.1f} | {mark} |")
    return reached


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every bar reached. 1: one was not."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_mel", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="run on it (default: the last)")
    parser.add_argument("--rounds", type=int, default=21, help="how often all are timed (default: %(default)s)")
    parser.add_argument("--seconds", type=int, nargs="+", default=[1, 30], help="lengths of audio (default: 1 30)")
    given = parser.parse_args(arguments)
    os.sched_setaffinity(0, {given.core})  # before NumPy counts cores and starts as many threads
    numpy: Any = importlib.import_module("numpy")
    print(f"Python {platform.python_version()}, numpy {numpy.__version__}, core {given.core}, {given.rounds} rounds")
    for library in ("scipy", "librosa", "transformers"):
        if not _is_installed(library):
            print(f"{library} is not installed: left out")
    reached = True
    for seconds in given.seconds:
        samples = numpy.random.default_rng(seconds).standard_normal(seconds * 16_000).astype(numpy.float32) * 0.1
        rows = [*_our_rows(samples), *_their_rows(samples)]
        reached = _print_table(seconds, _time(rows, given.rounds)) and reached
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
