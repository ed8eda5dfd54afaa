"""One run of the load generator over HTTP against one server, and the server's CPU and memory."""

from __future__ import annotations

import contextlib
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.bench import completion_events, load, processes, reading, tables

if TYPE_CHECKING:
    from collections.abc import Generator

    from scripts.bench.records import Tables


@dataclass(frozen=True)
class HttpPlan:
    """What is to be run."""

    streams: int  # open at a time
    total: int
    tokens: int  # of each stream
    interval_ms: float = 0.0  # 0: lateness is not measured
    rate_per_s: float = 0.0  # streams started; 0: as fast as possible
    stall_timeout_s: float = 60.0


def _exchange(plan: HttpPlan, port: int) -> tables.Exchange:
    before, _, behind = completion_events.TEMPLATE.partition(completion_events.VARYING)
    middle, _, rest = behind.partition(completion_events.NUMBER)
    texts = (before, middle, rest, completion_events.AFTER_LAST_NUMBER)
    return tables.Exchange(completion_events.request(plan.tokens, port), *(text.encode() for text in texts))


@contextlib.contextmanager
def _prepared(plan: HttpPlan, port: int) -> Generator[Tables]:
    """Tables and epoll, closed in the end."""
    with contextlib.closing(select.epoll()) as epoll:
        memory = tables.allocate(min(plan.streams, plan.total), "", b"", b"", port, _exchange(plan, port))
        run = memory.run[0]
        run.epoll_fd = epoll.fileno()
        run.total_count = plan.total
        run.interval_ns = round(plan.interval_ms * 1e6)
        run.messages_expected = plan.tokens
        run.start_interval_ns = round(1e9 / plan.rate_per_s) if plan.rate_per_s else 0
        reading.turns_until(memory, 0)  # compiled, or loaded from the cache, before the clock starts
        yield memory


def run_http_load(plan: HttpPlan, port: int, pid: int = 0) -> dict[str, Any]:
    """Run one plan against the server on that port of 127.0.0.1, `pid` being its process. The figures, for JSON."""
    processes.raise_open_files_limit(min(plan.streams, plan.total))
    with _prepared(plan, port) as memory:
        figures = load.measured(memory, pid, plan.stall_timeout_s)
        figures["late_ns_max"] = int(memory.run[0].late_ns_max)
    figures["tokens_per_s"] = figures["latencies_ns"].pop("tokens_per_s")  # of each stream, from its first to its last
    server = figures["server"]
    if server:
        main = next(thread["cpu_s"] for thread in server["threads"] if thread["tid"] == pid)
        server["main_thread_us_per_stream"] = main * 1e6 / max(1, figures["streams"])
    return figures
