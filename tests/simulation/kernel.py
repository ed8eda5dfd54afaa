"""The simulated kernel: serves the plane's submissions with objects in Python, deterministic from a seed, and hostile.

One `step` is one pass of daemon/loop.py: take submissions as `ring_enter` does, sleep until a completion or the time
the plane asked for, deliver completions, and call the compiled `turn`. Whatever Linux may do is done on purpose: short
writes, errors, completions late and out of order, cancels that lose the race, multishot that ends, a completion queue
that overflows, clocks that jump. ViolationErrors of the plane's side of the contract raise `ViolationError`.
"""

from __future__ import annotations

import ctypes
import heapq
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.plane import entries as e
from daemon.plane import tag as t
from daemon.plane.table import GLOBALS
from daemon.plane.turn import STOPPED, turn
from tests.simulation.connecting import ProvidedBuffers, inject_fault, make_socket, try_upstream
from tests.simulation.invariant import ViolationError, check
from tests.simulation.objects import ClientSocket, Listener, PeerSocket, Pipe, Thing, UpstreamSocket

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from daemon.plane.table import Plane
    from tests.simulation.upstreams import Upstream

__all__ = ["MILLISECOND", "SECOND", "Hostility", "SimulatedKernel", "ViolationError", "check"]

ENTRY = struct.Struct("<BBHiQQIIqH")
COMPLETION = struct.Struct("<qiI")
_MESSAGE_HEADER = struct.Struct("<qqqqqqi")
_VECTOR = struct.Struct("<qq")
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
FOREVER = 1 << 62
ENOENT, EALREADY, ENOTCONN = 2, 114, 107
SENDS = (e.SEND, e.SEND_ZC)
NAMES = {
    value: name
    for name, value in vars(e).items()
    if name in {"POLL_ADD", "RECVMSG", "ACCEPT", "ASYNC_CANCEL", "CLOSE", "READ", "WRITE", "SEND", "RECV"}
    or name in {"SHUTDOWN", "SEND_ZC", "SOCKET", "CONNECT"}
}


@dataclass
class Hostility:
    """How a seed's kernel behaves; probabilities unless the name says otherwise."""

    late: float = 0.2
    late_ns_max: int = 20 * MILLISECOND
    fault: float = 0.01
    short: float = 0.2
    spurious: float = 0.0
    partial_take: float = 0.05
    overflow: float = 0.1
    jump: float = 0.0
    cancel_loses: float = 0.2
    stale: float = 0.0
    deadly: float = 0.0  # of the faults on a client's socket, how many reset it
    receive_buffers: int = 1024  # how many of the plane's receive buffers the kernel has at all


class Operation:
    """A submission the kernel has taken and not yet completed for good."""

    __slots__ = (
        *("address", "entry_flags", "executed", "fd", "flags", "length", "offset", "opcode", "priority", "snapshot"),
        *("tag", "target"),
    )

    def __init__(self, fields: tuple[int, ...]) -> None:
        self.opcode, self.entry_flags, self.priority, self.fd, self.offset, self.address = fields[:6]
        self.length, self.flags, self.tag, group = fields[6:]
        check(group == 0, f"buffers of ring {group}")
        self.executed = False
        self.snapshot = b""
        self.target: Thing | None = None


