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
    Inspector,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector()


def look(inspector: Inspector, fd: int, peer_fd: int = -1, wanted: int = 0) -> int:
    return inspector.inspect(fd, peer_fd, wanted)


def test_tcp_gets_nodelay(inspector: Inspector) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(family) as tcp:
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            assert look(inspector, tcp.fileno()) == STREAM_SOCKET
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_close_neither_waits_nor_resets(inspector: Inspector, seconds: int) -> None:
    with socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
        assert look(inspector, tcp.fileno()) == STREAM_SOCKET
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[:4] == bytes(4)


def test_a_unix_stream_socket_is_good_without_it(inspector: Inspector) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert look(inspector, one.fileno()) == STREAM_SOCKET


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_SEQPACKET)],
)
def test_other_sockets_are_refused(inspector: Inspector, family: int, kind: int) -> None:
    with socket.socket(family, kind) as other:
        assert look(inspector, other.fileno()) == NOT_A_STREAM_SOCKET


def test_what_is_no_socket_is_refused(inspector: Inspector, tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    file_fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    for fd in (read_fd, write_fd, file_fd):
        assert look(inspector, fd) == NOT_A_STREAM_SOCKET
        os.close(fd)
    assert look(inspector, -1) == NOT_A_STREAM_SOCKET
    assert look(inspector, read_fd) == NOT_A_STREAM_SOCKET


def test_blocking_mode_is_restored_only_where_asked(inspector: Inspector) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        look(inspector, one.fileno())
        assert not os.get_blocking(one.fileno())
        assert look(inspector, one.fileno(), wanted=CLEAR_NONBLOCKING) == STREAM_SOCKET
        assert os.get_blocking(one.fileno())


def test_the_peers_credentials(inspector: Inspector) -> None:
    one, other = socket.socketpair()
    peer, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other, peer, far:
        assert look(inspector, one.fileno(), peer.fileno(), WANT_CREDENTIALS) == STREAM_SOCKET
        assert (inspector.uid, inspector.gid) == (os.geteuid(), os.getegid())
        assert look(inspector, one.fileno(), -1, WANT_CREDENTIALS) == PEER_UNKNOWN
