"""Operations that wait for a descriptor, and what epoll has been told of each descriptor.

Every descriptor has an interest: the mask registered with epoll (0: not registered) and a short list of operations. The
registration is level-triggered and covers at least what the operations wait for, so nothing need be looked at when an
operation begins to wait: what is ready already is reported by the next wait. Bits nobody waits for any more stay until
they are reported once, and are taken out then: a send that blocks again and again, and a pipe that is read again and
again, cost no further epoll_ctl, and nothing can spin.

Operations are found by tag through a hash table, for cancelling. Numbers of operations begin at 1 and 0 means none, so
that fresh zero pages need no initialising. Data-plane thread only.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.epoll.calls import EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, change_interest
from daemon.plane.entries import POLLERR, POLLHUP
from daemon.plane.records import record, record_accessor

INTEREST = record("mask:i4 first:i4", 8)
OPERATION = record("tag:i8 address:i8 length:i8 opcode:i4 fd:i4 flags:i4 mask:i4 next:i4 hash_next:i4 selects:i4", 64)
BUCKET = record("first:i4", 4)
OPERATION_BYTES = OPERATION.itemsize
_interest_at = record_accessor(INTEREST)
_operation_at = record_accessor(OPERATION)
_bucket_at = record_accessor(BUCKET)

EEXIST = 17
ENOENT = 2
ALWAYS = POLLERR | POLLHUP  # what epoll and poll report whether asked for or not


@inlined
def interest_of(kernel: Any, fd: int) -> Any:
    assert 0 <= fd < kernel.interest_count
    return _interest_at(kernel.interests + fd * 8)


@inlined
def operation_of(kernel: Any, number: int) -> Any:
    assert 0 < number <= kernel.operations_touched
    return _operation_at(kernel.operations + number * OPERATION_BYTES)


@inlined
def _bucket_of(kernel: Any, tag: int) -> Any:
    """By slot, four buckets apart, so that a slot's few operations and its neighbours' hardly meet."""
    return _bucket_at(kernel.buckets + (((tag >> 6) ^ tag) & kernel.bucket_mask) * 4)


@compiled
def operation_take(kernel: Any, fd: int, tag: int, mask: int) -> int:
    """A fresh operation on the lists of its descriptor and of its tag's hash; 0 when there is none left."""
    number = int(kernel.operation_free)
    if number > 0:
        kernel.operation_free = operation_of(kernel, number).next
    elif kernel.operations_touched < kernel.operation_count:
        kernel.operations_touched += 1
        number = int(kernel.operations_touched)
    else:
        return 0
    operation, interest, bucket = operation_of(kernel, number), interest_of(kernel, fd), _bucket_of(kernel, tag)
    operation.fd = fd
    operation.tag = tag
    operation.mask = mask
    operation.next = interest.first
    operation.hash_next = bucket.first
    interest.first = number
    bucket.first = number
    return number


@compiled
def operation_give(kernel: Any, number: int) -> None:
    """Take an operation off both its lists; it is free."""
    operation = operation_of(kernel, number)
    interest, bucket = interest_of(kernel, operation.fd), _bucket_of(kernel, operation.tag)
    if interest.first == number:
        interest.first = operation.next
    else:
        previous = operation_of(kernel, interest.first)
        while previous.next != number:
            previous = operation_of(kernel, previous.next)
        previous.next = operation.next
    if bucket.first == number:
        bucket.first = operation.hash_next
    else:
        previous = operation_of(kernel, bucket.first)
        while previous.hash_next != number:
            previous = operation_of(kernel, previous.hash_next)
        previous.hash_next = operation.hash_next
    operation.next = kernel.operation_free
    kernel.operation_free = number


@compiled
def operation_find(kernel: Any, tag: int) -> int:
    """The waiting operation with this tag, or 0."""
    number = int(_bucket_of(kernel, tag).first)
    while number > 0:
        operation = operation_of(kernel, number)
        if operation.tag == tag:
            return number
        number = int(operation.hash_next)
    return 0


@compiled
def widen(kernel: Any, fd: int, mask: int) -> int:
    """Have epoll report these events too. 0, or the negative errno of a descriptor that epoll cannot watch.

    Descriptors that the plane has closed are not registered any more. Should another have closed one that was, epoll
    has forgotten it or knows it still, and says so; then the other call is the right one.
    """
    interest = interest_of(kernel, fd)
    registered = int(interest.mask)
    wanted = registered | mask | ALWAYS
    if wanted == registered:
        return 0
    code = change_interest(kernel, EPOLL_CTL_MOD if registered else EPOLL_CTL_ADD, fd, wanted)
    if code == -EEXIST:
        code = change_interest(kernel, EPOLL_CTL_MOD, fd, wanted)
    elif code == -ENOENT:
        code = change_interest(kernel, EPOLL_CTL_ADD, fd, wanted)
    if code == 0:
        interest.mask = wanted
    return code


@compiled
def narrow(kernel: Any, fd: int, mask: int) -> None:
    """Have epoll report only these events; none at all when the mask is 0, not even errors."""
    interest = interest_of(kernel, fd)
    if interest.mask == 0:
        return
    change_interest(kernel, EPOLL_CTL_MOD if mask else EPOLL_CTL_DEL, fd, mask)
    interest.mask = mask
