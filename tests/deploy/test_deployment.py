"""The deployment files against the daemon that they deploy: names, settings and permissions that would rot unseen."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.openai.accounts import RelayAccounts
from backends.openai.ledger import LedgerRow
from backends.relay import Outcome
from daemon.control.telemetry.relay_metrics import RelayCollector
from scripts.processes import stop
from tests.ports import unused_port

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
PROFILE = DEPLOY / "docker" / "seccomp-io_uring.json"
MONITORING_FILES = (DEPLOY / "prometheus" / "alerts.yml", DEPLOY / "grafana" / "dashboard.json")

START_SECONDS_MAX = 90.0
CLONE_NEWUSER = 0x10000000


@contextmanager
def running_daemon(folder: Path, metrics_port: int, *before: str) -> Generator[Path]:
    """The daemon with metrics, its command line preceded by `before`; yields its socket once it is ready."""
    path = folder / "daemon.sock"
    command = [
        *before,
        sys.executable,
        "-m",
        "daemon",
        "--socket",
        str(path),
        "--metrics",
        str(metrics_port),
        "--delay",
        "1",
    ]
    output = folder / "daemon.log"
    with output.open("wb") as console:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=console, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(metrics_port, process, output)
            yield path
        finally:
            stop(process)


def wait_until_ready(metrics_port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not is_ready(metrics_port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"not ready (exit status {process.poll()}):\n{output.read_text()}")
        time.sleep(0.05)


def is_ready(metrics_port: int) -> bool:
    try:
        read_page(metrics_port, "/ready")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def read_page(metrics_port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}{path}", timeout=5) as response:
        return bytes(response.read()).decode()


def stream_once(path: Path, data: bytes = b'{"user_id":1,"prompt":"x"}') -> bytes:
    """Hand one end of a socket pair over, as Apache does, and read the whole answer from the other."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as handoff:
            handoff.connect(str(path))
            socket.send_fds(handoff, [data], [theirs.fileno()])
        ours.settimeout(30)
        return b"".join(iter(lambda: ours.recv(65536), b""))


# ---------------------------------------------------------------------------------------------------------- monitoring


def metrics_named_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:streaming_daemon|gen_ai)_[a-z_]+", text))


def relayed_families_and_labels() -> tuple[set[str], set[str]]:
    """What is offered only where streams are relayed, which the daemon here does not: from the collector itself."""
    accounts = RelayAccounts()
    row = LedgerRow("t", "r", None, "a", "m", "m", 1, 2, False, 1.0, 2.0, 3, 0, "complete", 200, "")
    accounts.stream_ended("a", "m", row, Outcome("complete", True, 3, 2.0, 1.0, 2.0, 2, 1, 2, 0))
    families = list(RelayCollector(accounts, list, list).collect())
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    return {family.name for family in families}, labels


def test_alerts_and_dashboard_name_metrics_that_exist(folder: Path) -> None:
    port = unused_port()
    with running_daemon(folder, port) as path:
        assert stream_once(path).endswith(b"data: [DONE]\n\n")
        page = read_page(port, "/metrics")
    # A counter with labels has no sample before it counts, but its TYPE line is there from the start; prometheus-client
    # leaves a counter's _total out of that line in one of its two formats.
    families = set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))
    relayed, labels = relayed_families_and_labels()
    families |= relayed
    known = families | {
        f"{family}{suffix}" for family in families for suffix in ("_total", "_bucket", "_sum", "_count")
    }
    for file in MONITORING_FILES:
        named = metrics_named_in(file.read_text())
        assert named, file
        assert named <= known | labels, (file.name, sorted(named - known - labels))
        assert any(name.startswith("streaming_daemon_upstream_") for name in named), file


def test_dashboard_is_complete_json() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(identifiers) == len(set(identifiers))
    for panel in dashboard["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        assert panel["type"] == "row" or panel["targets"]


# ------------------------------------------------------------------------------------------------------------- seccomp


def under_profile(*command: str) -> list[str]:
    return [sys.executable, "-m", "tests.deploy.seccomp", str(PROFILE), *command]


def test_the_daemon_streams_under_the_containers_profile(folder: Path) -> None:
    port = unused_port()
    with running_daemon(folder, port, *under_profile()) as path:
        answer = stream_once(path)
        page = read_page(port, "/metrics")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"data: [DONE]\n\n")
    assert re.search(r'^streaming_daemon_info\{.*kernel="(io_uring|epoll)".*\} 1', page, re.MULTILINE)


