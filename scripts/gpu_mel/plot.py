"""Pictures of what was measured, where matplotlib is installed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.gpu_mel.rig import Results


def draw(results: Results, folder: Path) -> None:
    """Throughput over the number of streams, and the latency of one chunk over its length."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return
    if found := results.get("streams, chunks of 1 s"):
        _streams(pyplot, found).savefig(folder / "mel-gpu-streams.png", dpi=110)
    if found := results.get("one chunk in and out, ms"):
        _latency(pyplot, found).savefig(folder / "mel-gpu-latency.png", dpi=110)


def _streams(pyplot: Any, found: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label in dict.fromkeys(name.partition(", ")[2] for name in found):
        rows = [(int(name.split()[0]), value["audio-s/s"]) for name, value in found.items() if name.endswith(label)]
        axes.loglog(*zip(*rows, strict=True), marker="o", label=label)
    axes.set(xlabel="streams, a second of audio each", ylabel="seconds of audio a second")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    return figure


def _latency(pyplot: Any, found: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label in dict.fromkeys(name.rpartition(", ")[0] for name in found):
        rows = [
            (int(name.rpartition(", ")[2].split()[0]), value)
            for name, value in found.items()
            if name.rpartition(", ")[0] == label
        ]
        seconds = [second for second, _ in rows]
        line = axes.plot(seconds, [value["p50"] for _, value in rows], marker="o", label=f"{label}, p50")[0]
        axes.plot(seconds, [value["p99"] for _, value in rows], linestyle=":", color=line.get_color(), label="p99")
    axes.set(xlabel="seconds of audio in the chunk", ylabel="milliseconds in and out", ylim=(0, None))
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    return figure
