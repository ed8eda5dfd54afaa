"""Enter the kernel once: serve pending submissions with non-blocking system calls, wait, and post completions.

What can be done at once is done at once. What would block waits for its descriptor and is tried again when epoll
reports it, as io_uring does for a descriptor in blocking mode. Epoll is slept in when nothing else was done; while
there is always something to do it is only asked, now and then. Data-plane thread only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from config.compilation import compiled, inlined
from daemon.epoll.calls import (
    SYS_ACCEPT4,
    SYS_CLOSE,
    SYS_CONNECT,
    SYS_EPOLL_PWAIT,
    SYS_EPOLL_PWAIT2,
    SYS_SHUTDOWN,
    SYS_SOCKET,
    event_of,
    transfer,
)
from daemon.epoll.waiting import (
    ALWAYS,
    ENOENT,
    interest_of,
    narrow,
    operation_find,
    operation_give,
    operation_of,
    operation_take,
    widen,
)
from daemon.plane.entries import (
    ACCEPT,
    ASYNC_CANCEL,
    BUFFER_SELECT,
    CLOSE,
    COMPLETION_BUFFER,
    COMPLETION_MORE,
    CONNECT,
    EAGAIN,
    EALREADY,
    EBADF,
    ECANCELED,
    EINPROGRESS,
    EINTR,
    EINVAL,
    EISCONN,
    ENOBUFS,
    ENOMEM,
    MSG_DONTWAIT,
    NOP,
    POLL_ADD,
    POLL_FIRST,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
    READ,
    RECV,
    RECVMSG,
    SEND,
    SEND_ZC,
    SHUTDOWN,
    SOCK_NONBLOCK,
    SOCKET,
    WRITE,
)
from daemon.plane.kernel_record import TIMESPEC
from daemon.plane.records import record_accessor
from daemon.plane.relay_table import provided_of
from daemon.plane.system import system_call
from daemon.plane.table import FOREVER_NS, completion_of, submission_of

_timespec_at = record_accessor(TIMESPEC)

EVENTS_MAX = 512  # events taken by one wait
# Peers accepted in one turn. Each brings a descriptor that is received in the next: if all were accepted at once, a
# process near its limit would have none left for the clients, and the kernel would drop them.
ACCEPTS_MAX = 8
COMPLETIONS_MAX = 16  # room kept for one submission or event: more than ever wait on one descriptor, and one more
POLL_INTERVAL_NS = 1_000_000  # while every turn has something to do, epoll is asked as often as this
FOREVER_MS = -1


@compiled
def epoll_enter(plane: Any, kernel: Any) -> int:
    """Serve, wait, post. 0, or the negative errno of an epoll that can no longer be used."""
    while plane.submission_pending > 0 and _room(plane) >= COMPLETIONS_MAX:
        entry = submission_of(plane, plane.submission_base)
        plane.submission_base += 1
        plane.submission_pending -= 1
        _serve(plane, kernel, entry)
    wait_ns = 0
    if plane.completion_count > 0:
        if plane.now_ns - kernel.polled_ns < POLL_INTERVAL_NS:
            return 0
    elif plane.wait_until_ns > plane.now_ns:
        wait_ns = FOREVER_NS if plane.wait_until_ns >= FOREVER_NS else plane.wait_until_ns - plane.now_ns
    kernel.polled_ns = plane.now_ns
    ready_count = _wait(kernel, wait_ns)
    if ready_count < 0:
        return 0 if ready_count == -EINTR else ready_count
    for index in range(ready_count):
        if _room(plane) < COMPLETIONS_MAX:
            break  # what is left is reported again
        event = event_of(kernel, index)
        _serve_event(plane, kernel, int(event.fd), int(event.events))
    return 0


@inlined
def _signed(value: Any) -> int:
    """An unsigned field's value as everything else counts: the compiler keeps signed and unsigned 64 bits apart."""
    return int(np.int64(value))


@inlined
def _room(plane: Any) -> int:
    """How many completions can still be posted."""
    return int(plane.completion_mask + 1 - plane.completion_count)


@inlined
def _post(plane: Any, tag: int, result: int, flags: int) -> None:
    assert plane.completion_count <= plane.completion_mask
    completion = completion_of(plane, plane.completion_base + plane.completion_count)
    completion.tag = tag
    completion.result = result
    completion.flags = flags
    plane.completion_count += 1


