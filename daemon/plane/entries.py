"""The kernel's language: layouts of submission and completion entries, opcodes and flags.

Layouts are those of `struct io_uring_sqe` and `struct io_uring_cqe` (include/uapi/linux/io_uring.h); a test checks the
offsets. Both kernels (io_uring, epoll) and the simulated one read the same entries.
"""

from __future__ import annotations

import numpy as np

SUBMISSION = np.dtype(
    (
        np.record,
        {
            "names": ["opcode", "flags", "priority", "fd", "offset", "address", "length", "operation_flags", "tag",
                      "buffer_index", "personality", "splice_fd", "address3", "padding"],
            "formats": ["u1", "u1", "<u2", "<i4", "<u8", "<u8", "<u4", "<u4", "<i8", "<u2", "<u2", "<i4", "<u8", "<u8"],
            "offsets": [0, 1, 2, 4, 8, 16, 24, 28, 32, 40, 42, 44, 48, 56],
            "itemsize": 64,
        },
    )
)  # fmt: skip
COMPLETION = np.dtype(
    (
        np.record,
        {"names": ["tag", "result", "flags"], "formats": ["<i8", "<i4", "<u4"], "offsets": [0, 8, 12], "itemsize": 16},
    )
)

# Opcodes (enum io_uring_op).
NOP = 0
POLL_ADD = 6
RECVMSG = 10
ACCEPT = 13
ASYNC_CANCEL = 14
CONNECT = 16
CLOSE = 19
READ = 22
WRITE = 23
SEND = 26
RECV = 27
SHUTDOWN = 34
SOCKET = 45
SEND_ZC = 47
OPCODES = (
    *(NOP, POLL_ADD, RECVMSG, ACCEPT, ASYNC_CANCEL, CONNECT, CLOSE, READ, WRITE, SEND, RECV, SHUTDOWN, SOCKET, SEND_ZC),
)

ACCEPT_MULTISHOT = 1  # IORING_ACCEPT_MULTISHOT, in `priority`
POLL_FIRST = 1  # IORING_RECVSEND_POLL_FIRST, in `priority`: nothing is there yet, so wait before trying
BUFFER_SELECT = 32  # IOSQE_BUFFER_SELECT, in `flags`: the kernel takes the next buffer of ring `buffer_index`
COMPLETION_BUFFER = 1  # IORING_CQE_F_BUFFER: the buffer's number is in the flags, from bit 16 on
OFFSET_CURRENT = 0xFFFFFFFFFFFFFFFF
COMPLETION_MORE = 2  # IORING_CQE_F_MORE: this submission will complete again
COMPLETION_NONEMPTY = 4  # IORING_CQE_F_SOCK_NONEMPTY: a receive has left bytes behind
COMPLETION_NOTIFICATION = 8  # IORING_CQE_F_NOTIF: the kernel has let go of a zero-copy send's memory

MSG_DONTWAIT = 0x40
MSG_TRUNC = 0x20
MSG_CTRUNC = 0x8
MSG_NOSIGNAL = 0x4000
MSG_CMSG_CLOEXEC = 0x40000000
SOCK_STREAM = 1
SOCK_NONBLOCK = 0x800
SOCK_CLOEXEC = 0x80000
POLLIN = 0x1
POLLOUT = 0x4
POLLERR = 0x8
POLLHUP = 0x10
POLLRDHUP = 0x2000
SHUT_WR = 1

EINTR = 4
EBADF = 9
EAGAIN = 11
ENOMEM = 12
EINVAL = 22
ENFILE = 23
EMFILE = 24
EPIPE = 32
EOPNOTSUPP = 95
ECONNRESET = 104
ENOBUFS = 105
EINPROGRESS = 115
EALREADY = 114
EISCONN = 106
ETIMEDOUT = 110
ECANCELED = 125
ECONNABORTED = 103
