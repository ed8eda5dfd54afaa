"""The listening socket: how it comes to be, whom it refuses, and what it leaves behind."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from daemon.control.process import listener as listener_module
from daemon.control.process.exit_codes import (
    EXIT_CANNOT_CREATE,
    EXIT_CONFIGURATION,
    EXIT_IN_USE,
    EXIT_NO_PERMISSION,
    StartError,
)
from daemon.control.process.listener import Listener, ListenerOptions, open_listener

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights, so it needs them first")


@pytest.fixture
def directory() -> Iterator[Path]:
    # pytest's own directories have names too long for a Unix socket.
    with tempfile.TemporaryDirectory(prefix="sd-") as name:
        yield Path(name)


def options(path: Path, socket_type: str = "seqpacket", mode: int = 0o660) -> ListenerOptions:
    return ListenerOptions(path=path, socket_type=socket_type, mode=mode)


@contextlib.contextmanager
def opened(chosen: ListenerOptions) -> Generator[Listener, None, None]:
    listener = open_listener(chosen, {})
    try:
        yield listener
    finally:
        listener.close()


def refusal(chosen: ListenerOptions, environment: dict[str, str] | None = None) -> StartError:
    with pytest.raises(StartError) as caught:
        open_listener(chosen, environment or {})
    return caught.value


@pytest.mark.parametrize("socket_type", ["seqpacket", "stream"])
def test_it_listens_with_the_type_and_mode_asked_for_whatever_the_umask(directory: Path, socket_type: str) -> None:
    path = directory / "s"
    previous = os.umask(0o077)
    try:
        with opened(options(path, socket_type, 0o666)) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o666
            assert os.umask(0o077) == 0o077, "the umask is put back"
            with socket.socket(socket.AF_UNIX, listener_module.SOCKET_TYPES[socket_type]) as peer:
                peer.connect(str(path))
                assert not listener.is_empty()
        assert not path.exists()
    finally:
        os.umask(previous)


def test_it_is_not_inherited_by_programs_it_starts(directory: Path) -> None:
    with opened(options(directory / "s")) as listener:
        assert not listener.socket.get_inheritable()


def test_nobody_can_connect_before_the_mode_is_right(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "s"
    modes: list[int] = []
    real_chmod = Path.chmod

    def chmod(self: Path, mode: int, *, follow_symlinks: bool = True) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer, pytest.raises(ConnectionRefusedError):
            peer.connect(str(path))
        real_chmod(self, mode, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "chmod", chmod)
    with opened(options(path)):
        assert modes == [0o600]


@needs_root
def test_owner_and_group_by_name_and_by_number(directory: Path) -> None:
    path = directory / "s"
    named = ListenerOptions(path=path, socket_type="seqpacket", mode=0o660, owner="nobody", group=str(NOBODY))
    with opened(named):
        assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)


def test_an_unknown_owner_is_an_error_that_leaves_no_socket(directory: Path) -> None:
    path = directory / "s"
    error = refusal(ListenerOptions(path=path, socket_type="seqpacket", mode=0o660, owner="no-such-user"))
    assert error.exit_status == EXIT_CONFIGURATION
    assert "no-such-user" in str(error)
    assert not path.exists()


@pytest.mark.parametrize("socket_type", ["seqpacket", "stream"])
def test_a_live_daemon_is_left_alone(directory: Path, socket_type: str) -> None:
    path = directory / "s"
    with opened(options(path, socket_type)):
        error = refusal(options(path, "seqpacket"))
        assert error.exit_status == EXIT_IN_USE
        assert "in use" in str(error)
        if socket_type == "seqpacket":
            assert f"process {os.getpid()}" in str(error)
        assert path.exists()


def test_a_live_daemon_with_a_full_backlog_is_left_alone(directory: Path) -> None:
    path = directory / "s"
    with (
        opened(ListenerOptions(path=path, socket_type="seqpacket", mode=0o660, backlog=1)),
        contextlib.ExitStack() as stack,
    ):
        while True:
            peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            peer.setblocking(False)
            try:
                peer.connect(str(path))
            except BlockingIOError:
                break
        assert refusal(options(path)).exit_status == EXIT_IN_USE


def test_a_stale_socket_is_replaced(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as earlier:
        earlier.bind(str(path))
        earlier.listen()
    inode = path.stat().st_ino
    with caplog.at_level(logging.INFO), opened(options(path)):
        assert path.stat().st_ino != inode or "stale" in caplog.text
    assert "stale" in caplog.text


def test_a_daemon_that_dies_while_it_is_probed_is_stale(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "s"
    dying = open_listener(options(path), {})

    # A killed process answers until the kernel has torn it down: here between two probes.
    def die(_seconds: float) -> None:
        dying.socket.close()

    monkeypatch.setattr(time, "sleep", die)
    with opened(options(path)):
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "symbolic link"])
def test_what_is_no_socket_is_refused_and_kept(directory: Path, kind: str) -> None:
    path = directory / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    error = refusal(options(path))
    assert error.exit_status == EXIT_CANNOT_CREATE
    assert "not a socket" in str(error)
    assert os.path.lexists(path)


def test_a_missing_directory_is_named(directory: Path) -> None:
    error = refusal(options(directory / "missing" / "s"))
    assert error.exit_status == EXIT_CANNOT_CREATE
    assert f"directory {directory / 'missing'} is missing" in str(error)


def test_a_parent_that_is_a_file_is_named(directory: Path) -> None:
    (directory / "file").write_text("")
    error = refusal(options(directory / "file" / "s"))
    assert error.exit_status == EXIT_CANNOT_CREATE
    assert "not a directory" in str(error)


def test_the_longest_path_is_taken_and_a_longer_one_is_refused(directory: Path) -> None:
    longest = directory / ("s" * (107 - len(str(directory)) - 1))
    assert len(str(longest)) == 107
    with opened(options(longest)):
        pass
    error = refusal(options(Path(f"{longest}x")))
    assert error.exit_status == EXIT_CONFIGURATION
    assert "107 bytes" in str(error)


def _refused_as_nobody(path: Path, answer: multiprocessing.SimpleQueue[tuple[int, str]]) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        open_listener(options(path), {})
    except StartError as error:
        answer.put((error.exit_status, str(error)))
    else:
        answer.put((0, ""))


@needs_root
@pytest.mark.parametrize("exists", [False, True])
def test_no_permission_is_said_with_the_user_name(directory: Path, *, exists: bool) -> None:
    path = directory / "s"
    directory.chmod(0o755)
    with contextlib.ExitStack() as stack:
        if exists:
            stack.enter_context(opened(options(path, mode=0o600)))
        context = multiprocessing.get_context("fork")
        answer: multiprocessing.SimpleQueue[tuple[int, str]] = context.SimpleQueue()
        process = context.Process(target=_refused_as_nobody, args=(path, answer))
        process.start()
        process.join(30)
        status, message = answer.get()
    assert status == EXIT_NO_PERMISSION
    assert "nobody" in message
    assert str(path) in message


def test_a_path_that_became_another_daemons_is_not_unlinked(directory: Path) -> None:
    path = directory / "s"
    first = open_listener(options(path), {})
    path.unlink()
    with opened(options(path)):
        first.close()
        assert path.exists(), "only the inode that we bound is ours to remove"


def test_a_path_that_is_gone_already_is_no_error(directory: Path) -> None:
    listener = open_listener(options(directory / "s"), {})
    (directory / "s").unlink()
    listener.close()


def test_it_unlinks_once(directory: Path) -> None:
    path = directory / "s"
    listener = open_listener(options(path), {})
    listener.unlink()
    path.touch()
    listener.close()
    assert path.exists()


def test_two_that_start_together_do_not_both_win(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as earlier:
        earlier.bind(str(path))
    program = (
        "import sys, time; from pathlib import Path\n"
        "from daemon.control.process.listener import ListenerOptions, open_listener\n"
        "from daemon.control.process.exit_codes import StartError\n"
        "try:\n"
        "    listener = open_listener(ListenerOptions(Path(sys.argv[1]), 'seqpacket', 0o600), {})\n"
        "    print('won', flush=True); sys.stdin.read()\n"
        "except StartError as error: print('refused', error, flush=True)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = [process.stdout.readline() for process in started if process.stdout]
    for process in started:
        process.communicate(timeout=20)
    assert sorted(answer.split()[0] for answer in answers) == ["refused", "refused", "refused", "won"], answers


# ---- systemd


ACTIVATED = """
import os, socket, sys
kind, path = sys.argv[1:3]
if kind == "file":
    passed = os.open("/dev/null", os.O_RDONLY)
