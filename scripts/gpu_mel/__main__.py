"""Takes the measurements that are asked for and writes what they found."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

from scripts import gpu_mel
from scripts.gpu_mel import backend, plot, speed, streams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scripts.gpu_mel.rig import Results

MEASUREMENTS: dict[str, tuple[Callable[[Results], None], ...]] = {
    "engine": (speed.device, speed.bus, speed.latency, streams.streams, streams.realtime),
    "backend": (backend.backend,),
}


def _environment() -> Results:
    found: Results = {"python": platform.python_version(), "machine": platform.platform()}
    for name in ("numba", "numba-cuda", "numpy", "pycuda", "torch", "torchaudio"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    found["GPU"] = done.stdout.strip()
    return found


def _markdown(results: Results) -> str:
    lines: list[str] = []
    for title, found in results.items():
        lines += [f"## {title}", ""]
        if isinstance(found, dict):
            rows = cast("dict[str, object]", found)
            lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        else:
            lines.append(f"{found}")
        lines.append("")
    return "\n".join(lines)


def _run(measure: Callable[[Results], None], results: Results) -> bool:
    name, started = measure.__name__, time.perf_counter()
    try:
        measure(results)
    except Exception as error:  # noqa: BLE001  (a GPU's time is short: the others go on)
        results[f"{name} failed"] = "".join(traceback.format_exception(error))
        return False
    finally:
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return True


def _write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (folder / "results.md").write_text(_markdown(results), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the measurements; 1 if a part of one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_mel", description=(gpu_mel.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("measurements", nargs="*", help=f"of {', '.join(MEASUREMENTS)} (default: all)")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--audio", help="what `backend` streams: mono, 16 kHz (default: chords)")
    options = parser.parse_args(arguments)
    names = cast("list[str]", options.measurements) or list(MEASUREMENTS)
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        parser.error(f"unknown measurement {', '.join(unknown)}: there are {', '.join(MEASUREMENTS)}")
    logging.basicConfig(level=logging.WARNING)
    results: Results = {"environment": _environment()}
    if options.audio is not None:
        results["audio"] = options.audio
    failed = False
    for measure in (measure for name in names for measure in MEASUREMENTS[name]):
        failed |= not _run(measure, results)
        if options.out is not None:
            _write(results, options.out)
    if options.out is not None:
        plot.draw(results, options.out)
    print(_markdown(results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
