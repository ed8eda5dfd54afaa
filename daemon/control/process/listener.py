"""The Unix socket that Apache connects to: bound here or inherited from systemd; unlinked only if it is still ours.

Main thread, before the planes start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import logging
import os
import pwd
import select
import socket
import stat
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.control.process.exit_codes import (
    EXIT_CANNOT_CREATE,
    EXIT_CONFIGURATION,
    EXIT_IN_USE,
    EXIT_NO_PERMISSION,
    StartError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, MutableMapping

    from config.settings import Server

PATH_BYTES_MAX = 107  # sun_path holds 108 with its NUL
SYSTEMD_FD_FIRST = 3
DIRECTORY_LOCK_WAIT_S = 1.0
# A killed daemon's socket accepts connections until the kernel has torn its process down, so retry before refusing.
PROBE_COUNT = 3
PROBE_INTERVAL_S = 0.1

# Options that a unit's PassCredentials= and the like switch on. Accepted sockets inherit them, and their control
# messages would precede a handoff's descriptor, which the data plane expects first. SO_PASSPIDFD (Linux 6.5) even
# passes a descriptor of its own.
_ANCILLARY_OPTIONS = (socket.SO_PASSCRED, socket.SO_PASSSEC, 76)

SOCKET_TYPES = {"seqpacket": socket.SOCK_SEQPACKET, "stream": socket.SOCK_STREAM}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListenerOptions:
    """The listener's settings."""

    path: Path
    socket_type: str  # "seqpacket" or "stream"
    mode: int
    owner: str = ""  # name or number; empty leaves it unchanged
    group: str = ""
    backlog: int = 4096

    @classmethod
    def of(cls, server: Server) -> ListenerOptions:
        """The options from a configuration."""
        return cls(
            path=Path(server.socket_path),
            socket_type=server.socket_type,
            mode=server.socket_mode,
            owner=server.socket_owner,
            group=server.socket_group,
            backlog=server.backlog,
        )


@dataclass
class Listener:
    """A listening socket; `inode` is None when systemd owns the path."""

    socket: socket.socket
    path: Path
    inode: tuple[int, int] | None = field(default=None)

    @property
    def is_inherited(self) -> bool:
        """True when systemd bound the socket and keeps listening after the daemon exits."""
        return self.inode is None

    def unlink(self) -> None:
        """Remove the path if it is still the socket we bound; never another daemon's."""
        if self.inode is None:
            return
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self.inode:
                self.path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("cannot remove %s: %s", self.path, error.strerror)
        self.inode = (-1, -1)

    def is_empty(self) -> bool:
        """True when no connection waits to be accepted."""
        waiting = select.poll()
        waiting.register(self.socket, select.POLLIN)
        return not waiting.poll(0)

    def close(self) -> None:
        """Unlink the path and close the socket; connections not yet accepted are reset."""
        self.unlink()
        self.socket.close()


def open_listener(options: ListenerOptions, environment: MutableMapping[str, str]) -> Listener:
    """The listening socket: systemd's if it passed a socket, otherwise bound at `options.path`.

    Raises:
        StartError: the socket cannot be opened.
    """
    inherited = _inherited_socket(options, environment)
    if inherited is not None:
        return inherited
    path = options.path
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise StartError(f"socket path {path} is longer than {PATH_BYTES_MAX} bytes", EXIT_CONFIGURATION)
    with _directory_locked(path.parent):
        _remove_stale(path, SOCKET_TYPES[options.socket_type])
        return _bind(options)


def _bind(options: ListenerOptions) -> Listener:
    """Bind with owner and mode set before anyone can connect; then listen."""
    path = options.path
    listening = socket.socket(socket.AF_UNIX, SOCKET_TYPES[options.socket_type])
    previous_umask = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise _explained(path, error) from error
    finally:
        os.umask(previous_umask)
    status = os.lstat(path)
    listener = Listener(listening, path, (status.st_dev, status.st_ino))
    try:
        _set_owner(path, options)
        path.chmod(options.mode)
        listening.listen(options.backlog)
    except StartError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise _explained(path, error) from error
    return listener


def _set_owner(path: Path, options: ListenerOptions) -> None:
    """Give the socket to `owner` and `group`, names or numbers."""
    if not options.owner and not options.group:
        return
    try:
        user_id = _number(options.owner, lambda name: pwd.getpwnam(name).pw_uid)
        group_id = _number(options.group, lambda name: grp.getgrnam(name).gr_gid)
    except KeyError as error:
        raise StartError(f"socket {path}: unknown owner or group: {error}", EXIT_CONFIGURATION) from error
    try:
        os.chown(path, user_id, group_id)
    except OSError as error:
        new_owner = f"{options.owner}:{options.group}"
        raise StartError(f"cannot give {path} to {new_owner}: {error.strerror}", EXIT_NO_PERMISSION) from error


