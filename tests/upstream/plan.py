"""What a request gets: the answer, how it is cut, and what goes wrong where. `render` makes steps of it for HTTP/1.1,
`render_body` for HTTP/2. Pure but for `Gate`, which a test opens from its own thread.
"""

from __future__ import annotations

import asyncio
import enum
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.upstream.records import Request

REASONS = {int(status): status.phrase for status in HTTPStatus}
LAST_CHUNK = b"0\r\n\r\n"


class Framing(enum.Enum):
    """How an HTTP/1.1 body's end is told."""

    CHUNKED = "chunked"
    LENGTH = "length"
    CLOSE = "close"


class Fault(enum.Enum):
    """What ends an answer early."""

    RESET = "reset"  # SO_LINGER 0, or RST_STREAM
    CUT = "cut"  # FIN; over TLS without a word of its own; with HTTP/2 the whole connection
    STALL = "stall"  # silence, until the client leaves
    GOAWAY = "goaway"  # HTTP/2: GOAWAY that leaves this stream out, then FIN


class After(enum.Enum):
    """What becomes of the connection when the answer has ended; only HTTP/1.1 asks."""

    KEEP = "keep"
    CLOSE = "close"
    CLOSE_ON_REQUEST = "close_on_request"  # when the next request's first byte comes, as a server that was about to
    RESET_ON_REQUEST = "reset_on_request"


@dataclass(frozen=True)
class Wait:
    """Silence for so long."""

    seconds: float


class Gate:
    """A place in an answer that is not passed before a test says so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def open(self) -> None:
        """Let everything pass, now and later. Any thread."""
        with self._lock:
            self._is_open = True
            waiting, self._waiting = self._waiting, []
        for loop, passed in waiting:
            loop.call_soon_threadsafe(passed.set)

    async def wait(self) -> None:
        """Until it is open."""
        passed = asyncio.Event()
        with self._lock:
            if self._is_open:
                return
            self._waiting.append((asyncio.get_running_loop(), passed))
        await passed.wait()


Step = bytes | Wait | Gate | Fault


@dataclass(frozen=True)
class Plan:
    """One answer. Without arguments: an empty event stream, chunked, on a connection that is kept."""

    body: Sequence[Step] | Callable[[Request], Sequence[Step]] = ()
    status: int = 200
    content_type: str = "text/event-stream"  # empty = none
    headers: tuple[tuple[str, str], ...] = ()  # beside that
    framing: Framing = Framing.CHUNKED
    length_extra: int = 0  # what Content-Length says more than there is; below 0 = less
    interim: bytes = b""  # whole 1xx responses
    head: bytes | None = None  # in place of the head, as it is
    piece_bytes: int = 0  # size of the body's chunks; 0 = as its items are
    wire_bytes: int = 0  # size of what is sent at once, head and framing included; 0 = as the pieces are
    head_delay_s: float = 0.0
    body_delay_s: float = 0.0  # between the head and the first piece
    interval_s: float = 0.0  # between pieces
    size_lines: Mapping[int, bytes] = field(
        default_factory=dict[int, bytes]
    )  # of chunks, by number, in place of theirs
    fault: Fault | None = None  # the same by its place; an item of the body may also be one
    fault_at: int | None = None  # a byte of the body (of HTTP/1.1's with its framing); None = where it would end
    fault_in_head: bool = False  # the byte is one of the head
    after: After = After.KEEP

    def items(self, request: Request) -> list[Step]:
        """The body, in pieces of the right size and with its silences."""
        given = self.body(request) if callable(self.body) else self.body
        pieces = list(_cut(given, self.piece_bytes))
        if not self.interval_s:
            return pieces
        spaced: list[Step] = []
        for piece in pieces:
            if spaced:
                spaced.append(Wait(self.interval_s))
            spaced.append(piece)
        return spaced


def render_head(plan: Plan, body_bytes: int) -> bytes:
    """The head, as it goes out by HTTP/1.1."""
    if plan.head is not None:
        return plan.head
    lines = [f"HTTP/1.1 {plan.status} {REASONS.get(plan.status, 'Whatever')}"]
    if plan.content_type:
        lines.append(f"Content-Type: {plan.content_type}")
    lines += [f"{name}: {value}" for name, value in plan.headers]
    if plan.framing is Framing.CHUNKED:
        lines.append("Transfer-Encoding: chunked")
    elif plan.framing is Framing.LENGTH:
        lines.append(f"Content-Length: {body_bytes + plan.length_extra}")
    else:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def render(plan: Plan, request: Request) -> list[Step]:
    """Everything that is sent, in order, by HTTP/1.1. A body that ends with the connection ends after the last step."""
    items = plan.items(request)
    head = render_head(plan, sum(len(item) for item in items if isinstance(item, bytes)))
    steps: list[Step] = [Wait(plan.head_delay_s)] if plan.head_delay_s else []
    steps += [plan.interim] if plan.interim else []
    if plan.fault is not None and plan.fault_in_head:
        steps += [head[: plan.fault_at], plan.fault]
        return list(_cut(steps, plan.wire_bytes))
    steps.append(head)
    if plan.body_delay_s:
        steps.append(Wait(plan.body_delay_s))
    steps += _until_fault(_framed(plan, items), plan)
    return list(_cut(steps, plan.wire_bytes))


def render_body(plan: Plan, request: Request) -> list[Step]:
    """What is sent after the head by HTTP/2."""
    before: list[Step] = [Wait(plan.body_delay_s)] if plan.body_delay_s else []
    return before + _until_fault(plan.items(request), plan)


def _framed(plan: Plan, items: Sequence[Step]) -> list[Step]:
    if plan.framing is not Framing.CHUNKED:
        return list(items)
    framed: list[Step] = []
    number = 0
    for item in items:
        if not isinstance(item, bytes):
            framed.append(item)
            continue
        line = plan.size_lines.get(number, b"%x\r\n" % len(item))
        framed.append(line + item + b"\r\n")
        number += 1
    if plan.fault is None or plan.fault_at is not None:
        framed.append(LAST_CHUNK)
    return framed


def _until_fault(items: Sequence[Step], plan: Plan) -> list[Step]:
    if plan.fault is None:
        return list(items)
    if plan.fault_at is None:
        return [*items, plan.fault]
    steps: list[Step] = []
    left = plan.fault_at
    for item in items:
        if isinstance(item, bytes) and len(item) >= left:
            return [*steps, *([item[:left]] if left else []), plan.fault]
        steps.append(item)
        left -= len(item) if isinstance(item, bytes) else 0
    raise AssertionError(f"the body ends {left} bytes before its fault")


def _cut(steps: Iterable[Step], size: int) -> Iterable[Step]:
    for step in steps:
        if not isinstance(step, bytes) or not size:
            yield step
            continue
        for start in range(0, len(step), size):
            yield step[start : start + size]