@compiled
def _wait(kernel: Any, wait_ns: int) -> int:
    """Sleep for this long at most; how many descriptors are ready, or the negative errno."""
    if kernel.coarse:
        # Rounded up: a turn that comes early would find nothing to do and go to sleep again.
        wait_ms = FOREVER_MS if wait_ns >= FOREVER_NS else min((wait_ns + 999_999) // 1_000_000, 0x7FFFFFFF)
        return system_call(SYS_EPOLL_PWAIT, kernel.epoll_fd, kernel.events, EVENTS_MAX, wait_ms, 0, 0)
    timespec_address = 0
    if wait_ns < FOREVER_NS:
        timespec = _timespec_at(kernel.timespec)
        timespec.seconds = wait_ns // 1_000_000_000
        timespec.nanoseconds = wait_ns % 1_000_000_000
        timespec_address = kernel.timespec
    return system_call(SYS_EPOLL_PWAIT2, kernel.epoll_fd, kernel.events, EVENTS_MAX, timespec_address, 0, 0)


@compiled
def _serve(plane: Any, kernel: Any, entry: Any) -> None:
    """One submission: its completion is posted, or it waits."""
    opcode = int(entry.opcode)
    if opcode == RECV and entry.flags & BUFFER_SELECT:
        _receive_selected(plane, kernel, entry)
    elif opcode in (SEND, SEND_ZC, WRITE):
        # A copying send has no notification to wait for; its one completion says so by not promising more.
        _transfer(plane, kernel, entry, POLLOUT)
    elif opcode in (RECV, RECVMSG, READ):
        _transfer(plane, kernel, entry, POLLIN | POLLRDHUP)
    elif opcode == POLL_ADD:
        _begin_waiting(plane, kernel, entry, int(entry.operation_flags))
    elif opcode == ASYNC_CANCEL:
        _post(plane, entry.tag, _cancel(plane, kernel, _signed(entry.address)), 0)
    elif opcode == CLOSE:
        _post(plane, entry.tag, _close(plane, kernel, int(entry.fd)), 0)
    elif opcode == SHUTDOWN:
        _post(plane, entry.tag, system_call(SYS_SHUTDOWN, entry.fd, entry.length, 0, 0, 0, 0), 0)
    elif opcode == ACCEPT:
        _begin_waiting(plane, kernel, entry, POLLIN)
    elif opcode == SOCKET:
        # A connect of a socket in blocking mode would block.
        kind = _signed(entry.offset) | SOCK_NONBLOCK
        _post(plane, entry.tag, system_call(SYS_SOCKET, entry.fd, kind, entry.length, 0, 0, 0), 0)
    elif opcode == CONNECT:
        _connect(plane, kernel, entry)
    else:
        _post(plane, entry.tag, 0 if opcode == NOP else -EINVAL, 0)


@inlined
def _transfer(plane: Any, kernel: Any, entry: Any, mask: int) -> None:
    """Move bytes now, or wait where there are none, or no room, and waiting is not forbidden."""
    flags = int(entry.operation_flags)
    result = transfer(entry.opcode, entry.fd, _signed(entry.address), entry.length, flags)
    if result == -EAGAIN and not flags & MSG_DONTWAIT:
        _begin_waiting(plane, kernel, entry, mask)
    else:
        _post(plane, entry.tag, result, 0)


@compiled
def _take_provided(plane: Any, kernel: Any, fd: int, length: int) -> int:
    """Receive into the next provided buffer, without waiting; its number goes into the upper half of the result.

    Not negative, or the negative errno; a buffer is only taken where bytes came.
    """
    if kernel.provided_head == plane.receive_published:
        return -ENOBUFS
    provided = provided_of(plane, kernel.provided_head)
    result = transfer(RECV, fd, _signed(provided.address), min(length, int(provided.length)), 0)
    if result <= 0:
        return result
    kernel.provided_head += 1
    return result | (int(provided.number) << 32)


@inlined
def _post_selected(plane: Any, tag: int, result: int) -> None:
    if result <= 0:
        _post(plane, tag, result, 0)
    else:
        _post(plane, tag, result & 0xFFFFFFFF, COMPLETION_BUFFER | ((result >> 32) << 16))


@inlined
def _receive_selected(plane: Any, kernel: Any, entry: Any) -> None:
    """A receive that takes a provided buffer when bytes are there; told that none are, it waits at once."""
    result = -EAGAIN
    if not entry.priority & POLL_FIRST:
        result = _take_provided(plane, kernel, int(entry.fd), int(entry.length))
    if result == -EAGAIN:
        _begin_waiting(plane, kernel, entry, POLLIN | POLLRDHUP)
    else:
        _post_selected(plane, entry.tag, result)


@inlined
def _connect(plane: Any, kernel: Any, entry: Any) -> None:
    """Connect; a TCP connection takes its time."""
    result = system_call(SYS_CONNECT, entry.fd, _signed(entry.address), _signed(entry.offset), 0, 0, 0)
    if result == -EINPROGRESS or result == -EALREADY:
        # The address lies in the entry's own fields, which the operation keeps.
        entry.length = _signed(entry.offset)
        _begin_waiting(plane, kernel, entry, POLLOUT)
    else:
        _post(plane, entry.tag, 0 if result == -EISCONN else result, 0)


@compiled
def _begin_waiting(plane: Any, kernel: Any, entry: Any, mask: int) -> None:
    """Remember the operation and have epoll watch its descriptor, or complete it with what stands in the way."""
    fd = int(entry.fd)
    if fd < 0 or fd >= kernel.interest_count:
        _post(plane, entry.tag, -EBADF, 0)
        return
    number = operation_take(kernel, fd, entry.tag, mask | ALWAYS)
    if number == 0:
        _post(plane, entry.tag, -ENOMEM, 0)
        return
    operation = operation_of(kernel, number)
    operation.opcode = entry.opcode
    operation.address = _signed(entry.address)
    operation.length = entry.length
    operation.flags = entry.operation_flags
    operation.selects = entry.flags & BUFFER_SELECT
    code = widen(kernel, fd, mask)
    if code < 0:
        operation_give(kernel, number)
        _post(plane, entry.tag, code, 0)


@compiled
def _cancel(plane: Any, kernel: Any, target_tag: int) -> int:
    """Complete the waiting operation with this tag. What nobody waits for any more is taken out of epoll at once.

    So a descriptor that is cancelled and then closed costs one epoll_ctl, and a listener whose accept was cancelled may
    be closed by its owner.
    """
    number = operation_find(kernel, target_tag)
    if number == 0:
        return -ENOENT
    fd = int(operation_of(kernel, number).fd)
    operation_give(kernel, number)
    _post(plane, target_tag, -ECANCELED, 0)
    if interest_of(kernel, fd).first == 0:
        narrow(kernel, fd, 0)
    return 0


@compiled
def _close(plane: Any, kernel: Any, fd: int) -> int:
    """Close. The registration goes first: a duplicate elsewhere would keep it, under a number that is used again."""
    if 0 <= fd < kernel.interest_count:
        interest = interest_of(kernel, fd)
        while interest.first > 0:
            number = int(interest.first)
            _post(plane, operation_of(kernel, number).tag, -ECANCELED, 0)
            operation_give(kernel, number)
        narrow(kernel, fd, 0)
    return system_call(SYS_CLOSE, fd, 0, 0, 0, 0, 0)


@compiled
def _serve_event(plane: Any, kernel: Any, fd: int, ready: int) -> None:
    """Try again whatever waits for what is ready, and stop asking for what nobody waited for."""
    interest = interest_of(kernel, fd)
    waited_for = 0
    number = int(interest.first)
    while number > 0:
        operation = operation_of(kernel, number)
        following = int(operation.next)
        waited_for |= operation.mask
        if operation.mask & ready and _resume(plane, kernel, operation, ready):
            is_listener = operation.opcode == ACCEPT
            operation_give(kernel, number)
            if is_listener and interest.first == 0:
                narrow(kernel, fd, 0)  # its owner may close it as soon as no accept is in flight
        number = following
    if ready & ~waited_for:
        narrow(kernel, fd, waited_for)


@compiled
def _resume(plane: Any, kernel: Any, operation: Any, ready: int) -> bool:
    """Try a waiting operation again. True when it is over, its last completion posted."""
    if operation.opcode == POLL_ADD:
        _post(plane, operation.tag, ready & operation.mask, 0)
        return True
    if operation.opcode == ACCEPT:
        return _accept(plane, kernel, operation)
    if operation.opcode == CONNECT:
        # Asked again, it tells what became of it.
        code = system_call(SYS_CONNECT, operation.fd, operation.address, operation.length, 0, 0, 0)
        if code == -EINPROGRESS or code == -EALREADY:
            return False
        _post(plane, operation.tag, 0 if code == -EISCONN else code, 0)
        return True
    if operation.selects:
        received = _take_provided(plane, kernel, int(operation.fd), int(operation.length))
        if received == -EAGAIN:
            return False
        _post_selected(plane, operation.tag, received)
        return True
    result = transfer(operation.opcode, operation.fd, operation.address, operation.length, operation.flags)
    if result == -EAGAIN:
        return False
    _post(plane, operation.tag, result, 0)
    return True


@compiled
def _accept(plane: Any, kernel: Any, operation: Any) -> bool:
    """Accept those that have come, within bounds. True when an error has ended the multishot."""
    for _ in range(ACCEPTS_MAX):
        result = system_call(SYS_ACCEPT4, operation.fd, 0, 0, operation.flags, 0, 0)
        if result == -EAGAIN:
            return False
        _post(plane, operation.tag, result, COMPLETION_MORE if result >= 0 else 0)
        if result < 0:
            return True
    kernel.polled_ns = 0  # there may be more: ask again after the next turn, whatever else it has done
    return False
