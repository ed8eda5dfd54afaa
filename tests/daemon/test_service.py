"""The daemon as a process: how it starts, what signals do to it, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.behaviour.daemon_process import DONE, LATE_S_MAX, ROOT, Daemon, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NOBODY = 65534
SABOTAGE = ROOT / "tests" / "daemon" / "sabotage.py"
LONG_STREAM = ["--delay", "400"]  # 18 messages: 6.8 s
SOON_S = LATE_S_MAX
COMPILING_S_MAX = 500.0  # the cache may be cold, and the machine busy
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights, so it needs them first")


@pytest.fixture
def directory() -> Iterator[Path]:
    # pytest's own directories have names too long for a Unix socket.
    with tempfile.TemporaryDirectory(prefix="sd-") as name:
        yield Path(name)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Daemon]]:
    running: list[Daemon] = []

    def begin(
        *arguments: str,
        kernel: str = "auto",
        configuration: str = "",
        environment: dict[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> Daemon:
        daemon = Daemon(directory, kernel, list(arguments), configuration, environment or {}, list(wrapper))
        running.append(daemon)
        return daemon.start()

    yield begin
    for daemon in running:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def run(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """The daemon until it ends by itself."""
    command = [sys.executable, "-m", "daemon", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def page(daemon: Daemon, path: str) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{daemon.metrics_port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(0.02)


def wait_for_log(daemon: Daemon, words: str, timeout_s: float = 30) -> None:
    wait_until(lambda: words in daemon.log, timeout_s)


def end_of(daemon: Daemon) -> int:
    """The exit status of a daemon that has been told to end."""
    assert daemon.process is not None
    return daemon.process.wait(60)


def send(daemon: Daemon, number: signal.Signals) -> None:
    os.kill(daemon.pid, number)


# ---- starting


def cpu_of_children_s() -> float:
    """What processes that have ended took: time that a busy machine does not stretch."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.serial
def test_help_and_version_are_instant() -> None:
    before_s = cpu_of_children_s()
    shown = run("--help")
    assert shown.returncode == 0
    assert "--check-kernel" in shown.stdout
    version = run("--version")
    assert re.search(r"\d+\.\d+\.\d+", version.stdout)
    assert cpu_of_children_s() - before_s < 2.0


def test_nothing_compiled_is_imported_for_help() -> None:
    program = "import sys\ntry:\n    from daemon.__main__ import main; main(['--version'])\nexcept SystemExit: pass\n"
    program += "print(*(name for name in ('numba', 'numpy', 'uvloop', 'prometheus_client') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == ""


