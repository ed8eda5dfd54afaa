"""The kernel's side of connections to upstreams: sockets, connects, sends, and receives into provided buffers.

`ProvidedBuffers` reads the plane's buffer ring as io_uring would, with a head of its own, and keeps count: each buffer
is the kernel's, in a completion on its way, or the plane's for the length of one turn.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from daemon.plane import entries as e
from tests.simulation.invariant import check
from tests.simulation.objects import UpstreamSocket

if TYPE_CHECKING:
    from daemon.plane.table import Plane
    from tests.simulation.kernel import Operation, SimulatedKernel

_ENTRY = struct.Struct("<QIHH")
_TAIL = struct.Struct("<H")
_TAIL_OFFSET = 14  # of `struct io_uring_buf_ring`, in its first entry
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
ENETUNREACH = 101
_NO_SOCKET = (e.EMFILE, e.ENFILE, e.ENOBUFS, e.ENOMEM)
_NO_CONNECTION = (e.EINTR, e.EAGAIN, e.ENOMEM, e.ENOBUFS)
_RETRY_SEND = (e.EINTR, e.EAGAIN, e.ENOBUFS, e.ENOMEM)
_RETRY_RECEIVE = (e.EINTR, e.EAGAIN, e.ENOBUFS, e.ENOMEM)


class ProvidedBuffers:
    """The ring of buffers to receive into. `scarce` leaves the kernel only so many of them."""

    def __init__(self, plane: Plane, scarce: int) -> None:
        count = len(plane.provided)
        self._ring = memoryview(plane.provided.view("u1")).cast("B")
        self._mask = count - 1
        self._base = plane.receives.ctypes.data
        self.bytes_each = len(plane.receives) // count
        self._tail = count  # as far as it has been looked at
        self._head = count - scarce
        self.count = scarce
        self.free = set(range(self._head, count))
        self.on_the_way: set[int] = set()  # in a completion that the plane has not seen
        self.lent: set[int] = set()  # the plane's, until the end of its turn

    def _published(self) -> int:
        return int(_TAIL.unpack_from(self._ring, _TAIL_OFFSET)[0])

    @property
    def is_empty(self) -> bool:
        return (self._published() - self._head) & 0xFFFF == 0

    def take(self) -> tuple[int, int]:
        """The next buffer: its number and address."""
        address, size, number, _ = _ENTRY.unpack_from(self._ring, (self._head & self._mask) * 16)
        check(number in self.free, f"receive buffer {number} was given to the kernel while it is in use")
        check(
            address == self._base + number * self.bytes_each, f"receive buffer {number} was given under a wrong address"
        )
        check(size == self.bytes_each, f"receive buffer {number} was given with {size} bytes")
        self._head = (self._head + 1) & 0xFFFF
        self.free.remove(number)
        self.on_the_way.add(number)
        return number, address

    def deliver(self, number: int) -> None:
        """Its completion is in the plane's hands now."""
        self.on_the_way.remove(number)
        self.lent.add(number)

    def end_turn(self) -> None:
        """What the plane was lent must be back, each buffer once."""
        tail = self._published()
        while self._tail & 0xFFFF != tail:
            _, _, number, _ = _ENTRY.unpack_from(self._ring, (self._tail & self._mask) * 16)
            check(number in self.lent, f"receive buffer {number} is given back, but was not lent")
            self.lent.remove(number)
            self.free.add(number)
            ctypes.memset(self._base + number * self.bytes_each, 0xEE, 64)
            self._tail += 1
        check(not self.lent, f"receive buffers {self.lent} were not given back in their turn")

    def check_at_rest(self) -> None:
        lost = self.count - len(self.free)
        check(lost == 0, f"{lost} receive buffers are lost")


def make_socket(kernel: SimulatedKernel, operation: Operation) -> None:
    """socket(2)."""
    check(operation.fd in (AF_UNIX, AF_INET, AF_INET6), f"a socket of family {operation.fd}")
    check(operation.offset & 0xF == e.SOCK_STREAM, f"a socket of type {operation.offset:#x}")
    check(operation.offset & e.SOCK_CLOEXEC, "a socket that a child would inherit")
    if kernel.draws_fault():
        kernel.finish(operation, -kernel.rng.choice(_NO_SOCKET))
        return
    socket = UpstreamSocket(kernel.new_fd(), (operation.tag >> 8) & 0xFFFFFF, operation.tag >> 32)
    kernel.add(socket)
    operation.target = socket
    kernel.finish(operation, socket.fd)


