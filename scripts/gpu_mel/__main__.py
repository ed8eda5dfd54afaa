"""Runs the parts that are asked for and writes what they found."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

from scripts import gpu_mel
from scripts.gpu_mel import backend, checks, plot, profilers, several, speed, streams, through_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scripts.gpu_mel.rig import Results

PARTS: dict[str, Callable[[Results], None]] = {
    "check": checks.check,
    "sanitize": checks.sanitize,
    "device": speed.device,
    "bus": speed.bus,
    "latency": speed.latency,
    "streams": streams.streams,
    "realtime": streams.realtime,
    "leaks": checks.leaks,
    "profile": profilers.profile,
}
# Asked for by name alone.
OTHERS: dict[str, Callable[[Results], None]] = {
    "backend": backend.backend,
    "daemon": through_daemon.through_daemon,
    "several": several.several,
    "faults": several.faults,
    "kernel": speed.kernel,
    "small": checks.small,
    "busy": profilers.busy,
    "driver": several.driver,
    "fault_paced": several.fault_paced,
    "fault_hard": several.fault_hard,
    "fault_trap": several.fault_trap,
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


def _run(name: str, results: Results) -> bool:
    started = time.perf_counter()
    try:
        (PARTS | OTHERS)[name](results)
    except Exception as error:  # noqa: BLE001  (a GPU's time is short: the other parts go on)
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
    """Run the parts; 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_mel", description=(gpu_mel.__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join([*PARTS, *OTHERS])} (default: the first {len(PARTS)})")
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--gpus", type=int, help="use so many GPUs at most (default: all)")
    parser.add_argument("--audio", help="what `backend`, `daemon` and `faults` stream: mono, 16 kHz (default: chords)")
    options = parser.parse_args(arguments)
    if options.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(options.gpus)))
    logging.basicConfig(level=logging.WARNING)
    results: Results = {"environment": _environment()}
    if options.audio is not None:
        results["audio"] = options.audio
    failed = False
    for name in cast("list[str]", options.parts) or PARTS:
        failed |= not _run(name, results)
        if options.out is not None:
            _write(results, options.out)
    if options.out is not None:
        plot.draw(results, options.out)
    print(_markdown(results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