def test_it_refuses_to_run_without_assertions() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-m", "daemon"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 64
    assert "assertions" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--no-such-option"], 64, "no-such-option"),
        (["--pool-size", "65"], 78, "pool-size"),
        (["--config", "/nonexistent/daemon.toml"], 78, "/nonexistent/daemon.toml"),
    ],
)
def test_wrong_usage_and_wrong_configuration_have_their_own_status(
    arguments: list[str], status: int, said: str
) -> None:
    done = run(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert said in done.stderr


def test_a_configuration_error_names_the_file_and_the_key(directory: Path) -> None:
    file = directory / "daemon.toml"
    file.write_text("[server]\nmax_connectoins = 5\n")
    done = run("--config", str(file))
    assert done.returncode == 78
    assert str(file) in done.stderr
    assert "max_connections" in done.stderr, "the nearest key is suggested"


def test_check_kernel_says_what_will_be_used() -> None:
    done = run("--check-kernel")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^will be used +(io_uring|epoll): .+", done.stdout.splitlines()[-1])
    assert re.search(r"^machine code +/.*/plane-\w+(-v\d)?\.so$", done.stdout, re.MULTILINE)
    forced = run("--check-kernel", "--kernel", "epoll")
    assert "will be used  epoll" in forced.stdout


WITHOUT_IO_URING = [sys.executable, str(ROOT / "tests" / "daemon" / "without_io_uring.py")]


def test_where_io_uring_is_forbidden_epoll_is_used_and_the_reason_said(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "5", wrapper=WITHOUT_IO_URING)
    assert re.search(r'READY kernel=epoll reason="io_uring cannot be used: .*forbidden', daemon.log)
    assert daemon.ask().body.endswith(DONE)
    ready = page(daemon, "/ready")[1]
    assert ready["kernel"] == "epoll"
    assert "forbidden" in ready["kernel_reason"]
    assert daemon.stop() == 0


@pytest.mark.parametrize("action", [[], ["--check-kernel"]])
def test_where_io_uring_is_forbidden_it_can_be_insisted_on_in_vain(directory: Path, action: list[str]) -> None:
    asked = ["--kernel", "io_uring", "--socket", str(directory / "s"), *action]
    command = [*WITHOUT_IO_URING, sys.executable, "-m", "daemon", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (71, False), done.stderr
    assert "forbidden" in done.stderr
    assert not (directory / "s").exists()


def test_warm_cache_has_nothing_to_do() -> None:
    done = run("--warm-cache")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Nothing to do")


def test_the_ready_line_names_kernel_socket_and_streams(start: Callable[..., Daemon]) -> None:
    daemon = start("--max-connections", "123")
    (line,) = [line for line in daemon.log.splitlines() if " READY " in line]
    assert re.search(r"kernel=(io_uring|epoll)", line)
    assert f"socket={daemon.socket_path}" in line
    assert "streams_max=123" in line
    assert page(daemon, "/health")[1]["status"] == "healthy"
    status, ready = page(daemon, "/ready")
    assert (status, ready["ready"], ready["draining"]) == (200, True, False)
    assert ready["kernel"] in {"io_uring", "epoll"}
    assert daemon.metrics()["streaming_daemon_connections_max"] == 123
    assert daemon.stop() == 0
    assert not daemon.socket_path.exists()


def test_a_socket_in_use_is_left_to_its_daemon(start: Callable[..., Daemon]) -> None:
    daemon = start()
    done = run("--socket", str(daemon.socket_path))
    assert done.returncode == 75
    assert f"{daemon.socket_path} is in use: process {daemon.pid} listens on it" in done.stderr
    assert daemon.ask().body.endswith(DONE), "the first one serves on"


def test_a_killed_daemons_socket_is_taken_over(directory: Path) -> None:
    first = Daemon(directory, "auto").start()
    assert first.process is not None
    first.process.kill()
    # At once, as a supervisor would.
    second = Daemon(directory, "auto").start()
    first.process.wait()
    try:
        assert second.ask().body.endswith(DONE)
        assert "stale" in second.log
    finally:
        assert second.stop() == 0


def test_a_missing_directory_is_named(directory: Path) -> None:
    done = run("--socket", str(directory / "missing" / "s"))
    assert done.returncode == 73
    assert f"directory {directory / 'missing'} is missing" in done.stderr


WITHOUT_OVERRIDE = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


@needs_root
def test_no_permission_is_said(directory: Path) -> None:
    # Root without the right to override modes: as good as another user, and it can still read this Python.
    os.chown(directory, NOBODY, NOBODY)
    directory.chmod(0o555)
    command = [sys.executable, "-c", WITHOUT_OVERRIDE, sys.executable, "-m", "daemon", "--socket", str(directory / "s")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 77, done.stderr
    assert f"no permission for {directory}" in done.stderr


def test_a_metrics_port_in_use_is_said(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("--socket", str(directory / "s"), "--metrics", str(port))
    assert done.returncode == 75
    assert f"127.0.0.1:{port}: in use" in done.stderr
    assert not (directory / "s").exists()


def test_more_streams_than_descriptors_are_capped_with_a_warning(start: Callable[..., Daemon]) -> None:
    limit = "import os, resource, sys; resource.setrlimit(7, (600, 1000)); os.execvp(sys.argv[1], sys.argv[1:])"
    limited = [sys.executable, "-c", limit]
    daemon = start("--max-connections", "5000", wrapper=limited)
    assert "room for 800 streams" in daemon.log
    assert "streams_max=800" in daemon.log
    assert daemon.metrics()["streaming_daemon_connections_max"] == 800


# ---- systemd

ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_from_systemd_is_served_and_stays(start: Callable[..., Daemon], directory: Path) -> None:
    path = directory / "activated.sock"
    daemon = start(wrapper=[sys.executable, "-c", ACTIVATE, str(path)])
    assert f"socket={path}" in daemon.log
    assert not daemon.socket_path.exists(), "its own path is not bound"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(str(path))
        server, client = socket.socketpair()
        with server, client:
            daemon.hand_over(b"{}", [server.fileno()], peer)
            server.close()
            assert read_all(client).body.endswith(DONE)
    assert daemon.stop() == 0
    assert path.exists(), "the path is systemd's"


def received(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def received_until(manager: socket.socket, key: str) -> dict[str, str]:
    while key not in (message := received(manager)):
        pass
    return message


@pytest.mark.serial
def test_systemd_hears_every_state_and_is_fed(start: Callable[..., Daemon], directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "400000"}
        daemon = start(environment=environment)
        assert "0 streams of 10000" in received_until(manager, "READY")["STATUS"]
        began_s = time.monotonic()
        for _ in range(5):
            assert received_until(manager, "WATCHDOG")["WATCHDOG"] == "1"
        assert 0.6 < time.monotonic() - began_s < SOON_S, "half the interval lies between two"
        send(daemon, signal.SIGHUP)
        assert int(received_until(manager, "RELOADING")["MONOTONIC_USEC"]) > 0
        received_until(manager, "READY")
        send(daemon, signal.SIGTERM)
        received_until(manager, "STOPPING")
        assert end_of(daemon) == 0


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_lets_live_streams_finish(start: Callable[..., Daemon], number: signal.Signals) -> None:
    daemon = start(*LONG_STREAM)
    clients = [daemon.open() for _ in range(20)]
    daemon.wait_for_metric("streaming_daemon_connections_active", 20)
    send(daemon, number)
    wait_until(lambda: not daemon.socket_path.exists())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late, pytest.raises(FileNotFoundError):
        late.connect(str(daemon.socket_path))
    assert page(daemon, "/health")[0] == 200
    status, ready = page(daemon, "/ready")
    assert (status, ready["draining"]) == (503, True)
    for client in clients:
        with client:
            assert read_all(client).body.endswith(DONE)
    assert end_of(daemon) == 0
    assert "Traceback" not in daemon.log


def test_what_was_handed_over_before_the_drain_gets_an_answer(start: Callable[..., Daemon]) -> None:
    daemon = start(*LONG_STREAM)
    clients = [daemon.open() for _ in range(200)]
    send(daemon, signal.SIGTERM)
    for client in clients:
        with client:
            answer = read_all(client)
            assert answer.status in {200, 503}, "nobody gets an empty reply"
            if answer.status == 200:
                assert answer.body.endswith(DONE)
            else:
                assert "retry-after" in answer.headers
    assert end_of(daemon) == 0


def test_streams_that_cannot_finish_are_told(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "1000", configuration="[timeouts]\nshutdown_timeout_s = 1\n")
    clients = [daemon.open() for _ in range(10)]
    daemon.wait_for_metric("streaming_daemon_messages_total", 10)
    began_s = time.monotonic()
    send(daemon, signal.SIGTERM)
    for client in clients:
        with client:
            body = read_all(client).body
            assert b"event: error\n" in body
            assert b"[DONE]" not in body
    assert end_of(daemon) == 0
    assert 0.9 < time.monotonic() - began_s < SOON_S


@pytest.mark.serial
def test_a_second_signal_ends_at_once(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "60000")
    with daemon.open():
        daemon.wait_for_metric("streaming_daemon_connections_active", 1)
        send(daemon, signal.SIGTERM)
        wait_for_log(daemon, "draining")
        began_s = time.monotonic()
        assert daemon.stop(signal.SIGINT) == -signal.SIGINT
        assert time.monotonic() - began_s < SOON_S  # the drain may take 120 s


def test_a_reload_changes_what_it_can_and_names_what_it_cannot(start: Callable[..., Daemon]) -> None:
    daemon = start(configuration='[logging]\nlevel = "info"\n[streaming]\nmessage_delay_ms = 5\n')
    file = daemon.directory / "daemon.toml"
    file.write_text('[logging]\nlevel = "debug"\n[timeouts]\nshutdown_timeout_s = 7\n[server]\nbacklog = 77\n')
    send(daemon, signal.SIGHUP)
    wait_for_log(daemon, "reloaded")
    assert "logging.level" in daemon.log
    assert "shutdown_timeout_s" in daemon.log
    assert re.search(r"restart.*server\.backlog", daemon.log)
    assert daemon.metric('streaming_daemon_config_reloads_total{result="ok"}') == 1
    assert daemon.ask().body.endswith(DONE)
    assert daemon.stop() == 0


def test_a_broken_file_changes_nothing(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "5")
    (daemon.directory / "daemon.toml").write_text("[timeouts]\nwrite_timeout_ms = 'soon'\n")
    send(daemon, signal.SIGHUP)
    wait_for_log(daemon, "write_timeout_ms")
    assert "configuration in force stays" in daemon.log
    assert daemon.metric('streaming_daemon_config_reloads_total{result="failed"}') == 1
    assert daemon.ask().body.endswith(DONE)
    assert daemon.stop() == 0


def test_a_fifo_in_the_place_of_the_file_is_refused_at_start_and_at_a_reload(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "5")
    file = daemon.directory / "daemon.toml"
    file.unlink()
    os.mkfifo(file)
    send(daemon, signal.SIGHUP)
    wait_for_log(daemon, "is a FIFO; the configuration must be a regular file")
    assert daemon.metric('streaming_daemon_config_reloads_total{result="failed"}') == 1
    assert daemon.ask().body.endswith(DONE)
    assert daemon.stop() == 0
    refused = run("--config", str(file))
    assert refused.returncode == 78
    assert "is a FIFO; the configuration must be a regular file" in refused.stderr


STUBBORN = '[backend.stubborn]\nclass = "tests.daemon.stubborn:Stubborn"\n'


def test_a_backend_that_refuses_new_options_ends_no_stream(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "5", configuration=STUBBORN)
    (daemon.directory / "daemon.toml").write_text(STUBBORN + "refused = true\n")
    send(daemon, signal.SIGHUP)
    wait_for_log(daemon, "rejected its new options")
    assert daemon.metric('streaming_daemon_config_reloads_total{result="failed"}') == 1
    assert daemon.ask().body.endswith(DONE)
    assert daemon.stop() == 0


def test_a_backend_that_never_lets_go_does_not_keep_the_process(start: Callable[..., Daemon]) -> None:
    daemon = start(configuration=STUBBORN + "[timeouts]\nshutdown_timeout_s = 1\n")
    with daemon.open({"backend": "stubborn"}) as client:
        head_and_piece = b""
        while b"held" not in head_and_piece:
            head_and_piece += client.recv(4096)
        began_s = time.monotonic()
        send(daemon, signal.SIGTERM)
        assert read_all(client).raw.startswith(b"event: error")
        assert end_of(daemon) == 0
    assert time.monotonic() - began_s < 60  # it sleeps for an hour
    assert "did not return" in daemon.log


def test_the_table_of_live_streams_is_logged(start: Callable[..., Daemon]) -> None:
    daemon = start(*LONG_STREAM)
    clients = [daemon.open() for _ in range(3)]
    daemon.wait_for_metric("streaming_daemon_connections_active", 3)
    send(daemon, signal.SIGUSR1)
    wait_for_log(daemon, "3 streams, 3 streaming")
    wait_until(lambda: len(re.findall(r" streaming .* mock\b", daemon.log)) == 3)
    for client in clients:
        client.close()
    daemon.wait_idle()
    assert daemon.stop() == 0


@pytest.mark.serial
def test_an_idle_metrics_client_blocks_neither_scraping_nor_exit(start: Callable[..., Daemon]) -> None:
    daemon = start()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.metrics_port)))
        assert daemon.metrics()["streaming_daemon_connections_active"] == 0
        began_s = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began_s < SOON_S


def test_the_benchmark_summary_is_printed_at_exit(start: Callable[..., Daemon]) -> None:
    daemon = start("--benchmark", "--delay", "0")
    answers = [daemon.ask() for _ in range(4)]
    assert daemon.stop() == 0
    summary = dict(re.findall(r"^  (\w[\w ]*?) {2,}(\S+)", daemon.log, re.MULTILINE))
    assert summary["Started"] == summary["Completed"] == "4"
    assert summary["Failed"] == "0"
    assert int(summary["Bytes sent"]) == sum(len(answer.raw) for answer in answers)


# ---- when a plane dies


@pytest.mark.serial
@pytest.mark.parametrize("kernel", ["io_uring", "epoll"])
def test_a_data_plane_that_ends_takes_the_process_with_it(start: Callable[..., Daemon], kernel: str) -> None:
    daemon = start("--delay", "100", kernel=kernel, wrapper=[sys.executable, str(SABOTAGE), "data"])
    with daemon.open() as client:
        assert client.recv(4096)
        began_s = time.monotonic()
        send(daemon, signal.SIGUSR2)
        assert end_of(daemon) == 70
        assert time.monotonic() - began_s < SOON_S
    assert re.search(rf"data plane.*{kernel}", daemon.log)
    assert not daemon.socket_path.exists()


@pytest.mark.serial
def test_a_control_plane_that_fails_takes_the_process_with_it(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "1000", wrapper=[sys.executable, str(SABOTAGE), "control"])
    with daemon.open() as client:
        assert client.recv(4096)
        began_s = time.monotonic()
        send(daemon, signal.SIGUSR2)
        wait_for_log(daemon, "sabotaging")
        with daemon.open():  # an event that cannot be read
            assert end_of(daemon) == 70
        assert time.monotonic() - began_s < SOON_S
    assert "the control plane died: events of the data plane: RuntimeError('sabotaged')" in daemon.log
    assert not daemon.socket_path.exists()


@pytest.mark.serial
def test_a_callback_that_fails_is_contained(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "5", wrapper=[sys.executable, str(SABOTAGE), "callback"])
    for _ in range(2):
        send(daemon, signal.SIGUSR2)
        assert daemon.ask().body.endswith(DONE)
    daemon.wait_for_metric('streaming_daemon_contained_exceptions_total{kind="callback"}', 2)
    assert daemon.log.count("Traceback") == 1, "within a minute it is logged once"
    assert daemon.stop() == 0
    assert daemon.log.count("Traceback") == 2, "and what has had no line gets one at the end"


def test_an_event_whose_handler_fails_ends_its_stream_alone(start: Callable[..., Daemon]) -> None:
    daemon = start("--delay", "100", wrapper=[sys.executable, str(SABOTAGE), "handoff"])
    with daemon.open() as other:
        send(daemon, signal.SIGUSR2)
        while "sabotaging" not in daemon.log:
            time.sleep(0.01)
        for _ in range(3):
            answer = daemon.ask({"prompt": "Hello", "user_id": "sabotage"})
            assert answer.status == 500, answer.raw
            assert answer.problem["code"] == "internal_error"
        assert read_all(other).body.endswith(DONE)
    daemon.wait_for_metric('streaming_daemon_contained_exceptions_total{kind="event"}', 3)
    daemon.wait_idle()
    assert daemon.ask().body.endswith(DONE)
    assert daemon.log.count("Traceback") == 1, "within a minute it is logged once"
    assert daemon.stop() == 0


# ---- what it costs


@pytest.mark.serial
@pytest.mark.timeout(600)
def test_it_is_ready_soon_and_small_at_rest(start: Callable[..., Daemon], directory: Path) -> None:
    assert run("--warm-cache", timeout_s=COMPILING_S_MAX).returncode == 0
    began_s = time.monotonic()
    daemon = start()
    seconds = time.monotonic() - began_s
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    megabytes = daemon.resident_bytes() / 1e6
    print(f"READY after {seconds:.2f} s, {cpu_seconds:.2f} s of CPU, {megabytes:.0f} MB at rest")
    assert cpu_seconds <= 2.5
    assert megabytes <= 200
    assert directory.exists()
    assert daemon.stop() == 0
