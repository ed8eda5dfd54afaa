"""HTTP/2, by ALPN or prior knowledge: a task for each stream, its plan's steps sent as the windows allow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from tests.upstream.plan import Fault, Gate, Plan, Wait, render_body

if TYPE_CHECKING:
    from tests.upstream.journal import Journal
    from tests.upstream.records import ConnectionRecord, Request
    from tests.upstream.wire import Wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class _Stream:
    """What is known of one."""

    def __init__(self, headers: tuple[tuple[str, str], ...]) -> None:
        self.headers = headers
        self.body = bytearray()
        self.request: Request | None = None
        self.answer: asyncio.Task[None] | None = None


class Http2:
    """A connection's streams."""

    def __init__(self, wire: Wire, record: ConnectionRecord, journal: Journal) -> None:
        """On a connection that is made."""
        self._wire = wire
        self._record = record
        self._journal = journal
        self._connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._streams: dict[int, _Stream] = {}
        self._window_opened = asyncio.Event()
        self._connection.initiate_connection()
        self._flush()

    # ---- for the wire

    def received(self, data: bytes) -> None:
        """Frames."""
        try:
            events = self._connection.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()
            self._wire.close()
            return
        for event in events:
            self._handle(event)
        self._flush()

    def lost(self) -> None:
        """The client has left, or we did."""
        for number in list(self._streams):
            self._forget(number)
        self._journal.closed(self._record)

    @property
    def is_idle(self) -> bool:
        """Whether no stream is open."""
        return not self._streams

    def close_idle(self) -> None:
        """GOAWAY and FIN, where no stream is open."""
        if self.is_idle and not self._wire.is_over:
            self._connection.close_connection()
            self._flush()
            self._wire.close()

    # ---- events

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            assert event.stream_id is not None
            assert event.headers is not None
            pairs = tuple((_text(name), _text(value)) for name, value in event.headers)
            self._streams[event.stream_id] = _Stream(pairs)
        elif isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None
            self._connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            self._streams[event.stream_id].body += event.data or b""
        elif isinstance(event, h2.events.StreamEnded):
            assert event.stream_id is not None
            self._begin(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            assert event.stream_id is not None
            self._forget(event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._window_opened.set()

    def _begin(self, number: int) -> None:
        stream = self._streams[number]
        fields = dict(stream.headers)
        stream.request = self._journal.request(
            self._record,
            fields.get(":method", ""),
            fields.get(":path", ""),
            tuple(pair for pair in stream.headers if not pair[0].startswith(":")),
            "HTTP/2",
            bytes(stream.body),
        )
        stream.answer = asyncio.get_running_loop().create_task(self._answering(number, stream.request))

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None or stream.request is None or stream.answer is None:
            return
        stream.answer.cancel()
        self._journal.left(stream.request)

    # ---- answers

    async def _answering(self, number: int, request: Request) -> None:
        plan = self._journal.plan_of(request)
        if plan.head_delay_s:
            await asyncio.sleep(plan.head_delay_s)
        if plan.fault is not None and plan.fault_in_head:
            await self._go_wrong(number, request, plan.fault)
            return
        self._connection.send_headers(number, _head(plan))
        self._flush()
        for step in render_body(plan, request):
            if isinstance(step, bytes):
                await self._send(number, request, step)
            elif isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Gate):
                await step.wait()
            else:
                await self._go_wrong(number, request, step)
                return
        self._connection.end_stream(number)
        self._flush()
        self._ended(number, request)

    async def _send(self, number: int, request: Request, data: bytes) -> None:
        while data:
            size = min(self._connection.local_flow_control_window(number), self._connection.max_outbound_frame_size)
            if size <= 0:
                self._window_opened.clear()
                await self._window_opened.wait()
                continue
            self._connection.send_data(number, data[:size])
            await self._wire.send(self._connection.data_to_send())
            self._journal.sent(request, request.sent_bytes + len(data[:size]))
            data = data[size:]
        await asyncio.sleep(0)

    async def _go_wrong(self, number: int, request: Request, fault: Fault) -> None:
        if fault is Fault.STALL:
            await asyncio.get_running_loop().create_future()
        self._ended(number, request)
        if fault is Fault.RESET:
            self._connection.reset_stream(number, h2.errors.ErrorCodes.INTERNAL_ERROR)
            self._flush()
            return
        if fault is Fault.GOAWAY:
            self._connection.close_connection(h2.errors.ErrorCodes.NO_ERROR, last_stream_id=max(0, number - 2))
            await self._wire.send(self._connection.data_to_send())
        self._wire.cut()

    def _ended(self, number: int, request: Request) -> None:
        self._streams.pop(number, None)
        self._journal.ended(request)

    def _flush(self) -> None:
        self._wire.write(self._connection.data_to_send())


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _head(plan: Plan) -> list[tuple[str, str]]:
    head = [(":status", str(plan.status))]
    if plan.content_type:
        head.append(("content-type", plan.content_type))
    return head + [(name.lower(), value) for name, value in plan.headers]
