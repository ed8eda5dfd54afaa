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
    if fault.get("shown"):
        text += f": {fault['shown']!r}"
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
    if "http" in result:
        lines += http_lines(result)
    return lines + (relay_lines(result) if "relay" in result else [])


def _length_line(result: dict[str, Any]) -> str:
    """How long the streams took, of the median run of each server: a relay must neither stretch nor cut them."""
    parts: list[str] = []
    for name in ("daemon", "baseline"):
        if any(name in figures for figures in result["rounds"]):
            row = median_run(result, name)["latencies_ns"]["whole_stream"]
            shown = [_milliseconds(row[column]) if row["count"] else "-" for column in ("p50", "p99")]
            parts.append(f"{name} {' '.join(shown)}")
    return f"  length of streams p50 p99, ms: {', '.join(parts)}"


def relay_lines(result: dict[str, Any]) -> list[str]:
    """What is measured of relays alone. CPU is by tokens, since a floor's framing counts as messages."""
    relay = result["relay"]
    through = f" through {relay['proxy']} ({relay['proxy_protocol']})" if relay["proxy"] else ""
    lines = [f"relayed{through}:"]
    for name in ("daemon", "baseline"):
        each = [figures[name]["server"].get("cpu_us_per_token", 0.0) for figures in result["rounds"] if name in figures]
        if each:
            lines.append(f"  CPU us per token, {name}: {' '.join(f'{value:.2f}' for value in each)}")
    lines.append(_length_line(result))
    for title, rows in (
        ("added to the first token", relay.get("added_to_first_token_ms", {})),
        ("client gone to upstream closed", relay.get("client_gone_ms", {})),
    ):
        for name, row in rows.items():
            if row["count"]:
                cells = " ".join(f"{column} {row[column]:.3f}" for column in ("p50", "p99", "max"))
                lines.append(f"  {title}, {name}, ms: {cells} ({row['count']} streams)")
    upstream = relay["upstream"]
    lines.append(
        f"  upstream: {upstream['request_count']:,} requests on {upstream['accepted_count']:,} connections, "
        f"{upstream['token_sent_count']:,} tokens, {upstream['aborted_count']:,} cut; "
        f"its latest token left {_milliseconds(upstream['late_ns_max'])} ms late"
    )
    return lines


def http_lines(result: dict[str, Any]) -> list[str]:
    """What is measured over HTTP alone, every round of it."""
    lines = ["over HTTP:"]
    for name, ready_s in result["http"]["ready_s"].items():
        runs: list[dict[str, Any]] = [figures[name] for figures in result["rounds"]]
        lines.append(f"  {name}: ready {ready_s:.2f} s after its start")
        rates = [run["tokens_per_s"] for run in runs if run["tokens_per_s"]["count"]]
        if rates:
            cells = ", ".join(f"{rate['min']:,} {rate['p50']:,} {rate['max']:,}" for rate in rates)
            lines.append(f"  {name}: tokens/s of a stream, min p50 max: {cells}")
        for title, figure in (
            ("CPU us per token", "cpu_us_per_message"),
            ("CPU us per stream, all threads", "cpu_us_per_stream"),
            ("CPU us per stream, main thread", "main_thread_us_per_stream"),
        ):
            each = " ".join(f"{run['server'][figure]:.3f}" for run in runs)
            lines.append(f"  {name}: {title}: {each}")
        if result["interval_ms"] and name == "daemon":
            late = ", ".join(_milliseconds(run["late_ns_max"]) for run in runs)
            lines.append(f"  {name}: the latest token of a stream came {late} ms late")
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
    widths = (15, 12, 8, 12, 11, 11, 10, 11, 11, 11)
    lines = ["".join(f"{title:>{width}}" for title, width in zip(header, widths, strict=True))]
    for result in results:
        run = median_run(result, "daemon")
        failed = sum(figures["daemon"]["failed"] for figures in result["rounds"])
        server, ratios, latencies = run["server"], result["ratios"], run["latencies_ns"]
        cells = [result["scenario"], result["sockets"], f"{failed:,}"]
        cells += [f"{server[key]:.3f}" if server else "-" for key in ("cpu_us_per_message", "cpu_us_per_stream")]
        for key in ("cpu_us_per_message", "cpu_us_per_stream"):
            cells.append(f"{ratios[key]['median']:.3f}" if key in ratios else "-")
        first = "first_token" if "http" in result else "first_byte"
        for metric, column in ((first, "p50"), ("lateness", "p99"), ("lateness", "max")):
            row = latencies.get(metric, {"count": 0})
            cells.append(_milliseconds(row[column]) if row["count"] else "-")
        lines.append("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return lines