elif kind == "tcp":
    held = socket.create_server(("127.0.0.1", 0)); passed = held.fileno()
elif kind != "closed":
    types = {"stream": socket.SOCK_STREAM}
    held = socket.socket(socket.AF_UNIX, types.get(kind, socket.SOCK_SEQPACKET))
    held.bind(path)
    if kind == "credentials":
        held.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_PASSSEC, 1)
    if kind != "deaf":
        held.listen()
    passed = held.fileno()
if kind == "closed":
    os.closerange(3, 10)
else:
    os.dup2(passed, 3)
environment = {
    "LISTEN_PID": "1" if kind == "other process" else str(os.getpid()),
    "LISTEN_FDS": "2" if kind == "two" else "1",
    "LISTEN_FDNAMES": "x",
}
from pathlib import Path
from daemon.control.process.exit_codes import StartError
from daemon.control.process.listener import ListenerOptions, open_listener
try:
    listener = open_listener(ListenerOptions(Path(path + ".ours"), "seqpacket", 0o600), environment)
except StartError as error:
    print(error.exit_status, error)
    raise SystemExit
assert not environment, environment
print("inherited" if listener.is_inherited else "bound", listener.socket.fileno(), listener.path)
assert not os.get_inheritable(listener.socket.fileno())
for option in (socket.SO_PASSCRED, socket.SO_PASSSEC):
    assert listener.socket.getsockopt(socket.SOL_SOCKET, option) == 0
listener.close()
print(os.path.exists(listener.path))
"""


def activated(directory: Path, kind: str) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", ACTIVATED, kind, str(directory / "s")], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_systemds_socket_is_used_and_its_path_stays(directory: Path) -> None:
    assert activated(directory, "seqpacket") == [f"inherited 3 {directory / 's'}", "True"]


def test_nothing_stands_before_a_handoffs_descriptor(directory: Path) -> None:
    assert activated(directory, "credentials") == [f"inherited 3 {directory / 's'}", "True"]


def test_variables_meant_for_another_process_are_ignored(directory: Path) -> None:
    assert activated(directory, "other process")[0].startswith("bound")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("stream", "type seqpacket"),
        ("tcp", "Unix socket"),
        ("file", "not a socket"),
        ("closed", "not open"),
        ("deaf", "does not listen"),
        ("two", "2 sockets"),
    ],
)
def test_anything_else_from_systemd_is_refused(directory: Path, kind: str, said: str) -> None:
    (line,) = activated(directory, kind)
    assert line.startswith(str(EXIT_CONFIGURATION))
    assert said in line


# ---- descriptors
