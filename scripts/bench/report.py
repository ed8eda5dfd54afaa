"""Figures for people: a table per run, a line per scenario at the end."""

from __future__ import annotations

from typing import Any

_COLUMNS = ("min", "p50", "p90", "p95", "p99", "p99.9", "max")
_FAULTS_SHOWN_MAX = 10
_CPU_S_MIN = 0.5  # below it a 10 ms tick is more than 2 %
_GENERATOR_BUSY = 0.9  # of a core: beyond it the generator may be what is measured


def _milliseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"


def latency_table(run: dict[str, Any]) -> list[str]:
    """Lines of a table: metrics down, percentiles across, milliseconds."""
    lines = [f"  {'ms':<18}" + "".join(f"{column:>11}" for column in _COLUMNS) + f"{'count':>12}"]
    for name, row in run["latencies_ns"].items():
        if row["count"]:
            cells = "".join(f"{_milliseconds(row[column]):>11}" for column in _COLUMNS)
            lines.append(f"  {name.replace('_', ' '):<18}{cells}{row['count']:>12,}")
    return lines


def _server_lines(server: dict[str, Any]) -> list[str]:
    if not server:
        return ["  the server's CPU and memory are unknown: give its process with --pid"]
    memory = server["memory"]
    busy = [thread for thread in server["threads"] if thread["cpu_s"] > 0]
    busy.sort(key=lambda thread: -float(thread["cpu_s"]))
    shown = ", ".join(f"{thread['name']} {thread['cpu_s']:.2f} s" for thread in busy[:6])
    threads = f"; threads: {shown}" if len(busy) > 1 else ""
    cpu = (
        f"  CPU {server['cpu_s']:.2f} s = {server['cpu_us_per_message']:.3f} us per message, "
        f"{server['cpu_us_per_stream']:.1f} us per stream{threads}"
    )
    resident = (
        f"  memory {memory['before_kib'] / 1024:.1f} MB before, {memory['peak_kib'] / 1024:.1f} at its peak, "
        f"{memory['after_kib'] / 1024:.1f} after; {server['memory_bytes_per_stream']:,.0f} bytes per open stream"
    )
    lines = [cpu, resident]
    if server["cpu_s"] < _CPU_S_MIN:
        lines.append("  CPU time comes in steps of 10 ms, and this is few of them: take more streams to compare it")
    return lines


def _fault_line(fault: dict[str, Any]) -> str:
    received = f"{fault['message_count']} messages, {fault['byte_count']} bytes"
    text = f"    stream {fault['stream']}: {fault['outcome']}, {received}"
    if fault["status"]:
        text += f", status {fault['status']}"
    if fault["differs_at"] >= 0:
        text += f", first wrong byte of the response at {fault['differs_at']}"
    if fault["error_number"]:
        text += f", errno {fault['error_number']}"
    return text


def run_lines(run: dict[str, Any]) -> list[str]:
    """All that is worth reading about one run."""
    statuses = ", ".join(f"{count:,} x {status}" for status, count in run["statuses"].items())
    complete = (
        f"  {run['complete']:,} of {run['streams']:,} streams complete ({statuses or 'no status'}), "
        f"at most {run['open_max']:,} open"
    )
    amount = (
        f"  {run['messages']:,} messages, {run['bytes']:,} bytes in {run['wall_s']:.2f} s: "
        f"{run['streams_per_s']:,.0f} streams/s, {run['messages_per_s']:,.0f} messages/s; "
        f"the generator took {run['generator_cores']:.2f} cores"
    )
    lines = [complete, amount, *latency_table(run), *_server_lines(run["server"])]
    if run["failed"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in run["outcomes"].items() if kind != "complete")
        lines.append(f"  FAILED: {kinds}")
        lines += [_fault_line(fault) for fault in run["faults"][:_FAULTS_SHOWN_MAX]]
    if run["not_started"]:
        lines.append(f"  {run['not_started']:,} streams were not started")
    if run["early_ns_max"] > 1_000_000:
        lines.append(
            f"  some messages came early, by up to {_milliseconds(run['early_ns_max'])} ms (counted as 0 late)"
        )
    if run["generator_cores"] > _GENERATOR_BUSY:
        lines.append("  careful: the generator was busy all the time, and may be the limit")
    return lines


def is_failed(result: dict[str, Any]) -> bool:
    """Whether any stream of any round went wrong or was never started."""
    return any(run["failed"] or run["not_started"] for figures in result["rounds"] for run in figures.values())


def median_run(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a server's rounds, the one whose CPU per message is the (lower) median."""
    runs: list[dict[str, Any]] = [figures[name] for figures in result["rounds"] if name in figures]
    runs.sort(key=lambda run: float(run["server"].get("cpu_us_per_message", 0.0)))
    return runs[(len(runs) - 1) // 2]


def scenario_lines(result: dict[str, Any]) -> list[str]:
    """One scenario: each server's median round in full, then the ratios of all rounds."""
    lines: list[str] = []
    for name in ("daemon", "baseline"):
        count = sum(name in figures for figures in result["rounds"])
        if count:
            lines.append(f"{name}:" if count == 1 else f"{name} (the median of {count} rounds by CPU per message):")
            lines += run_lines(median_run(result, name))
    for figure, ratio in result["ratios"].items():
        each = " ".join(f"{value:.3f}" for value in ratio["each"])
        lines.append(f"{figure.replace('_', ' ')}, daemon over baseline: median {ratio['median']:.3f} of {each}")
    return lines


def summary_lines(results: list[dict[str, Any]]) -> list[str]:
    """One line per scenario and kind of socket."""
    header = (
        "scenario",
        "sockets",
        "failed",
        "us/message",
        "us/stream",
        "x message",
        "x stream",
        "first p50",
        "late p99",
        "late max",
    )
    widths = (12, 12, 8, 12, 11, 11, 10, 11, 11, 11)
    lines = ["".join(f"{title:>{width}}" for title, width in zip(header, widths, strict=True))]
    for result in results:
        run = median_run(result, "daemon")
        failed = sum(figures["daemon"]["failed"] for figures in result["rounds"])
        server, ratios, latencies = run["server"], result["ratios"], run["latencies_ns"]
        cells = [result["scenario"], result["sockets"], f"{failed:,}"]
        cells += [f"{server[key]:.3f}" if server else "-" for key in ("cpu_us_per_message", "cpu_us_per_stream")]
        for key in ("cpu_us_per_message", "cpu_us_per_stream"):
            cells.append(f"{ratios[key]['median']:.3f}" if key in ratios else "-")
        for metric, column in (("first_byte", "p50"), ("lateness", "p99"), ("lateness", "max")):
            row = latencies[metric]
            cells.append(_milliseconds(row[column]) if row["count"] else "-")
        lines.append("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return lines