class SimulatedKernel:
    """See the module. `at` schedules whatever happens outside the kernel, on the same clock."""

    def __init__(self, plane: Plane, rng: random.Random, hostility: Hostility, start_ns: int) -> None:
        self.plane = plane
        self.rng = rng
        self.hostility = hostility
        self.now_ns = start_ns
        self.active_ns = 0  # as `now_ns`, without deliberate jumps: what bounds on waiting are measured in
        self.turns = 0
        self.shared: Any = plane.globals[0]
        self._words = memoryview(plane.globals.view("u1")).cast("B").cast("q")
        offsets: dict[str, int] = {name: GLOBALS.fields[name][1] // 8 for name in GLOBALS.names}
        self._now, self._wait = offsets["now_ns"], offsets["wait_until_ns"]
        self._base, self._pending = offsets["submission_base"], offsets["submission_pending"]
        self._first, self._count = offsets["completion_base"], offsets["completion_count"]
        self._submissions = memoryview(plane.submissions.view("u1")).cast("B")
        self._completions = memoryview(plane.completions.view("u1")).cast("B")
        self._mask, self._completion_mask = len(plane.submissions) - 1, len(plane.completions) - 1
        self._in_flight_field = plane.streams["in_flight"]
        self._connection_field = plane.connections["in_flight"]
        self.things: dict[int, Thing] = {}
        self._next_fd = 100
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._ready: deque[tuple[int, int, int, Operation | None]] = deque()
        self.operations: dict[int, Operation] = {}  # by tag, until the last completion is delivered
        self.bits = [0] * len(plane.streams)  # what is in flight for each slot, as the plane must believe
        self.connection_bits = [0] * len(plane.connections)
        self.buffers = ProvidedBuffers(plane, hostility.receive_buffers)
        self.network: dict[bytes, Upstream] = {}  # who listens at an address
        self.on_connection: Callable[[Operation, int], None] | None = None  # a connection's completion is delivered
        self.on_submission: Callable[[Operation], None] | None = None  # a connection's operation begins
        self.closed_count = 0
        self.trace: Callable[[str], None] | None = None
        self.before_turn: list[Callable[[], None]] = []
        self.after_turn: list[Callable[[], None]] = []  # done once, after the present turn
        self.each_turn: list[Callable[[], None]] = []  # after every turn, and after those
        self.alter_result: Callable[[Operation, int], int] | None = None  # test-only: plants a bug

    # ---- descriptors and time, for the actors

    def new_fd(self) -> int:
        """A number no descriptor ever had, so that a close of the wrong one is always seen."""
        self._next_fd += 1
        return self._next_fd

    def add(self, thing: Thing) -> None:
        self.things[thing.fd] = thing

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do something so much later."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_ns + max(delay_ns, 0), self._sequence, action))

    def log(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now_ns / 1e6:14.3f} ms  {text}")

    # ---- one pass of the loop

    def step(self) -> bool:
        """One turn; True when the plane has stopped."""
        words = self._words
        taken_all = self._take()
        if taken_all and words[self._wait] != 0 and self.rng.random() >= self.hostility.spurious:
            self._sleep(words[self._wait])
        jitter_ns = self.rng.randrange(0, 200_000)
        self.now_ns += jitter_ns
        self.active_ns += jitter_ns
        if self.hostility.jump and self.rng.random() < self.hostility.jump:
            self.now_ns += self.rng.choice((SECOND, 9 * SECOND, 100 * SECOND))
            self.log("the clock jumps")
        self._run_due()
        words[self._now] = self.now_ns
        self._deliver()
        for hook in self.before_turn:
            hook()
        self.turns += 1
        stopped = turn(self.shared) == STOPPED
        deferred, self.after_turn = self.after_turn, []
        for action in deferred:
            action()
        for hook in self.each_turn:
            hook()
        self.buffers.end_turn()
        return stopped

    def _run_due(self) -> None:
        heap = self._heap
        while heap and heap[0][0] <= self.now_ns:
            heapq.heappop(heap)[2]()

    def _sleep(self, until_ns: int) -> None:
        """Until a completion is there, or the time the plane asked for."""
        heap = self._heap
        self._run_due()
        while not self._ready:
            next_ns = heap[0][0] if heap else FOREVER
            if next_ns >= until_ns:
                check(until_ns < FOREVER, "asleep for ever: nothing will wake the plane")
                if until_ns > self.now_ns:
                    self.active_ns += until_ns - self.now_ns
                    self.now_ns = until_ns
                return
            if next_ns > self.now_ns:
                self.active_ns += next_ns - self.now_ns
                self.now_ns = next_ns
            heapq.heappop(heap)[2]()

    # ---- submissions

    def _take(self) -> bool:
        """Take what the plane has filled, sometimes only some of it. True when nothing is left behind."""
        words, mask = self._words, self._mask
        base, pending = words[self._base], words[self._pending]
        check(pending <= mask + 1, "more submissions than the queue holds")
        count = pending
        if pending and self.rng.random() < self.hostility.partial_take:
            count = self.rng.randrange(0, pending + 1)
        for index in range(base, base + count):
            self._start(Operation(ENTRY.unpack_from(self._submissions, (index & mask) * 64)))
        words[self._base] = base + count
        words[self._pending] = pending - count
        if count == pending:
            self._compare_in_flight()
        return count == pending

    def _compare_in_flight(self) -> None:
        """The plane's belief of what is in flight is the kernel's truth (every submission is taken now)."""
        if self._in_flight_field.tolist() != self.bits:
            for slot, (belief, truth) in enumerate(zip(self._in_flight_field.tolist(), self.bits, strict=True)):
                check(belief == truth, f"slot {slot}: the plane believes in_flight {belief:#x}, it is {truth:#x}")
        count = self.shared.connections_touched
        if count and self._connection_field[:count].tolist() != self.connection_bits[:count]:
            believed = self._connection_field[:count].tolist()
            for number, (belief, truth) in enumerate(zip(believed, self.connection_bits, strict=False)):
                check(belief == truth, f"connection {number}: in_flight is believed {belief:#x}, and is {truth:#x}")

    def _start(self, operation: Operation) -> None:
        tag, opcode = operation.tag, operation.opcode
        kind = tag & 0xFF
        if self.trace is not None:
            self.log(f"<- {NAMES.get(opcode, opcode)} fd {operation.fd} {describe_tag(tag)} {operation.length}")
        check(kind == t.CLOSE_STRAY or tag not in self.operations, f"{describe_tag(tag)} is already in flight")
        if kind < 32:
            self.bits[(tag >> 8) & t.SLOT_NONE] |= 1 << kind
        elif kind >= t.CONNECTION_SOCKET:
            self.connection_bits[(tag >> 8) & t.SLOT_NONE] |= 1 << (kind - t.CONNECTION_SOCKET)
            if self.on_submission is not None:
                self.on_submission(operation)
        if opcode == e.ASYNC_CANCEL:
            self.operations[tag] = operation
            self._cancel(operation)
            return
        if opcode == e.SOCKET:
            self.operations[tag] = operation
            self._later(lambda: make_socket(self, operation))
            return
        thing = self.things.get(operation.fd)
        check(thing is not None and thing.is_open, f"{NAMES[opcode]} on closed descriptor {operation.fd}")
        assert thing is not None
        operation.target = thing
        if opcode == e.CLOSE:
            self._close(operation, thing)
            return
        check(
            not getattr(thing, "belongs_to_control", False), f"descriptor {thing.fd} is the control plane's (parsing)"
        )
        if opcode in SENDS:
            busy = [other for other in self.operations.values() if other.fd == operation.fd and other.opcode in SENDS]
            check(not busy, f"two sends in flight on descriptor {operation.fd}")
            operation.snapshot = ctypes.string_at(operation.address, operation.length)
            if isinstance(thing, ClientSocket) and thing.attempt_ns < 0:
                thing.attempt_ns = thing.last_attempt_ns = self.now_ns
        elif opcode == e.CONNECT:
            operation.snapshot = ctypes.string_at(operation.address, operation.offset)
        self.operations[tag] = operation
        self._later(lambda: self._execute(operation))

    def _later(self, action: Callable[[], None]) -> None:
        hostility, rng = self.hostility, self.rng
        if rng.random() < hostility.late:
            self.at(rng.randrange(0, hostility.late_ns_max), action)
        else:
            self.at(0, action)

    def _close(self, operation: Operation, thing: Thing) -> None:
        busy = [describe_tag(other.tag) for other in self.operations.values() if other.fd == operation.fd]
        check(not busy, f"descriptor {thing.fd} is closed while {busy} is in flight")
        check(
            not getattr(thing, "belongs_to_control", False), f"descriptor {thing.fd} is the control plane's (parsing)"
        )
        thing.close()
        self.closed_count += 1
        operation.fd = -1
        if operation.tag & 0xFF != t.CLOSE_STRAY:
            self.operations[operation.tag] = operation
        self.finish(operation, 0)

    def _cancel(self, operation: Operation) -> None:
        target = self.operations.get(operation.address)
        if target is None or target.executed:
            self.finish(operation, -ENOENT)
            return
        if self.rng.random() < self.hostility.cancel_loses:
            self.finish(operation, self.rng.choice((-EALREADY, -ENOENT)))
            return
        if target.target is not None and target in target.target.waiting:
            target.target.waiting.remove(target)
        self.finish(target, -e.ECANCELED)
        self.finish(operation, 0)

    # ---- execution

    def _execute(self, operation: Operation) -> None:
        """Do it, or leave it waiting on its object."""
        if operation.executed:
            return
        if self.draws_fault() and self._inject_fault(operation):
            return
        if not self._try(operation):
            assert operation.target is not None
            operation.target.waiting.append(operation)

    def draws_fault(self) -> bool:
        """Whether something goes wrong now."""
        return self.hostility.fault > 0 and self.rng.random() < self.hostility.fault

    def wake(self, thing: Thing) -> None:
        """Something about an object has changed: operations that wait on it are tried again."""
        if thing.waiting:
            waiting, thing.waiting = thing.waiting, []
            for operation in waiting:
                if not operation.executed and not self._try(operation):
                    thing.waiting.append(operation)

    def _inject_fault(self, operation: Operation) -> bool:
        opcode, rng, thing = operation.opcode, self.rng, operation.target
        if opcode == e.ACCEPT:
            self.finish(operation, -rng.choice((e.EMFILE, e.ENFILE, e.ENOMEM, e.EINTR, e.ECONNABORTED, e.ECANCELED)))
        elif opcode == e.POLL_ADD:
            self.finish(operation, -rng.choice((e.EINTR, e.ECANCELED, e.ENOMEM)))
        elif isinstance(thing, UpstreamSocket):
            return inject_fault(self, operation, thing)
        elif opcode in (e.READ, e.WRITE):
            self.finish(operation, -rng.choice((e.EINTR, e.EAGAIN)))
        elif opcode == e.RECVMSG:
            assert isinstance(thing, PeerSocket)
            deadly = rng.random() < 0.2
            thing.was_reset |= deadly
            self.finish(operation, -e.ECONNRESET if deadly else -rng.choice((e.EINTR, e.EAGAIN)))
        elif isinstance(thing, ClientSocket) and opcode in (*SENDS, e.RECV) and thing.is_stream:
            if rng.random() < self.hostility.deadly:
                self.reset_client(thing)
                self.finish(operation, -rng.choice((e.ECONNRESET, e.EPIPE)) if opcode in SENDS else -e.ECONNRESET)
            else:
                transient = (e.EINTR, e.EAGAIN, e.ENOBUFS, e.ENOMEM) if opcode in SENDS else (e.EINTR, e.EAGAIN)
                self.finish(operation, -rng.choice(transient))
        else:
            return False
        return True

    def reset_client(self, socket: ClientSocket) -> None:
        """The client's connection is reset."""
        socket.was_reset = True
        socket.finished = True
        socket.incoming.clear()
        if socket.left_at_ns < 0:
            socket.left_at_ns = self.active_ns
        self._note_reset(socket)
        self.wake(socket)

    def _note_reset(self, socket: ClientSocket) -> None:
        if socket.reset_at_ns < 0:
            socket.reset_at_ns = self.active_ns

    def _try(self, operation: Operation) -> bool:
        """Do an operation now; False when it has to wait."""
        thing, opcode = operation.target, operation.opcode
        if opcode == e.POLL_ADD:
            assert thing is not None
            events = thing.ready() & (operation.flags | e.POLLERR | e.POLLHUP)
            if events:
                self.finish(operation, events)
            return events != 0
        if isinstance(thing, ClientSocket):
            return self._try_client(operation, thing)
        if isinstance(thing, UpstreamSocket):
            return try_upstream(self, operation, thing)
        if isinstance(thing, PeerSocket):
            return self._receive_message(operation, thing)
        if isinstance(thing, Listener):
            return self._accept(operation, thing)
        assert isinstance(thing, Pipe)
        return self._read(operation, thing) if opcode == e.READ else self._write(operation, thing)

    def _try_client(self, operation: Operation, socket: ClientSocket) -> bool:
        opcode = operation.opcode
        if opcode in SENDS:
            return self._send(operation, socket)
        if opcode == e.SHUTDOWN:
            gone = socket.was_reset
            socket.shut = True
            self.finish(operation, -ENOTCONN if gone else 0)
            self.wake(socket)
            return True
        limit = operation.length
        if self.rng.random() < self.hostility.short:
            limit = self.rng.randrange(1, limit + 1)
        outcome = socket.receive(limit)
        if isinstance(outcome, int):
            waits = outcome == -e.EAGAIN and socket.blocking and not operation.flags & e.MSG_DONTWAIT
            if not waits:
                self.finish(operation, outcome)
            return not waits
        ctypes.memmove(operation.address, outcome, len(outcome))
        self.finish(operation, len(outcome))
        return True

    def _send(self, operation: Operation, socket: ClientSocket) -> bool:
        data = ctypes.string_at(operation.address, operation.length)
        check(data == operation.snapshot, f"{describe_tag(operation.tag)}: its bytes changed while it was in flight")
        allowed = operation.length if socket.closed_by_client else min(operation.length, max(socket.space(), 0))
        if allowed > 1 and self.rng.random() < self.hostility.short:
            allowed = self.rng.randrange(1, allowed)
        result = socket.send(data[:allowed]) if allowed or socket.ready() & e.POLLHUP or socket.was_reset else 0
        if result == 0:
            if socket.blocking:
                return False
            result = -e.EAGAIN
        if operation.opcode == e.SEND_ZC and result > 0:
            operation.executed = True
            self.post(operation.tag, result, e.COMPLETION_MORE, None)
            self._later(lambda: self._notify(operation))
        else:
            self.finish(operation, result)
        if socket.was_reset:
            self._note_reset(socket)
            self.wake(socket)
        return True

    def _notify(self, operation: Operation) -> None:
        """The kernel lets go of a zero-copy send's memory."""
        data = ctypes.string_at(operation.address, operation.length)
        check(data == operation.snapshot, f"{describe_tag(operation.tag)}: its bytes changed before the notification")
        self.post(operation.tag, 0, e.COMPLETION_NOTIFICATION, operation)

    def _accept(self, operation: Operation, listener: Listener) -> bool:
        while listener.arrivals:
            peer = listener.arrivals.popleft()
            self.add(peer)
            if self.rng.random() < 0.1:  # multishot may end at any time
                self.finish(operation, peer.fd)
                return True
            self.post(operation.tag, peer.fd, e.COMPLETION_MORE, None)
        return False

    def _receive_message(self, operation: Operation, peer: PeerSocket) -> bool:
        if peer.was_reset:
            self.finish(operation, -e.ECONNRESET)
        elif operation.opcode == e.RECV:
            self._receive_piece(operation, peer)
        elif not peer.messages and not peer.ended:
            check(operation.flags & e.MSG_DONTWAIT, "a handoff is received without MSG_DONTWAIT")
            self.finish(operation, -e.EAGAIN)
        else:
            data, descriptors = peer.messages.popleft() if peer.messages else (b"", [])
            self._fill_message(operation, data, descriptors)
        return True

    def _receive_piece(self, operation: Operation, peer: PeerSocket) -> None:
        """Bytes of a stream-type handoff after its first piece."""
        if not peer.messages:
            self.finish(operation, 0 if peer.ended else -e.EAGAIN)
            return
        data, descriptors = peer.messages.popleft()
        assert not descriptors
        piece = data[: operation.length]
        if len(piece) < len(data):
            peer.messages.appendleft((data[operation.length :], []))
        ctypes.memmove(operation.address, piece, len(piece))
        self.finish(operation, len(piece))

    def _fill_message(self, operation: Operation, data: bytes, descriptors: list[int]) -> None:
        """recvmsg: data, ancillary bytes and flags, sometimes without the descriptors (EMFILE)."""
        header = bytearray(ctypes.string_at(operation.address, _MESSAGE_HEADER.size))
        fields = list(_MESSAGE_HEADER.unpack(header))
        address, length = _VECTOR.unpack(ctypes.string_at(fields[2], 16))
        flags = 0
        if len(data) > length:
            flags |= e.MSG_TRUNC
        piece = data[:length]
        ctypes.memmove(address, piece, len(piece))
        room = (fields[5] - 16) // 4
        if descriptors and self.rng.random() < 3 * self.hostility.fault:
            room = self.rng.randrange(0, len(descriptors))
        if len(descriptors) > room:
            flags |= e.MSG_CTRUNC
            for fd in descriptors[room:]:
                self.things[fd].close()
            descriptors = descriptors[:room]
        control = b""
        if descriptors:
            control = struct.pack(f"<qii{len(descriptors)}i", 16 + 4 * len(descriptors), 1, 1, *descriptors)
            ctypes.memmove(fields[4], control, len(control))
        fields[5], fields[6] = (len(control) + 7) // 8 * 8, flags
        ctypes.memmove(operation.address, _MESSAGE_HEADER.pack(*fields), _MESSAGE_HEADER.size)
        self.finish(operation, len(piece))

    def _read(self, operation: Operation, pipe: Pipe) -> bool:
        if not pipe.data:
            return False
        count = min(operation.length, len(pipe.data))
        if self.rng.random() < self.hostility.short:
            count = self.rng.randrange(1, count + 1)
        data = pipe.read(count)
        ctypes.memmove(operation.address, data, len(data))
        self.finish(operation, len(data))
        if pipe.on_read is not None:
            pipe.on_read()
        return True

    def _write(self, operation: Operation, pipe: Pipe) -> bool:
        if pipe.broken:
            self.finish(operation, -e.EPIPE)
            return True
        data = ctypes.string_at(operation.address, operation.length)
        if self.rng.random() < self.hostility.short / 10:
            data = data[: self.rng.randrange(1, len(data) + 1)]
        if pipe.write(data):
            self.finish(operation, len(data))
            if pipe.on_written is not None:
                pipe.on_written()
        elif pipe.blocking:
            return False
        else:
            self.finish(operation, -e.EAGAIN)
        return True

    # ---- completions

    def finish(self, operation: Operation, result: int, flags: int = 0) -> None:
        """The operation's last completion, now or late."""
        operation.executed = True
        if self.alter_result is not None:
            result = self.alter_result(operation, result)
        self._later(lambda: self.post(operation.tag, result, flags, operation))

    def post(self, tag: int, result: int, flags: int, operation: Operation | None) -> None:
        """Into the completion queue, behind what is there."""
        self._ready.append((tag, result, flags, operation))

    def _deliver(self) -> None:
        """Move completions into the ring: all, or, when the queue has overflowed, only a few now."""
        ready, words = self._ready, self._words
        first = words[self._first]
        count = min(len(ready), self._completion_mask + 1)
        if count > 1 and self.rng.random() < self.hostility.overflow:
            count = self.rng.randrange(1, count)
        if self.hostility.stale and self.rng.random() < self.hostility.stale:
            self._invent_stale(first + count)
            words[self._count] = count + 1
        else:
            words[self._count] = count
        for index in range(first, first + count):
            tag, result, flags, operation = ready.popleft()
            if self.trace is not None:
                self.log(f"-> {describe_tag(tag)} result {result} flags {flags}")
            COMPLETION.pack_into(self._completions, (index & self._completion_mask) * 16, tag, result, flags)
            if operation is not None:
                self._settle(operation)
                if isinstance(operation.target, ClientSocket) and operation.opcode in SENDS and (result > 0 or flags):
                    operation.target.attempt_ns = -1
                if flags & e.COMPLETION_BUFFER:
                    self.buffers.deliver(flags >> 16)
                if tag & 0xFF >= t.CONNECTION_SOCKET and self.on_connection is not None:
                    self.on_connection(operation, result)

    def _settle(self, operation: Operation) -> None:
        kind = operation.tag & 0xFF
        if kind < 32:
            self.bits[(operation.tag >> 8) & t.SLOT_NONE] &= ~(1 << kind)
        elif kind >= t.CONNECTION_SOCKET:
            self.connection_bits[(operation.tag >> 8) & t.SLOT_NONE] &= ~(1 << (kind - t.CONNECTION_SOCKET))
        if self.operations.get(operation.tag) is operation:
            del self.operations[operation.tag]
        if kind == t.READ_COMMANDS and isinstance(operation.target, Pipe):
            for apply in operation.target.due():
                apply()

    def _invent_stale(self, index: int) -> None:
        """A completion of an operation that an earlier generation of a slot, or a connection, might have had."""
        place = (index & self._completion_mask) * 16
        touched = int(self.shared.connections_touched)
        if touched and self.rng.random() < 0.5:
            number = self.rng.randrange(0, touched)
            generation = int(self.plane.connections[number].generation) - self.rng.randrange(1, 3)
            kind = self.rng.choice((*range(t.CONNECTION_CONNECT, t.CONNECTION_CLOSE + 1), t.CONNECTION_SOCKET + 19))
            result = self.rng.choice((-e.ECANCELED, 0, -e.EPIPE))
            COMPLETION.pack_into(self._completions, place, kind | number << 8 | max(generation, 0) << 32, result, 0)
            return
        slot = self.rng.randrange(0, len(self.bits))
        generation = int(self.plane.streams[slot].generation) - self.rng.randrange(1, 3)
        kind = self.rng.choice((t.SEND, t.POLL_CLIENT, t.RECEIVE, t.CLOSE_CLIENT, t.RECEIVE_HANDOFF, t.CANCEL + 2))
        result = self.rng.choice((-e.ECANCELED, 0, 1, 17, -e.EPIPE))
        COMPLETION.pack_into(self._completions, place, kind | slot << 8 | max(generation, 0) << 32, result, 0)


_KINDS = {
    value: name.lower()
    for name, value in vars(t).items()
    if name.isupper() and isinstance(value, int) and not name.startswith("SLOT") and not name.endswith("CANCEL")
}


def describe_tag(tag: int) -> str:
    """`send of slot 3, generation 7`."""
    kind, slot, generation = tag & 0xFF, (tag >> 8) & 0xFFFFFF, tag >> 32
    if t.CANCEL <= kind < t.ACCEPT:
        return f"cancel of {_KINDS[kind - t.CANCEL]} of slot {slot}, generation {generation}"
    if kind >= t.CONNECTION_SOCKET + t.CONNECTION_CANCEL:
        return f"cancel of {_KINDS[kind - t.CONNECTION_CANCEL]} {slot}, generation {generation}"
    if kind >= t.CONNECTION_SOCKET:
        return f"{_KINDS[kind]} {slot}, generation {generation}"
    return f"{_KINDS.get(kind, kind)} of slot {slot}, generation {generation}"
