"""One run of the HTTP clients against one server: httpgen.c, built for the run, and the server's CPU and memory."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench import completion_events
from scripts.bench.load import Sampler

if TYPE_CHECKING:
    from collections.abc import Generator

SOURCE = Path(__file__).with_name("httpgen.c")
_LATENCIES = ("first_token", "whole_stream")
_PROGRESS = "progress "


@dataclass(frozen=True)
class HttpPlan:
    """What is to be run."""

    streams: int  # open at a time
    total: int
    tokens: int  # of each stream
    interval_ms: float = 0.0  # 0: lateness is not measured
    rate_per_s: float = 0.0  # streams started; 0: as fast as possible
    stall_timeout_s: float = 60.0


@contextlib.contextmanager
def built() -> Generator[Path]:
    """The generator, compiled. RuntimeError where there is no compiler, or it has something to say."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("the HTTP scenarios' clients are written in C: install a compiler (Debian's gcc)")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        program = Path(folder) / "httpgen"
        command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(SOURCE)]
        compiling = subprocess.run(command, check=False, capture_output=True, text=True)
        if compiling.returncode != 0:
            raise RuntimeError(f"{SOURCE.name} could not be compiled:\n{compiling.stderr}")
        yield program


def _arguments(plan: HttpPlan, port: int, folder: Path) -> list[str]:
    """The generator's; what it sends and expects goes into files."""
    texts = {
        "b": completion_events.request(plan.tokens, port),
        "e": completion_events.TEMPLATE.encode(),
        "l": completion_events.AFTER_LAST_NUMBER.encode(),
    }
    arguments: list[str] = []
    for letter, text in texts.items():
        file = folder / letter
        file.write_bytes(text)
        arguments += [f"-{letter}", str(file)]
    numbers = {
        "p": port,
        "m": plan.tokens,
        "c": min(plan.streams, plan.total),
        "n": plan.total,
        "r": plan.rate_per_s,
        "i": round(plan.interval_ms * 1e6),
        "s": plan.stall_timeout_s,
    }
    for letter, number in numbers.items():
        arguments += [f"-{letter}", str(number)]
    return arguments


def _figures(told: dict[str, Any]) -> dict[str, Any]:
    """What the generator told, in the form of `load.run_load`."""
    wall_s = told["wall_s"]
    return {
        **{key: told[key] for key in ("streams", "complete", "not_started", "outcomes", "statuses", "faults")},
        **{key: told[key] for key in ("messages", "bytes", "receives", "open_max", "wall_s", "early_ns_max")},
        "failed": told["streams"] - told["complete"],
        "late_ns_max": told["late_ns_max"],
        "tokens_per_s": told["tokens_per_s"],  # of each stream, from its first token to its last
        "streams_per_s": told["streams"] / wall_s,
        "messages_per_s": told["messages"] / wall_s,
        "latencies_ns": {name: told[name] for name in _LATENCIES},
        "generator_cores": told["generator_cpu_s"] / wall_s,
        "interrupted": False,
    }


def run_http_load(program: Path, plan: HttpPlan, port: int, pid: int = 0) -> dict[str, Any]:
    """Run one plan against the server on that port of 127.0.0.1, `pid` being its process. The figures, for JSON."""
    sampler = Sampler(pid)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = [str(program), *_arguments(plan, port, Path(folder))]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None, "a pipe was asked for"
            try:
                for line in process.stdout:
                    if line.startswith(_PROGRESS):
                        sampler.sample(int(line.split()[1]))
                    else:
                        told = json.loads(line)
            except BaseException:
                process.kill()
                raise
    if process.returncode != 0 or not told:
        raise RuntimeError(f"the clients ended with {process.returncode}")
    figures = _figures(told)
    server = sampler.result(figures["messages"], figures["streams"], figures["open_max"])
    if server:
        main = next(thread["cpu_s"] for thread in server["threads"] if thread["tid"] == pid)
        server["main_thread_us_per_stream"] = main * 1e6 / max(1, figures["streams"])
    return {**figures, "server": server}
