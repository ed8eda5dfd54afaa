"""The system calls that serve submissions, each without waiting. Results are not negative, or the negative errno.

They go by number, because that is what compiled code can call without a twin for each; numbers differ by architecture.
"""

from __future__ import annotations

import platform
from typing import Any, Final

from config.compilation import compiled, inlined
from daemon.plane.entries import MSG_DONTWAIT, READ, RECV, RECVMSG, SEND, SEND_ZC, WRITE
from daemon.plane.records import record, record_accessor
from daemon.plane.system import system_call

_NUMBERS: Final = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "sendto": 44, "recvfrom": 45, "recvmsg": 47, "shutdown": 48,
        "socket": 41, "connect": 42,
        "epoll_ctl": 233, "epoll_pwait": 281, "accept4": 288, "epoll_pwait2": 441,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "sendto": 206, "recvfrom": 207, "recvmsg": 212, "shutdown": 210,
        "socket": 198, "connect": 203,
        "epoll_ctl": 21, "epoll_pwait": 22, "accept4": 242, "epoll_pwait2": 441,
    },
}[platform.machine()]  # fmt: skip
SYS_READ: Final = _NUMBERS["read"]
SYS_WRITE: Final = _NUMBERS["write"]
SYS_CLOSE: Final = _NUMBERS["close"]
SYS_SENDTO: Final = _NUMBERS["sendto"]
SYS_RECVFROM: Final = _NUMBERS["recvfrom"]
SYS_RECVMSG: Final = _NUMBERS["recvmsg"]
SYS_SHUTDOWN: Final = _NUMBERS["shutdown"]
SYS_SOCKET: Final = _NUMBERS["socket"]
SYS_CONNECT: Final = _NUMBERS["connect"]
SYS_ACCEPT4: Final = _NUMBERS["accept4"]
SYS_EPOLL_CTL: Final = _NUMBERS["epoll_ctl"]
SYS_EPOLL_PWAIT: Final = _NUMBERS["epoll_pwait"]
SYS_EPOLL_PWAIT2: Final = _NUMBERS["epoll_pwait2"]

EPOLL_CTL_ADD = 1
EPOLL_CTL_DEL = 2
EPOLL_CTL_MOD = 3

# struct epoll_event is packed on x86-64 and nowhere else. Of its 64 bits of data we use the first 32.
_PACKED = ("events:u4 fd:i4 unused:i4", 12)
_ALIGNED = ("events:u4 gap:i4 fd:i4 unused:i4", 16)
EVENT = record(*(_PACKED if platform.machine() == "x86_64" else _ALIGNED))
EVENT_BYTES: Final = int(EVENT.itemsize)
_event_at = record_accessor(EVENT)


@inlined
def event_of(kernel: Any, index: int) -> Any:
    """The event that the last wait put at this index."""
    return _event_at(kernel.events + index * EVENT_BYTES)


@compiled
def change_interest(kernel: Any, change: int, fd: int, mask: int) -> int:
    """One epoll_ctl."""
    event = _event_at(kernel.change)
    event.events = mask
    event.fd = fd
    return system_call(SYS_EPOLL_CTL, kernel.epoll_fd, change, fd, kernel.change, 0, 0)


@compiled
def transfer(opcode: int, fd: int, address: int, length: int, flags: int) -> int:
    """Send, receive, read or write once. Sockets may be in blocking mode; pipes are not, since read(2) has no flags."""
    if opcode in (SEND, SEND_ZC):
        return system_call(SYS_SENDTO, fd, address, length, flags | MSG_DONTWAIT, 0, 0)
    if opcode == RECV:
        return system_call(SYS_RECVFROM, fd, address, length, flags | MSG_DONTWAIT, 0, 0)
    if opcode == RECVMSG:
        return system_call(SYS_RECVMSG, fd, address, flags | MSG_DONTWAIT, 0, 0, 0)
    if opcode == READ:
        return system_call(SYS_READ, fd, address, length, 0, 0, 0)
    assert opcode == WRITE
    return system_call(SYS_WRITE, fd, address, length, 0, 0, 0)