def _number(name: str, find: Callable[[str], int]) -> int:
    """The id for a name or number; -1, which leaves it unchanged, for an empty string."""
    if not name:
        return -1
    return int(name) if name.isdecimal() else find(name)


def _explained(path: Path, error: OSError) -> StartError:
    """Translate a failed bind into a message for the operator."""
    if error.errno == errno.ENOENT:
        return StartError(f"cannot create socket {path}: directory {path.parent} is missing", EXIT_CANNOT_CREATE)
    if error.errno == errno.ENOTDIR:
        return StartError(f"cannot create socket {path}: {path.parent} is not a directory", EXIT_CANNOT_CREATE)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return StartError(
            f"cannot create socket {path}: no permission for {path.parent} as {_user_name()}", EXIT_NO_PERMISSION
        )
    if error.errno == errno.EADDRINUSE:
        return StartError(f"socket {path} is in use: it was bound by another process just now", EXIT_IN_USE)
    return StartError(f"cannot create socket {path}: {error.strerror}", EXIT_CANNOT_CREATE)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _remove_stale(path: Path, socket_type: socket.SocketKind) -> None:
    """Unlink a socket that no process listens on; refuse when it is in use or when the path is not a socket."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # bind reports what is missing
    except OSError as error:
        raise _explained(path, error) from error
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path} exists and is not a socket: remove it, or choose another path", EXIT_CANNOT_CREATE)
    for attempt in range(PROBE_COUNT):
        owner = _probe(path, socket_type)
        if owner is None:
            break
        if attempt == PROBE_COUNT - 1:
            raise StartError(f"socket {path} is in use: {owner} listens on it", EXIT_IN_USE)
        time.sleep(PROBE_INTERVAL_S)
    logger.info("removing the stale socket %s", path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot remove the stale socket {path}: {error.strerror}"
        raise StartError(message, EXIT_NO_PERMISSION) from error


def _probe(path: Path, socket_type: socket.SocketKind) -> str | None:
    """A description of the process that accepts on this socket, or None when none does."""
    with socket.socket(socket.AF_UNIX, socket_type) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except BlockingIOError:
            return "a process whose backlog is full"
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                return "a process with another socket type"
            if error.errno == errno.EACCES:
                message = f"socket {path} exists, and {_user_name()} may not connect to see whether it is in use"
                raise StartError(message, EXIT_NO_PERMISSION) from error
            raise _explained(path, error) from error
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        (process_id,) = struct.unpack_from("i", credentials)
        return f"process {process_id}"


@contextlib.contextmanager
def _directory_locked(directory: Path) -> Generator[None, None, None]:
    """Keep two daemons that start together from unlinking each other's socket.

    The lock only narrows the race: any process that can read the directory can hold it, so we wait briefly.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield  # missing or not readable: bind reports it if it matters
        return
    try:
        deadline_s = time.monotonic() + DIRECTORY_LOCK_WAIT_S
        while time.monotonic() < deadline_s:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _inherited_socket(options: ListenerOptions, environment: MutableMapping[str, str]) -> Listener | None:
    """The socket that systemd passed (sd_listen_fds(3)), or None. Removes the variables from the environment."""
    process_id, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process_id != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        return None
    if int(count) != 1:
        raise StartError(f"systemd passed {count} sockets, and the daemon listens on one", EXIT_CONFIGURATION)
    try:
        is_socket = stat.S_ISSOCK(os.fstat(SYSTEMD_FD_FIRST).st_mode)
    except OSError as error:
        message = f"LISTEN_FDS names descriptor {SYSTEMD_FD_FIRST}, which is not open"
        raise StartError(message, EXIT_CONFIGURATION) from error
    if not is_socket:
        message = f"LISTEN_FDS names descriptor {SYSTEMD_FD_FIRST}, which is not a socket"
        raise StartError(message, EXIT_CONFIGURATION)
    listening = socket.socket(fileno=SYSTEMD_FD_FIRST)
    listening.set_inheritable(False)
    expected_type = SOCKET_TYPES[options.socket_type]
    if listening.family != socket.AF_UNIX or listening.type != expected_type:
        message = f"systemd's socket must be a Unix socket of type {options.socket_type} (ListenSequentialPacket=)"
        raise StartError(message, EXIT_CONFIGURATION)
    if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise StartError("systemd's socket does not listen: Accept=no is needed", EXIT_CONFIGURATION)
    for option in _ANCILLARY_OPTIONS:
        with contextlib.suppress(OSError):  # not supported by this kernel
            listening.setsockopt(socket.SOL_SOCKET, option, 0)
    return Listener(listening, Path(os.fsdecode(listening.getsockname()) or options.path))
