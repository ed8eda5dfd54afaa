"""Compiled inspection of a client's descriptor: socket type, peer credentials, TCP_NODELAY.

Called once per handoff on the main thread. Made from Python, these system calls would cost as much as all of admission.
"""

# Only Numba knows the types of compiled code, and it passes signatures to the overloads.
# ruff: noqa: ANN401, ARG001

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from typing import Any

import numpy as np

from config.compilation import compiled, foreign, overload, types
from config.library import PLANE, native
from daemon.plane.records import record, record_accessor

# Results of `inspect`.
STREAM_SOCKET = 0
NOT_A_STREAM_SOCKET = 1
PEER_UNKNOWN = 2  # the peer's credentials were requested and are not available

# Options of `inspect`: what to do besides checking the type.
WANT_CREDENTIALS = 1
CLEAR_NONBLOCKING = 2  # io_uring itself waits on a blocking socket, and fails on a non-blocking one where it would wait

# pid, uid and gid form a struct ucred; the last two, which stay 0, a struct linger.
_SCRATCH = record("value:i4 size:i4 one:i4 pid:i4 uid:i4 gid:i4 linger:i4 linger_s:i4", 32)
_ONE_OFFSET, _CREDENTIALS_OFFSET, _CREDENTIALS_BYTES = 8, 12, 12
_ONE_BYTES, _LINGER_OFFSET, _LINGER_BYTES = 4, 24, 8
_SIZE_OFFSET = 4
_scratch_at = record_accessor(_SCRATCH)

_SOL_SOCKET, _SO_TYPE, _SO_PEERCRED = int(socket.SOL_SOCKET), int(socket.SO_TYPE), int(socket.SO_PEERCRED)
_SO_LINGER = int(socket.SO_LINGER)
_SOCK_STREAM = int(socket.SOCK_STREAM)
_IPPROTO_TCP, _TCP_NODELAY = int(socket.IPPROTO_TCP), int(socket.TCP_NODELAY)
_F_GETFL, _F_SETFL, _O_NONBLOCK = int(fcntl.F_GETFL), int(fcntl.F_SETFL), int(os.O_NONBLOCK)

_i32, _pointer = types.int32, types.intp
_c_getsockopt = foreign("getsockopt", _i32, _i32, _i32, _i32, _pointer, _pointer)
_c_setsockopt = foreign("setsockopt", _i32, _i32, _i32, _i32, _pointer, _i32)
_c_fcntl = foreign("fcntl", _i32, _i32, _i32, _pointer)
_libc: Any = ctypes.CDLL(None)


def _get_option(fd: int, level: int, option: int, address: int, size_address: int) -> int:
    return int(_libc.getsockopt(fd, level, option, ctypes.c_void_p(address), ctypes.c_void_p(size_address)))


@overload(_get_option)
def _get_option_compiled(fd: Any, level: Any, option: Any, address: Any, size_address: Any) -> Any:
    def call(fd: Any, level: Any, option: Any, address: Any, size_address: Any) -> Any:
        return _c_getsockopt(fd, level, option, address, size_address)

    return call


def _set_option(fd: int, level: int, option: int, address: int, size: int) -> int:
    return int(_libc.setsockopt(fd, level, option, ctypes.c_void_p(address), size))


@overload(_set_option)
def _set_option_compiled(fd: Any, level: Any, option: Any, address: Any, size: Any) -> Any:
    def call(fd: Any, level: Any, option: Any, address: Any, size: Any) -> Any:
        return _c_setsockopt(fd, level, option, address, size)

    return call


def _file_control(fd: int, operation: int, value: int) -> int:
    return int(_libc.fcntl(fd, operation, ctypes.c_long(value)))


@overload(_file_control)
def _file_control_compiled(fd: Any, operation: Any, value: Any) -> Any:
    def call(fd: Any, operation: Any, value: Any) -> Any:
        return _c_fcntl(fd, operation, value)

    return call


@compiled
def inspect(client_fd: int, peer_fd: int, options: int, address: int) -> int:
    """Check and prepare a descriptor; `address` is that of an `Inspector`'s words. STREAM_SOCKET or the fault."""
    scratch = _scratch_at(address)
    # Only TCP accepts TCP_NODELAY: if it does, this is a stream socket. Otherwise query the type.
    if _set_option(client_fd, _IPPROTO_TCP, _TCP_NODELAY, address + _ONE_OFFSET, _ONE_BYTES) != 0:
        scratch.size = 4
        if _get_option(client_fd, _SOL_SOCKET, _SO_TYPE, address, address + _SIZE_OFFSET) != 0:
            return NOT_A_STREAM_SOCKET
        if scratch.value != _SOCK_STREAM:
            return NOT_A_STREAM_SOCKET
    # SO_LINGER may be set on the socket: then close would block, and every stream with it, until the client has read
    # what was sent, or it would send a reset.
    _set_option(client_fd, _SOL_SOCKET, _SO_LINGER, address + _LINGER_OFFSET, _LINGER_BYTES)
    if options & CLEAR_NONBLOCKING:
        flags = _file_control(client_fd, _F_GETFL, 0)
        if flags >= 0 and flags & _O_NONBLOCK:
            _file_control(client_fd, _F_SETFL, flags & ~_O_NONBLOCK)
    if options & WANT_CREDENTIALS:
        scratch.size = _CREDENTIALS_BYTES
        place = address + _CREDENTIALS_OFFSET
        if _get_option(peer_fd, _SOL_SOCKET, _SO_PEERCRED, place, address + _SIZE_OFFSET) != 0:
            return PEER_UNKNOWN
    return STREAM_SOCKET


class Inspector:
    """`inspect` in compiled form, and the words that it reads and writes."""

    __slots__ = ("_address", "_inspect", "_words")

    def __init__(self) -> None:
        """Raises LibraryError where the plane's library cannot be used."""
        self._words: Any = np.zeros(1, _SCRATCH)
        self._words[0].one = 1
        self._address = int(self._words.ctypes.data)
        self._inspect: Any = native(PLANE, f"{__name__}.inspect", is_short=True)

    def inspect(self, client_fd: int, peer_fd: int, options: int) -> int:
        """Check and prepare a client's descriptor: STREAM_SOCKET, or the fault."""
        found: int = self._inspect(client_fd, peer_fd, options, self._address)
        return found

    @property
    def uid(self) -> int:
        """The peer's user, after WANT_CREDENTIALS."""
        return int(self._words[0].uid)

    @property
    def gid(self) -> int:
        """The peer's group, after WANT_CREDENTIALS."""
        return int(self._words[0].gid)