def inject_fault(kernel: SimulatedKernel, operation: Operation, socket: UpstreamSocket) -> bool:
    """Something goes wrong that has nothing to do with the upstream. False when this operation knows no such fault."""
    rng, opcode = kernel.rng, operation.opcode
    if opcode == e.CONNECT:
        code = rng.choice(_NO_CONNECTION)
        if code == e.EINTR and not socket.connecting:
            _begin_connecting(kernel, operation, socket)  # and goes on by itself
        kernel.finish(operation, -code)
    elif opcode in (e.SEND, e.RECV):
        if rng.random() < kernel.hostility.deadly:
            socket.reset(loses_input=rng.random() < 0.5)
            kernel.wake(socket)
            return False
        kernel.finish(operation, -rng.choice(_RETRY_SEND if opcode == e.SEND else _RETRY_RECEIVE))
    else:
        return False
    return True


def try_upstream(kernel: SimulatedKernel, operation: Operation, socket: UpstreamSocket) -> bool:
    """Do an operation on a connection now; False when it has to wait."""
    opcode = operation.opcode
    if opcode == e.CONNECT:
        return _connect(kernel, operation, socket)
    if opcode == e.SEND:
        return _send(kernel, operation, socket)
    check(opcode == e.RECV, f"operation {opcode} on a connection to an upstream")
    return _receive(kernel, operation, socket)


def _begin_connecting(kernel: SimulatedKernel, operation: Operation, socket: UpstreamSocket) -> None:
    socket.connecting, socket.connect_result = True, None
    upstream = kernel.network.get(operation.snapshot)
    if upstream is None:
        socket.connect_result = -e.EINVAL if len(operation.snapshot) < 2 else -ENETUNREACH
    else:
        upstream.connect(socket)


def _connect(kernel: SimulatedKernel, operation: Operation, socket: UpstreamSocket) -> bool:
    if not socket.connecting:
        _begin_connecting(kernel, operation, socket)
        socket.connect_operation = operation
    again = operation is not socket.connect_operation  # a second one, after EINTR
    if again and (socket.connect_result is None or socket.connected):
        kernel.finish(operation, -(e.EISCONN if socket.connected else e.EALREADY))
        return True
    if socket.connect_result is None:
        return False
    socket.connecting = socket.connected  # one that failed may be tried again
    kernel.finish(operation, socket.connect_result)
    return True


def _send(kernel: SimulatedKernel, operation: Operation, socket: UpstreamSocket) -> bool:
    check(socket.connected, f"a request is sent on descriptor {socket.fd}, which is not connected")
    data = ctypes.string_at(operation.address, operation.length)
    check(data == operation.snapshot, "a request's bytes changed while they were being sent")
    allowed = operation.length if socket.closed_by_upstream else min(operation.length, max(socket.space(), 0))
    if allowed > 1 and kernel.rng.random() < kernel.hostility.short:
        allowed = kernel.rng.randrange(1, allowed)
    result = socket.send(data[:allowed]) if allowed or socket.was_reset else 0
    if result == 0:
        return False
    kernel.finish(operation, result)
    if socket.was_reset:
        kernel.wake(socket)
    return True


def _receive(kernel: SimulatedKernel, operation: Operation, socket: UpstreamSocket) -> bool:
    """recv(2) into the next provided buffer, which is only taken when there are bytes to put into it."""
    check(socket.connected, f"descriptor {socket.fd} is received from, but not connected")
    check(operation.entry_flags & e.BUFFER_SELECT, "a receive without BUFFER_SELECT")
    is_ready = bool(socket.ready() & e.POLLIN)
    buffers = kernel.buffers
    if buffers.is_empty and (is_ready or not operation.priority & e.POLL_FIRST):
        kernel.finish(operation, -e.ENOBUFS)
        return True
    if not is_ready:
        return False
    limit = min(operation.length or buffers.bytes_each, buffers.bytes_each)
    if kernel.rng.random() < kernel.hostility.short:
        limit = kernel.rng.randrange(1, limit + 1)
    outcome = socket.receive(limit)
    if isinstance(outcome, int) or not outcome:
        kernel.finish(operation, outcome if isinstance(outcome, int) else 0)
        return True
    number, address = buffers.take()
    ctypes.memmove(address, outcome, len(outcome))
    operation.snapshot = outcome
    flags = e.COMPLETION_BUFFER | number << 16
    if socket.incoming and kernel.rng.random() < 0.8:
        flags |= e.COMPLETION_NONEMPTY
    kernel.finish(operation, len(outcome), flags)
    return True
