"""Audio files through a running daemon with backend.mel.device = "cuda", handed over as Apache does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scripts.gpu_mel import backend, requests

if TYPE_CHECKING:
    from scripts.gpu_mel.rig import Results

_READY_S = 240.0
_CONFIGURATION = """
[server]
socket_path = "{folder}/daemon.sock"
data_dir = "{folder}"
[backend.mel]
enabled = true
device = "{device}"
[thread_pool]
pool_size = {threads}
"""


def through_daemon(results: Results) -> None:
    """1 to 64 streams at once of 30 s each; every frame is compared with the specification."""
    for device, threads in (("cuda", 8), ("cuda", 64), ("cpu", 8)):
        with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a socket's path is short
            results[f"daemon, {device}, {threads} threads"] = _with_daemon(results, Path(name), device, threads)


def _with_daemon(results: Results, folder: Path, device: str, threads: int) -> Results:
    sound = requests.sound(results, folder, 30.0)
    configuration = _CONFIGURATION.format(folder=folder, device=device, threads=threads)
    (folder / "daemon.toml").write_text(configuration, encoding="utf-8")
    log = folder / "daemon.log"
    started = time.perf_counter()
    with log.open("wb") as opened:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "--config", str(folder / "daemon.toml")], stdout=opened, stderr=opened
        )
    try:
        while "READY" not in log.read_text():
            if process.poll() is not None or time.perf_counter() - started > _READY_S:
                raise RuntimeError(f"the daemon is not ready: {log.read_text()[-3000:]}")
            time.sleep(0.05)
        found: Results = {"ready after s": round(time.perf_counter() - started, 2)}
        for options in (["--bins", "128"], ["--normalisation", "whisper"], ["--dtype", "float16"]):
            found[" ".join(["8 streams", *options])] = _client(folder, sound.name, "8", "2", options)[0]
        for count in (1, 2, 4, 8, 16, 32, 64):
            found[f"{count} streams"] = _client(folder, sound.name, str(count), str(max(5, 64 // count)), [])
        found["under load"] = _loaded(folder, sound.name)
        found["GPU MiB"] = backend.gpus("memory.used")
        found["resident MiB"] = _resident_mib(process.pid)
        process.send_signal(signal.SIGTERM)
        found["exit"] = process.wait(60)
        said = log.read_text().splitlines()
        found["log"] = [line for line in said if any(word in line for word in ("mel", "ERROR", "GPU"))]
        return found
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _client(folder: Path, name: str, streams: str, rounds: str, options: list[str]) -> list[str]:
    """What `scripts.mel_client` prints; its status 1 is a missed target, which is said in its table."""
    command = [sys.executable, "-m", "scripts.mel_client", str(folder / name), "--data-dir", str(folder)]
    command += ["--socket", str(folder / "daemon.sock"), "--streams", streams, "--rounds", rounds, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stdout.splitlines()
    if len(lines) < 3:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1500:]}")
    return [lines[0], *(line for line in lines[3:] if line)]


def _loaded(folder: Path, name: str) -> Results:
    """The GPU's utilisation while four clients stream 16 files at once each."""
    clients = [threading.Thread(target=_client, args=(folder, name, "16", "20", [])) for _ in range(4)]
    for client in clients:
        client.start()
    seen: list[list[float]] = []
    started = time.perf_counter()
    while any(client.is_alive() for client in clients):
        seen.append(backend.gpus("utilization.gpu"))
        time.sleep(0.1)
    return {
        "s": round(time.perf_counter() - started, 2),
        "audio-s": 4 * 16 * 20 * 30,
        "utilisation of each GPU %, mean": np.mean(seen, axis=0).round(1).tolist(),
        "most": np.max(seen, axis=0).tolist(),
        "cores": os.cpu_count(),
    }


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * 4096 / 2**20, 1)
