"""Latency curves as a picture. matplotlib is asked for only here: nothing else needs it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scripts.bench.report import median_run

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = ("first_byte", "between_messages", "lateness", "whole_stream")


def load_matplotlib() -> Any:  # noqa: ANN401 (an optional module: its types may not be there)
    """Load pyplot without a display. RuntimeError says what to install."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise RuntimeError("--plot needs matplotlib: pip install 'streaming-daemon[plot]'") from error


def draw_memory(results: list[dict[str, Any]], file: Path) -> None:
    """The daemon's VmRSS over the tokens that it has relayed, a curve for each result's first round."""
    pyplot = load_matplotlib()
    figure, axis = pyplot.subplots(figsize=(9, 4))
    for result in results:
        curve = result["rounds"][0]["daemon"]["server"]["memory_curve"]
        label = f"{result['streams']} streams at a time, {result['sockets']}"
        axis.plot([count / 1e6 for count, _ in curve], [kib / 1024 for _, kib in curve], label=label)
    axis.set(xlabel="tokens relayed by one process, millions", ylabel="VmRSS, MB")
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])  # a flat line is to be seen
    axis.grid(visible=True, alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """A row for each scenario and a column for each metric: the share of values that took longer than x."""
    pyplot = load_matplotlib()
    figure, axes = pyplot.subplots(
        len(results), len(_SHOWN), figsize=(4.5 * len(_SHOWN), 3.2 * len(results)), squeeze=False
    )
    for row, result in zip(axes, results, strict=True):
        names = [name for name in ("daemon", "baseline") if any(name in figures for figures in result["rounds"])]
        for axis, metric in zip(row, _SHOWN, strict=True):
            for name in names:
                values, shares = median_run(result, name)["distributions_ns"][metric]
                if values:
                    longer = [max(1 - share, 1e-7) for share in shares]
                    axis.step([max(value, 1) / 1e6 for value in values], longer, where="post", label=name)
            # First bytes spread over magnitudes; the others crowd around a pace or an expected length.
            scale = "log" if metric == "first_byte" else "linear"
            axis.set(xscale=scale, yscale="log", xlabel="ms", ylim=(1e-5, 1))
            axis.set_title(f"{result['scenario']} ({result['sockets']}): {metric.replace('_', ' ')}", fontsize=9)
            axis.grid(visible=True, alpha=0.3)
        row[0].set_ylabel("share that took longer")
        row[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
