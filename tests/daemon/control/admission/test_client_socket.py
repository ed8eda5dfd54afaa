"""What `inspect` says of every kind of descriptor, and what it does to good ones. Compiled and interpreted alike."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from daemon.control.admission.client_socket import (
    CLEAR_NONBLOCKING,
    NOT_A_STREAM_SOCKET,
    PEER_UNKNOWN,
    STREAM_SOCKET,
    WANT_CREDENTIALS,
    Scratch,
    inspect,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def scratch() -> Scratch:
    return Scratch()


def look(scratch: Scratch, fd: int, peer_fd: int = -1, wanted: int = 0) -> int:
    return inspect(fd, peer_fd, wanted, scratch.address)


def test_tcp_gets_nodelay(scratch: Scratch) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(family) as tcp:
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            assert look(scratch, tcp.fileno()) == STREAM_SOCKET
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_close_neither_waits_nor_resets(scratch: Scratch, seconds: int) -> None:
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
        assert look(scratch, tcp.fileno()) == STREAM_SOCKET
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] == bytes(4)


def test_a_unix_stream_socket_is_good_without_it(scratch: Scratch) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert look(scratch, one.fileno()) == STREAM_SOCKET


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_SEQPACKET)],
)
def test_other_sockets_are_refused(scratch: Scratch, family: int, kind: int) -> None:
    with socket.socket(family, kind) as other:
        assert look(scratch, other.fileno()) == NOT_A_STREAM_SOCKET


def test_what_is_no_socket_is_refused(scratch: Scratch, tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    file_fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    for fd in (read_fd, write_fd, file_fd):
        assert look(scratch, fd) == NOT_A_STREAM_SOCKET
        os.close(fd)
    assert look(scratch, -1) == NOT_A_STREAM_SOCKET
    assert look(scratch, read_fd) == NOT_A_STREAM_SOCKET


def test_blocking_mode_is_restored_only_where_asked(scratch: Scratch) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        look(scratch, one.fileno())
        assert not os.get_blocking(one.fileno())
        assert look(scratch, one.fileno(), wanted=CLEAR_NONBLOCKING) == STREAM_SOCKET
        assert os.get_blocking(one.fileno())


def test_the_peers_credentials(scratch: Scratch) -> None:
    one, other = socket.socketpair()
    peer, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other, peer, far:
        assert look(scratch, one.fileno(), peer.fileno(), WANT_CREDENTIALS) == STREAM_SOCKET
        assert (scratch.uid, scratch.gid) == (os.geteuid(), os.getegid())
        assert look(scratch, one.fileno(), -1, WANT_CREDENTIALS) == PEER_UNKNOWN
