"""The plane for 64-bit ARM: built here, loaded by a program for that machine under qemu."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.control.admission.client_socket import NOT_A_STREAM_SOCKET, STREAM_SOCKET

ROOT = Path(__file__).resolve().parents[2]
SYSROOT = "/usr/aarch64-linux-gnu"


@pytest.mark.external
@pytest.mark.timeout(300)
def test_a_library_for_arm_is_built_and_works(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "compiler", "plane", "--machine", "aarch64", "--folder", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=200)
    description = json.loads((tmp_path / "plane-aarch64.json").read_text())
    assert (description["machine"], description["level"]) == ("aarch64", "")
    program = tmp_path / "load_library"
    source = ROOT / "tests" / "deploy" / "load_library.c"
    subprocess.run(["aarch64-linux-gnu-gcc", "-O1", "-Wall", "-Werror", "-o", str(program), str(source)], check=True)
    command = ["qemu-aarch64", "-L", SYSROOT, str(program), str(tmp_path / "plane-aarch64.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("0 ")]
    assert found == [STREAM_SOCKET, NOT_A_STREAM_SOCKET, NOT_A_STREAM_SOCKET]