def test_the_profile_allows_io_uring() -> None:
    # io_uring_setup with room for parameters: any answer but "unknown" or "not permitted" is the kernel's own.
    program = (
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "result = libc.syscall(425, 8, ctypes.create_string_buffer(120))\n"
        "sys.exit(0 if result >= 0 else ctypes.get_errno())\n"
    )
    bare = subprocess.run([sys.executable, "-c", program], check=False)
    filtered = subprocess.run(under_profile(sys.executable, "-c", program), cwd=REPOSITORY, check=False)
    assert filtered.returncode == bare.returncode


@pytest.mark.parametrize(
    "program",
    [
        f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({CLONE_NEWUSER}))",
        "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0))",
        "import ctypes, sys; sys.exit(ctypes.CDLL(None).mount(None, b'/', None, 4096, None))",
        "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    ],
)
def test_the_profile_keeps_out_what_the_daemon_never_does(program: str) -> None:
    result = subprocess.run(
        under_profile(sys.executable, "-c", program), cwd=REPOSITORY, check=False, capture_output=True
    )
    assert result.returncode != 0


# ------------------------------------------------------------------------------------------------------------- systemd


def test_systemd_understands_every_line_of_the_units(folder: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "apt-get install --yes --no-install-recommends systemd"
    for name in ("streaming-daemon.service", "streaming-daemon.socket"):
        text = (DEPLOY / "systemd" / name).read_text()
        # The program that the unit starts is not installed on a machine that runs tests.
        (folder / name).write_text(text.replace("/opt/streaming-daemon/bin/streaming-daemon", "/bin/true"))
    units = [str(folder / "streaming-daemon.service"), str(folder / "streaming-daemon.socket")]
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    result = subprocess.run(
        [analyze, "verify", "--man=no", *units], check=False, capture_output=True, text=True, env=environment
    )
    # Complaints about other units of the machine are not ours.
    complaints = [line for line in result.stderr.splitlines() if "streaming-daemon" in line]
    assert not complaints


@pytest.mark.parametrize("file", ["systemd/streaming-daemon.service", "docker/Dockerfile", "docker/Dockerfile.cuda"])
def test_options_in_deployment_files_exist(file: str) -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", started_with(DEPLOY / file)))
    help_text = subprocess.run(
        [sys.executable, "-m", "daemon", "--help"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    known = set(re.findall(r"--[a-z][a-z-]+", help_text))
    assert options
    assert options <= known, sorted(options - known)


def started_with(file: Path) -> str:
    """The lines that give the daemon its options."""
    starts = ("ExecStart=", "CMD [", "RUN streaming-daemon", "ENTRYPOINT")
    return "\n".join(line for line in file.read_text().splitlines() if line.startswith(starts))


# ---- images; no engine builds them here, so this is what can be known without one


def instructions(file: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, in order."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_is_written_as_images_should_be(name: str) -> None:
    file = DEPLOY / "docker" / name
    found = instructions(file)
    known = {"FROM", "RUN", "COPY", "WORKDIR", "ARG", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL"}
    assert {word for word, _ in found} <= known | {"ENTRYPOINT", "CMD"}
    for base in (rest.split()[0] for word, rest in found if word == "FROM"):
        assert re.search(r":[0-9]", base), f"{base} names no version"
    for command in (rest for word, rest in found if word == "RUN"):
        subprocess.run(["sh", "-n", "-c", command], check=True)
        assert "apt-get install" not in command or (
            "--yes --no-install-recommends" in command and "rm -rf /var/lib/apt/lists/*" in command
        )
        assert "pip install" not in command or "--no-cache-dir" in command
    last = found[[word for word, _ in found].index("USER") :]
    assert last[0] == ("USER", "streaming-daemon"), "it runs as root"
    assert [word for word, _ in last if word == "USER"] == ["USER"]
    for word in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(dict(found)[word]), list), f"{word} goes through a shell, which takes its signals"
    assert (file.parent / f"{name}.dockerignore").read_text() == (file.parent / "Dockerfile.dockerignore").read_text()


def test_the_image_for_gpus_is_the_other_one_with_gpus() -> None:
    plain, cuda = (dict(instructions(DEPLOY / "docker" / name)) for name in ("Dockerfile", "Dockerfile.cuda"))
    for word in ("USER", "STOPSIGNAL", "ENTRYPOINT", "CMD", "EXPOSE"):
        assert cuda[word] == plain[word], word
    assert set(plain["ENV"].split()) <= set(cuda["ENV"].split())
    extras = re.findall(r"streaming-daemon\[([a-z,]+)\]", (DEPLOY / "docker" / "Dockerfile.cuda").read_text())
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert extras
    for extra in extras[0].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
