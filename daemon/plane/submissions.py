"""Filling submissions: `room`, and one `prepare_<operation>` for each operation in use. Data-plane thread only."""

from __future__ import annotations

from typing import Any

from config.compilation import inlined
from daemon.plane.entries import (
    ACCEPT,
    ACCEPT_MULTISHOT,
    ASYNC_CANCEL,
    CLOSE,
    CONNECT,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    OFFSET_CURRENT,
    POLL_ADD,
    READ,
    RECV,
    RECVMSG,
    SEND,
    SEND_ZC,
    SHUT_WR,
    SHUTDOWN,
    SOCK_CLOEXEC,
    SOCKET,
    WRITE,
)
from daemon.plane.table import submission_of


@inlined
def room(plane: Any) -> int:
    """How many submissions can still be filled this turn."""
    return int(plane.submission_mask + 1 - plane.submission_pending)


@inlined
def prepare(plane: Any, opcode: int, fd: int, tag: int) -> Any:
    """Claim the next submission and fill what every operation has. The caller has checked `room`."""
    assert plane.submission_pending <= plane.submission_mask
    entry = submission_of(plane, plane.submission_base + plane.submission_pending)
    plane.submission_pending += 1
    entry.opcode = opcode
    entry.flags = 0
    entry.priority = 0
    entry.fd = fd
    entry.offset = 0
    entry.address = 0
    entry.length = 0
    entry.operation_flags = 0
    entry.tag = tag
    entry.buffer_index = 0
    entry.personality = 0
    entry.splice_fd = 0
    entry.address3 = 0
    entry.padding = 0
    return entry


@inlined
def prepare_accept(plane: Any, fd: int, tag: int) -> None:
    entry = prepare(plane, ACCEPT, fd, tag)
    entry.priority = ACCEPT_MULTISHOT
    entry.operation_flags = SOCK_CLOEXEC


@inlined
def prepare_receive_message(plane: Any, fd: int, header_address: int, tag: int) -> None:
    entry = prepare(plane, RECVMSG, fd, tag)
    entry.address = header_address
    entry.length = 1
    entry.operation_flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC


@inlined
def prepare_poll(plane: Any, fd: int, mask: int, tag: int) -> None:
    entry = prepare(plane, POLL_ADD, fd, tag)
    entry.operation_flags = mask


@inlined
def prepare_cancel(plane: Any, target_tag: int, tag: int) -> None:
    entry = prepare(plane, ASYNC_CANCEL, -1, tag)
    entry.address = target_tag


@inlined
def prepare_send(plane: Any, fd: int, address: int, length: int, zero_copy: bool, tag: int) -> None:
    entry = prepare(plane, SEND_ZC if zero_copy else SEND, fd, tag)
    entry.address = address
    entry.length = length
    entry.operation_flags = MSG_NOSIGNAL


@inlined
def prepare_receive(plane: Any, fd: int, address: int, length: int, flags: int, tag: int) -> Any:
    entry = prepare(plane, RECV, fd, tag)
    entry.address = address
    entry.length = length
    entry.operation_flags = flags
    return entry


@inlined
def prepare_read(plane: Any, fd: int, address: int, length: int, tag: int) -> None:
    entry = prepare(plane, READ, fd, tag)
    entry.address = address
    entry.length = length
    entry.offset = OFFSET_CURRENT


@inlined
def prepare_write(plane: Any, fd: int, address: int, length: int, tag: int) -> None:
    entry = prepare(plane, WRITE, fd, tag)
    entry.address = address
    entry.length = length
    entry.offset = OFFSET_CURRENT


@inlined
def prepare_shutdown(plane: Any, fd: int, tag: int) -> None:
    entry = prepare(plane, SHUTDOWN, fd, tag)
    entry.length = SHUT_WR


@inlined
def prepare_close(plane: Any, fd: int, tag: int) -> None:
    prepare(plane, CLOSE, fd, tag)


@inlined
def prepare_socket(plane: Any, family: int, kind: int, tag: int) -> None:
    entry = prepare(plane, SOCKET, family, tag)
    entry.offset = kind


@inlined
def prepare_connect(plane: Any, fd: int, address: int, length: int, tag: int) -> None:
    entry = prepare(plane, CONNECT, fd, tag)
    entry.address = address
    entry.offset = length
