"""HTTP/1.1: requests one after the other, each answered by its plan's steps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.upstream.plan import After, Fault, Framing, Gate, Plan, Wait, render

if TYPE_CHECKING:
    from tests.upstream.journal import Journal
    from tests.upstream.records import ConnectionRecord, Request
    from tests.upstream.wire import Wire

HEAD_BYTES_MAX = 1 << 20


class Http1:
    """A connection's requests."""

    def __init__(self, wire: Wire, record: ConnectionRecord, journal: Journal) -> None:
        """On a connection that is made."""
        self._wire = wire
        self._record = record
        self._journal = journal
        self._buffer = bytearray()
        self._request: Request | None = None  # that is being answered
        self._answer: asyncio.Task[None] | None = None
        self._after = After.KEEP
        self._is_continued = False

    # ---- for the wire

    def received(self, data: bytes) -> None:
        """A request, or a piece of one."""
        if self._after in {After.CLOSE_ON_REQUEST, After.RESET_ON_REQUEST}:
            self._journal.dropped()
            (self._wire.reset if self._after is After.RESET_ON_REQUEST else self._wire.cut)()
            return
        self._buffer += data
        self._next()

    def lost(self) -> None:
        """The client has left, or we did."""
        if self._answer is not None:
            self._answer.cancel()
        if self._request is not None:
            self._journal.left(self._request)
        self._journal.closed(self._record)

    @property
    def is_idle(self) -> bool:
        """Whether the connection is kept for a request to come."""
        return self._request is None and not self._buffer

    # ---- requests

    def _next(self) -> None:
        if self._request is not None:
            return
        head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not end:
            assert len(head) <= HEAD_BYTES_MAX, "a request's head is endless"
            return
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        pairs = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:]))
        fields = {name.lower(): value for name, value in pairs}
        length = int(fields.get("content-length", "0"))
        if len(rest) < length:
            if fields.get("expect", "").lower() == "100-continue" and not self._is_continued:
                self._is_continued = True
                self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._is_continued = False
        self._buffer = bytearray(rest[length:])
        self._request = self._journal.request(self._record, method, path, pairs, "HTTP/1.1", rest[:length])
        self._answer = asyncio.get_running_loop().create_task(self._answering(self._request))

    async def _answering(self, request: Request) -> None:
        plan = self._journal.plan_of(request)
        before = self._wire.sent_bytes
        for step in render(plan, request):
            if isinstance(step, bytes):
                await self._wire.send(step)
                self._journal.sent(request, self._wire.sent_bytes - before)
                # Pieces that are to be told apart must not leave in one send.
                await asyncio.sleep(0)
            elif isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Gate):
                await step.wait()
            elif self._go_wrong(request, step):
                return
            else:
                await asyncio.get_running_loop().create_future()  # until the client leaves
        self._finished(request, plan)

    def _go_wrong(self, request: Request, fault: Fault) -> bool:
        """Whether that was the end; otherwise silence follows."""
        assert fault is not Fault.GOAWAY, "HTTP/1.1 has no GOAWAY"
        if fault is Fault.STALL:
            return False
        self._request = None
        self._journal.ended(request)
        (self._wire.reset if fault is Fault.RESET else self._wire.cut)()
        return True

    def _finished(self, request: Request, plan: Plan) -> None:
        self._request = self._answer = None
        self._after = plan.after
        self._journal.ended(request)
        if plan.framing is Framing.CLOSE or plan.after is After.CLOSE:
            self._wire.close()
        else:
            self._next()

    def close_idle(self) -> None:
        """FIN, where nothing is being answered."""
        if self.is_idle and not self._wire.is_over:
            self._wire.close()
