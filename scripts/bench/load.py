"""One run of the generator against one server: prepare, turn, judge what is left, and gather the figures."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scripts.bench import processes, reading, scanning, tables
from scripts.bench.percentiles import distribution, percentiles_ns
from scripts.bench.records import FAULT

if TYPE_CHECKING:
    from collections.abc import Generator

    from scripts.bench.records import Tables

_SLICE_NS = 250_000_000  # how often Python looks up: signals, the server's memory, a stall
_LISTEN_BACKLOG = 128


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    streams: int  # open at a time
    total: int
    handoff: bytes  # JSON, {number} is the stream's own
    expected: bytes = b""  # the whole response with {number}; empty: not checked
    messages: int = -1  # -1: any number
    interval_ms: float = 0.0  # 0: lateness is not measured
    rate_per_s: float = 0.0  # 0: as fast as possible
    tcp: bool = False
    socket_type: socket.SocketKind = socket.SOCK_SEQPACKET
    connect_timeout_s: float = 5.0
    stall_timeout_s: float = 60.0


@dataclass
class Memory:
    """VmRSS of the server around one run."""

    before_kib: int = 0
    peak_kib: int = 0
    after_kib: int = 0


class Sampler:
    """The server's CPU time and memory during one run. Without a process (pid 0) it knows nothing."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._curve: list[tuple[int, int]] = []
        self._before = processes.usage(pid) if pid else None
        resident = self._before.resident_kib if self._before else 0
        self.memory = Memory(resident, resident, resident)

    def sample(self, message_count: int) -> None:
        """Called between slices. RuntimeError when the server is gone."""
        if self._pid:
            try:
                resident_kib = processes.resident_kib(self._pid)
                self.memory.peak_kib = max(self.memory.peak_kib, resident_kib)
                self._curve.append((message_count, resident_kib))
            except OSError as error:
                raise RuntimeError(f"the server (process {self._pid}) ended during the run") from error

    def result(self, message_count: int, stream_count: int, open_count_max: int) -> dict[str, Any]:
        """CPU and memory figures, per message and per stream."""
        if self._before is None:
            return {}
        after = processes.usage(self._pid)
        self.memory.after_kib = after.resident_kib
        cpu_s = after.cpu_s - self._before.cpu_s
        threads = [
            {"tid": tid, "name": name, "cpu_s": cpu - self._before.threads.get(tid, ("", 0.0))[1]}
            for tid, (name, cpu) in after.threads.items()
        ]
        return {
            "cpu_s": cpu_s,
            "cpu_us_per_message": cpu_s * 1e6 / max(1, message_count),
            "cpu_us_per_stream": cpu_s * 1e6 / max(1, stream_count),
            "threads": threads,
            "memory": asdict(self.memory),
            "memory_curve": [*self._curve, (message_count, after.resident_kib)],  # messages so far, KiB
            "memory_bytes_per_stream": (self.memory.peak_kib - self.memory.before_kib) * 1024 / max(1, open_count_max),
        }


@contextlib.contextmanager
def _prepared(plan: Plan, path: str) -> Generator[Tables]:
    """Tables, epoll and, for TCP, a listener of our own; all closed in the end."""
    with contextlib.ExitStack() as stack:
        epoll = stack.enter_context(contextlib.closing(select.epoll()))
        port, listener_fd = 0, -1
        if plan.tcp:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=_LISTEN_BACKLOG))
            port, listener_fd = int(listener.getsockname()[1]), listener.fileno()
        slot_count = min(plan.streams, plan.total)
        memory = tables.allocate(slot_count, path, plan.handoff, plan.expected, port)
        run = memory.run[0]
        run.epoll_fd = epoll.fileno()
        run.listener_fd = listener_fd
        run.total_count = plan.total
        run.interval_ns = round(plan.interval_ms * 1e6)
        run.messages_expected = plan.messages
        run.start_interval_ns = round(1e9 / plan.rate_per_s) if plan.rate_per_s else 0
        run.connect_timeout_ns = round(plan.connect_timeout_s * 1e9)
        run.socket_type = int(plan.socket_type)
        reading.turns_until(memory, 0)  # compiled, or loaded from the cache, before the clock starts
        yield memory


