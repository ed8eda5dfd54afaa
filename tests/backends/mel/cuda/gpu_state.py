"""What a process holds that uses GPUs, and how much more that is than before."""

from __future__ import annotations

import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class State:
    gpu_mib: list[float]
    resident_mib: float
    descriptor_count: int
    thread_count: int

    def grown(self, before: State) -> float:
        """How many MiB more are resident. Memory of the GPUs, descriptors and threads must be as many as before."""
        assert (self.gpu_mib, self.descriptor_count, self.thread_count) == (
            before.gpu_mib,
            before.descriptor_count,
            before.thread_count,
        )
        return self.resident_mib - before.resident_mib


def state() -> State:
    """Of this process, and all memory in use of the GPUs: no other process may use them."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return State(
        gpu_mib=_gpu_mib(),
        resident_mib=pages * 4096 / 2**20,
        descriptor_count=len(list(Path("/proc/self/fd").iterdir())),
        thread_count=threading.active_count(),
    )


def _gpu_mib() -> list[float]:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(line) for line in output.splitlines()]
