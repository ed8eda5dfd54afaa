"""What SECURITY.md promises of the deployment files: locked dependencies, keys as files, no memory written and run."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config.library import PLANE, build_command
from tests.deploy.test_deployment import DEPLOY, REPOSITORY, instructions, running_daemon, stream_once
from tests.ports import unused_port

UNIT = (DEPLOY / "systemd" / "streaming-daemon.service").read_text()
DOCKER = DEPLOY / "docker"

# ------------------------------------------------------------------------------------------------------- locked images

# Of pyproject.toml, what each lock is made from. Lists are found by their first line.
LOCKS = {
    "image": ["dependencies"],
    "image-cuda": ["dependencies", "mel", "gpu"],
    "build": ["dependencies", "build"],
    "build-cuda": ["dependencies", "build", "gpu-build"],
}
PIN = re.compile(r'"([A-Za-z0-9_.-]+)(?:\[[a-z0-9,-]+\])?==([^";\s]+)(?:; *([^"]+))?"')


def pinned_in_project(list_name: str) -> set[tuple[str, str]]:
    """Exact pins of one list of pyproject.toml, those for Pythons that no image has left out."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    found = re.search(rf"^{list_name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert found, list_name
    pins = PIN.findall(found[1].replace("[nodejs]", ""))
    return {(name.lower(), version) for name, version, marker in pins if "python_version <" not in marker}


def locked(name: str) -> dict[str, set[str]]:
    """The versions of each distribution in a lock. Every one has at least one hash."""
    versions: dict[str, set[str]] = {}
    text = (DOCKER / f"{name}.lock").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        found = re.match(r"([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==(\S+)", line)
        assert found, line
        assert re.search(r" --hash=sha256:[0-9a-f]{64}\b", line), line
        versions.setdefault(found[1], set()).add(found[2])
    return versions


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_hash_for_all_that_the_project_pins(name: str) -> None:
    found = locked(name)
    for list_name in LOCKS[name]:
        pins = pinned_in_project(list_name)
        assert pins or list_name == "gpu-build", list_name
        missing = {pin for pin in pins if pin[1] not in found.get(pin[0], set())}
        assert not missing, f"{name}.lock is older than pyproject.toml: make lock"
    if name.startswith("build"):
        assert "setuptools" in found, "the project itself could not be built without the network"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_installs_nothing_that_is_not_locked(name: str) -> None:
    file = DOCKER / name
    commands = [part for word, rest in instructions(file) if word == "RUN" for part in rest.split("&&")]
    installs = [command for command in commands if re.search(r"\bpip (install|wheel)\b", command)]
    assert installs
    for command in installs:
        locks = re.findall(r"deploy/docker/([a-z-]+)\.lock", command)
        assert locks or "--no-deps" in command or "--no-index" in command, command
        if locks:
            assert "--require-hashes" in command
            assert set(locks) <= set(LOCKS)
        # What a source distribution is built with would otherwise be fetched, unlocked.
        assert "pip wheel" not in command or "--no-build-isolation" in command, command
    assert "!deploy/docker/*.lock" in (DOCKER / f"{name}.dockerignore").read_text().splitlines()


# ---------------------------------------------------------------------------------------------------- keys in the unit


def test_the_unit_takes_keys_as_files_and_dumps_no_core() -> None:
    credentials = re.findall(r"^LoadCredential=(\S+)$", UNIT, re.MULTILINE)
    # Without a path they are looked for in /etc/credstore, and one that is missing does not stop the service.
    assert credentials
    assert not [name for name in credentials if ":" in name]
    assert "\nLimitCORE=0\n" in UNIT
    guide = (REPOSITORY / "docs" / "deployment.md").read_text()
    for name in credentials:
        assert f"`{name}`" in guide or f"/run/credentials/streaming-daemon.service/{name}" in guide, name
    named = re.findall(r"/run/credentials/streaming-daemon\.service/([a-z.-]+)", guide)
    assert named
    assert set(named) <= set(credentials)
    assert not re.search(r"^Environment=.*KEY", UNIT, re.MULTILINE)


# -------------------------------------------------------------------------------------------- memory, written xor run

PROT_WRITE_EXEC = mmap.PROT_WRITE | mmap.PROT_EXEC
SHM_EXEC = 0o100000


def forbids_writable_code() -> dict[str, object]:
    """The filter that systemd makes of MemoryDenyWriteExecute=yes, in the form of a container's profile."""

    def denied(name: str, bits: int, index: int = 2) -> dict[str, object]:
        comparison = {"index": index, "value": bits, "valueTwo": bits, "op": "SCMP_CMP_MASKED_EQ"}
        return {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [comparison]}

    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            denied("mmap", PROT_WRITE_EXEC),
            denied("mprotect", mmap.PROT_EXEC),
            denied("pkey_mprotect", mmap.PROT_EXEC),
            denied("shmat", SHM_EXEC),
        ],
    }


def test_the_daemon_streams_without_memory_that_is_written_and_executed(folder: Path) -> None:
    assert "\nMemoryDenyWriteExecute=yes\n" in UNIT
    # The compiler needs such memory, the daemon does not.
    subprocess.run(build_command(PLANE), cwd=REPOSITORY, check=True, capture_output=True)
    profile = folder / "profile.json"
    profile.write_text(json.dumps(forbids_writable_code()))
    under = [sys.executable, "-m", "tests.deploy.seccomp", str(profile)]
    program = f"import mmap; mmap.mmap(-1, 4096, prot={PROT_WRITE_EXEC})"
    refused = subprocess.run(
        [*under, sys.executable, "-c", program], cwd=REPOSITORY, check=False, capture_output=True, text=True
    )
    assert "PermissionError" in refused.stderr
    with running_daemon(folder, unused_port(), *under) as path:
        assert stream_once(path).endswith(b"data: [DONE]\n\n")