def _turn_to_end(memory: Tables, sampler: Sampler, stall_timeout_s: float) -> bool:
    """Run until all streams ended, nothing has moved for too long, or Ctrl-C. True if it was interrupted."""
    run = memory.run[0]
    progress = (-1, -1)
    moved_ns = time.monotonic_ns()
    try:
        while not reading.turns_until(memory, time.monotonic_ns() + _SLICE_NS):
            sampler.sample(int(run.message_count))
            if progress != (int(run.byte_count), int(run.finished_count)):
                progress = (int(run.byte_count), int(run.finished_count))
                moved_ns = time.monotonic_ns()
            elif time.monotonic_ns() - moved_ns > stall_timeout_s * 1e9:
                break
    except KeyboardInterrupt:
        return True
    return False


def _give_up_open_streams(memory: Tables) -> None:
    for slot in range(memory.streams.size):
        if memory.streams[slot].is_used:
            reading.finish(memory, slot, reading.STALLED, 0)


def _figures(memory: Tables, wall_s: float, generator_cpu_s: float) -> dict[str, Any]:
    run = memory.run[0]
    outcomes = {name: int(count) for name, count in zip(reading.OUTCOMES, memory.outcomes, strict=True) if count}
    names = (*scanning.METRICS, *scanning.HTTP_METRICS)
    rows = zip(names, memory.histograms, memory.least, memory.most, strict=True)
    latencies = {name: percentiles_ns(histogram, int(low), int(high)) for name, histogram, low, high in rows}
    complete = int(memory.outcomes[reading.COMPLETE])
    return {
        "streams": int(run.finished_count),
        "complete": complete,
        "failed": int(run.finished_count) - complete,
        "not_started": int(run.total_count - run.started_count),
        "outcomes": outcomes,
        "statuses": {str(status): int(count) for status, count in enumerate(memory.statuses) if count},
        "faults": [_fault(memory, number) for number in range(run.fault_count)],
        "messages": int(run.message_count),
        "comments": int(run.comment_count),
        "bytes": int(run.byte_count),
        "receives": int(run.receive_count),
        "open_max": int(run.open_count_max),
        "wall_s": wall_s,
        "streams_per_s": int(run.finished_count) / wall_s,
        "messages_per_s": int(run.message_count) / wall_s,
        "early_ns_max": int(run.early_ns_max),
        "latencies_ns": latencies,
        "distributions_ns": {
            name: distribution(histogram) for name, histogram in zip(names, memory.histograms, strict=True)
        },
        "generator_cores": generator_cpu_s / wall_s,
    }


def _fault(memory: Tables, number: int) -> dict[str, Any]:
    named: dict[str, Any] = {name: int(memory.faults[number][name]) for name in FAULT.names or ()}
    shown = bytes(memory.fault_shown[number, : named.pop("shown_bytes")]).decode("latin-1")
    return {**named, "outcome": reading.OUTCOMES[named["outcome"]], "shown": shown}


def _own_cpu_s() -> float:
    # Of this thread: an upstream of ours runs on another.
    own = resource.getrusage(resource.RUSAGE_THREAD)
    return own.ru_utime + own.ru_stime


def run_load(plan: Plan, path: str, pid: int = 0) -> dict[str, Any]:
    """Run one plan against the server at `path`, `pid` being its process where known. The figures, ready for JSON."""
    processes.raise_open_files_limit(min(plan.streams, plan.total))
    with _prepared(plan, path) as memory:
        return measured(memory, pid, plan.stall_timeout_s)


def measured(memory: Tables, pid: int, stall_timeout_s: float) -> dict[str, Any]:
    """Run what was prepared. The figures, ready for JSON."""
    run = memory.run[0]
    sampler = Sampler(pid)
    own_cpu_s = _own_cpu_s()
    run.begin_ns = time.monotonic_ns()
    is_interrupted = _turn_to_end(memory, sampler, stall_timeout_s)
    wall_s = (time.monotonic_ns() - int(run.begin_ns)) / 1e9
    server = sampler.result(int(run.message_count), int(run.finished_count), int(run.open_count_max))
    generator_cpu_s = _own_cpu_s() - own_cpu_s
    _give_up_open_streams(memory)
    return {**_figures(memory, wall_s, generator_cpu_s), "interrupted": is_interrupted, "server": server}
