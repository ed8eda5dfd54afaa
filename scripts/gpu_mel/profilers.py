"""What the profilers say of the kernels alone."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import time

from scripts.gpu_mel.rig import CLIP, Results, Rig, noise

_BUSY_S = 8.0


def profile(results: Results) -> None:
    """What ncu and nvidia-smi say of the kernels alone."""
    metrics = {
        "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory bandwidth %",
        "dram__bytes.sum": "memory traffic",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessors %",
        "sm__inst_executed.sum": "instructions",
        "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue slots %",
        "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank conflicts",
        "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "shared wavefronts",
        "gpu__time_duration.sum": "time",
    }
    tool = shutil.which("ncu")
    if tool is not None:
        command = [
            tool,
            "--clock-control",
            "none",
            "--launch-count",
            "2",
            "--metrics",
            ",".join(metrics),
            "--csv",
            "--page",
            "raw",
            "--print-units",
            "base",
            sys.executable,
            "-m",
            "scripts.gpu_mel",
            "busy",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
        rows = [line for line in done.stdout.splitlines() if line.startswith('"')]
        results["ncu"] = _table(rows, metrics) or done.stdout[-1500:] + done.stderr[-500:]
    child = subprocess.Popen([sys.executable, "-m", "scripts.gpu_mel", "busy"])
    time.sleep(6)
    query = "utilization.gpu,utilization.memory,memory.used,power.draw,clocks.sm"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, check=False
    )
    child.wait(60)
    results["nvidia-smi"] = done.stdout.splitlines()


def _table(rows: list[str], metrics: dict[str, str]) -> list[dict[str, str]]:
    lines = list(csv.reader(rows))
    if len(lines) < 3:
        return []
    names = lines[0]
    return [
        {
            "kernel": line[names.index("Grid Size")],
            **{metrics[name]: line[at] for at, name in enumerate(names) if name in metrics},
        }
        for line in lines[2:]
    ]


def busy(results: Results) -> None:
    """Keep the GPU at it: what the profilers look at."""
    rig = Rig("int16", "float32", 80, 256, CLIP)
    rig.put(rig.samples, noise((256, CLIP), "int16"))
    rig.run()
    rig.stream.wait()
    end = time.perf_counter() + _BUSY_S
    while time.perf_counter() < end:
        for _ in range(50):
            rig.run()
        rig.stream.wait()
    results["busy"] = "done"
    rig.close()
