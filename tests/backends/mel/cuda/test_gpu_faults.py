"""Two real GPUs that fail while streams run: no stream is lost, wrong or hangs, and the process ends as it should."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from backends.mel.cuda import pycuda_device
from config.library import ROOT
from tests.backends.mel.cuda.gpu_faults import RUNS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

SILENCE_MS_MAX = 2_000.0  # the driver takes a third of a second to report a trap


def carried_out(name: str, folder: Path) -> dict[str, Any]:
    if pycuda_device.device_count() < 2:
        pytest.skip("needs two GPUs")
    command = [sys.executable, "-m", "tests.backends.mel.cuda.gpu_faults", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert all(len(one["streams"]) == 2 for one in found["before"].values())
    assert found["silence_ms"] < SILENCE_MS_MAX
    assert all(one["streams"] == {} and one["on_cpu"] > 0 for one in found["after"].values()), found["after"]
    # Once for each number of bins and GPU.
    assert done.stderr.count("ERROR GPU") == 2 * len(found["after"]), done.stderr[-4000:]
    return found


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if not run.is_trap_first])
def test_streams_of_a_gpu_that_fails_move_to_the_other_and_then_to_the_cpu(name: str, tmp_path: Path) -> None:
    found = carried_out(name, tmp_path)
    for after_first in found["first"].values():
        assert (len(after_first["streams"]), after_first["lost"], after_first["on_cpu"]) == (1, 1, 0)
    assert all(one["lost"] == 2 for one in found["last"].values())


def test_a_trap_takes_all_gpus_of_the_process_and_the_cpu_goes_on(tmp_path: Path) -> None:
    found = carried_out("trap", tmp_path)
    assert all(one["lost"] == 2 for one in found["after"].values())
