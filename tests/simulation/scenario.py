"""One seed's story: a small plane, its hostile kernel, clients, peers, workers, a control plane; from start to rest."""

from __future__ import annotations

import ctypes
import random
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from config.settings import Settings
from daemon.plane import counters, table
from daemon.plane import event_records as ev
from daemon.plane import messages as m
from daemon.plane import state as st
from tests.simulation import wire
from tests.simulation.checks import Paced, StreamCheck, check_at_rest
from tests.simulation.clients import Client, Peer, make_upload
from tests.simulation.kernel import MILLISECOND, SECOND, Hostility, SimulatedKernel, check
from tests.simulation.objects import Listener, Pipe
from tests.simulation.planes import EventReader, Feed, Sender, Worker, body_flags, stop_command
from tests.simulation.relaying import Relaying
from tests.simulation.silence import SilenceCheck

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
MESSAGES = (b"data: {text} says {index}\n\n", b"data: {index}\n\n")
# Of the three scripts: an end as it is; one that shows what the stream has, in its turn; one that may be empty.
ENDS = (b"data: [DONE]\n\n", b"data: {text} said {index}, {closing}\n\ndata: [DONE]\n\n", b"{closing}")
ENDS_COUNT = (False, True, False)
_MARKS = {b"{index}": 1, b"{text}": 2, b"{closing}": 3}
BLOCK_BYTES = 4096  # less than the settings allow; relayed streams need what they ask for
RELAY_BLOCK_BYTES = (8192, 16_384)
TURNS_MAX = 40_000
STUCK_AFTER_NS = 200 * SECOND


def make_settings(rng: random.Random, *, relays: bool) -> Settings:
    """A plane so small that everything in it runs out."""
    settings = Settings()
    replace = msgspec.structs.replace
    return replace(
        settings,
        server=replace(
            settings.server,
            max_connections=rng.choice((1, 2, 4, 8, 12)),
            socket_type=rng.choice(("seqpacket", "seqpacket", "stream")),
        ),
        limits=replace(settings.limits, slot_reserve=rng.choice((0, 1, 3)), handoff_bytes_max=rng.choice((100, 3000))),
        timeouts=replace(settings.timeouts, handoff_timeout_ms=rng.choice((50, 500, 5000))),
        streaming=replace(settings.streaming, linger_bytes_max=rng.choice((1000, 1 << 20))),
        performance=replace(
            settings.performance,
            submission_entries=rng.choice((32, 64, 256)),
            handoff_buffer_count=rng.choice((1, 2, 8)),
            body_buffer_count=8,
            output_block_bytes=rng.choice(RELAY_BLOCK_BYTES) if relays else BLOCK_BYTES,
            body_buffer_bytes=rng.choice((4096, 65_536)),
            zero_copy_bytes_min=rng.choice((1, 1000)),
        ),
    )


def make_hostility(rng: random.Random) -> Hostility:
    """From a kind kernel to a cruel one."""
    return Hostility(
        late=rng.choice((0.0, 0.2, 0.7)),
        late_ns_max=rng.choice((MILLISECOND, 20 * MILLISECOND, 300 * MILLISECOND)),
        fault=rng.choice((0.0, 0.0, 0.01, 0.05)),
        short=rng.choice((0.0, 0.2, 0.7)),
        spurious=rng.choice((0.0, 0.0, 0.1)),
        partial_take=rng.choice((0.0, 0.1, 0.4)),
        overflow=rng.choice((0.0, 0.3)),
        jump=rng.choice((0.0, 0.0, 0.002)),
        cancel_loses=rng.choice((0.0, 0.3, 0.8)),
        stale=rng.choice((0.0, 0.02)),
        deadly=rng.choice((0.0, 0.3)),
        receive_buffers=rng.choice((1, 2, 8, 1024)),
    )


class Simulation:
    """Everything of one seed. `run` ends quietly, or raises what went wrong."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None, *, jump: float | None = None) -> None:
        """`jump` is how often the clock jumps, where that is not the seed's to say."""
        self.seed = seed
        rng = self.rng = random.Random(seed)
        relays = rng.random() < 0.6
        self.settings = make_settings(rng, relays=relays)
        self.plane = table.allocate(self.settings)
        start_ns = rng.choice((0, 1, 10**9, 10**15)) + rng.randrange(0, 20 * SECOND)
        self.kernel = SimulatedKernel(self.plane, rng, make_hostility(rng), start_ns)
        self.kernel.trace = trace
        if jump is not None:
            self.kernel.hostility.jump = jump
        shared: Any = self.plane.globals[0]
        self.shared = shared
        shared.zero_copy = rng.random() < 0.5
        if rng.random() < 0.3:
            shared.completion_base = shared.submission_base = (1 << 32) - 7  # indexes wrap in the kernel, not here
        self.listener = Listener(self.kernel.new_fd())
        self.commands = self._pipe(rng.choice((4096, 8192, 65_536)))
        self.channel_count = rng.choice((2, 3))
        self.pipes = [self._pipe(rng.choice((4096, 8192, 65_536))) for _ in range(self.channel_count)]
        self.kernel.add(self.listener)
        shared.listener_fd, shared.command_fd = self.listener.fd, self.commands.fd
        shared.channel_count = self.channel_count
        for channel, pipe in zip(self.plane.channels, self.pipes, strict=False):
            channel.fd = pipe.fd
        self._load_script()
        self.sender = Sender(self.commands, self.kernel)
        block_bytes = self.settings.performance.output_block_bytes
        self.workers = [Worker(n, self.kernel, self._sender(), block_bytes) for n in range(1, self.channel_count)]
        self.relaying = Relaying(self.kernel, self.plane, rng, self.sender, self.workers) if relays else None
        self._senders = [self.sender, *self._worker_senders]
        self.commands.on_read = self._flush
        EventReader(self.pipes[0], self.kernel, rng, self._handle)
        for worker, pipe in zip(self.workers, self.pipes[1:], strict=True):
            EventReader(pipe, self.kernel, rng, worker.handle)
        self.streams: dict[tuple[int, int], StreamCheck] = {}
        self.feeds: list[Feed] = []
        self.silences: list[SilenceCheck] = []
        self.kernel.each_turn.append(self._look_at_silences)
        self.clients: dict[int, Client] = {}
        self.peers: dict[int, Peer] = {}
        self.adopted: dict[int, Client] = {}
        self.bodies = 0
        self.told_ended: set[tuple[int, int]] = set()
        self.reasons: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()
        self.listener_idle = 0
        self.pongs = 0
        self.stopped = False
        self.drained = False
        self.observed: set[tuple[int, int, bool]] = set()

    # ---- set-up

    def _flush(self) -> None:
        """The command pipe has room again."""
        for sender in self._senders:
            sender.flush()

    def _pipe(self, capacity: int) -> Pipe:
        pipe = Pipe(self.kernel.new_fd(), capacity, blocking=self.rng.random() < 0.5)
        self.kernel.add(pipe)
        return pipe

    _worker_senders: list[Sender]

    def _sender(self) -> Sender:
        if not hasattr(self, "_worker_senders"):
            self._worker_senders = []
        self._worker_senders.append(Sender(self.commands, self.kernel))
        return self._worker_senders[-1]

    def _load_script(self) -> None:
        """Scripts of the same two messages, with number and text, and of different ends."""
        plane, offset, part_count = self.plane, 0, 0

        def store(data: bytes) -> int:
            nonlocal offset
            plane.templates[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
            offset += len(data)
            return offset - len(data)

        store(HEAD)
        self.shared.head_bytes = len(HEAD)
        for number, message in enumerate((*MESSAGES, *ENDS)):
            first = part_count
            for piece in re.split(rb"({\w+})", message):
                kind = _MARKS.get(piece, 0)
                if piece:
                    plane.script_parts[part_count] = (kind, 0 if kind else store(piece), 0 if kind else len(piece))
                    part_count += 1
            plane.script_messages[number] = (first, part_count - first, 200)
        for script, counts in enumerate(ENDS_COUNT):
            plane.scripts[script] = (0, 2, 2 + script, counts)

    # ---- the story

    def run(self) -> None:
        kernel, rng = self.kernel, self.rng
        for _ in range(rng.choice((1, 3, 10, 25))):
            kernel.at(int(rng.expovariate(1 / 200) * MILLISECOND), self._arrive)
        for _ in range(rng.choice((0, 0, 3)) if self.relaying is None else rng.choice((1, 3, 8))):
            kernel.at(rng.randrange(0, 500) * MILLISECOND, self._adopt)
        for _ in range(rng.choice((0, 2))):
            kernel.at(rng.randrange(0, 800) * MILLISECOND, self._ask)
        kernel.at(rng.choice((200, 1000, 5000)) * MILLISECOND, self._drain)
        kernel.at(0, self._watch)
        states = self.plane.streams["state"]
        generations = self.plane.streams["generation"]
        before, generation_before = states.tolist(), generations.tolist()
        while not kernel.step():
            after, generation_after = states.tolist(), generations.tolist()
            if after != before:
                for index, pair in enumerate(zip(before, after, strict=True)):
                    if pair[0] != pair[1]:
                        self.observed.add((*pair, generation_before[index] == generation_after[index]))
                before, generation_before = after, generation_after
            if kernel.turns >= TURNS_MAX:
                check(False, f"not over after {TURNS_MAX} turns: {self._describe_open()}")
        check(self.stopped, "the plane stopped by itself")
        self._check_end()

    def _watch(self) -> None:
        """Beside the plane, and without waking it: has everybody been noticed, and is it over?"""
        for stream in self.streams.values():
            stream.check_notices_leaving()
            stream.check_expiry()
            stream.check_pace()
        for silence in self.silences:
            silence.check_on_time()
        if self.relaying is not None:
            self.relaying.watch()
        if self.drained and self._is_over():
            self.stopped = True
            if self.relaying is not None and self.rng.random() < 0.5:
                self.relaying.forget_endpoints()
            self.sender.send(wire.command(m.SHUTDOWN_PLANE))
        else:
            self.kernel.at(100 * MILLISECOND, self._watch)

    def _look_at_silences(self) -> None:
        if self.silences:
            self.silences = [silence for silence in self.silences if not silence.is_over]
            for silence in self.silences:
                silence.look()

    def _arrive(self) -> None:
        client = Client(self.kernel, self.rng, calm=self.rng.random() < 0.3)
        limits = self.settings.limits
        is_stream = self.settings.server.socket_type == "stream"
        peer = Peer(self.kernel, self.rng, client, limits.handoff_bytes_max, stream=is_stream)
        self.clients[client.socket.fd] = client
        self.peers[peer.socket.fd] = peer
        self.listener.arrivals.append(peer.socket)
        self.kernel.wake(self.listener)

    def _adopt(self) -> None:
        if self.drained:
            return
        client = Client(self.kernel, self.rng, calm=False)
        cookie = client.socket.fd * 1000
        self.adopted[cookie] = client
        self.clients[client.socket.fd] = client
        client.socket.belongs_to_control = True
        if self.rng.random() < 0.5:
            self.sender.send(wire.command(m.ADOPT, client_fd=client.socket.fd, cookie=cookie))
            return
        stream = StreamCheck(self.kernel, (-1, -1), client.socket, HEAD)
        payload, apply, fields = self._paced(stream)
        stream.limit(fields)

        def opened() -> None:
            """Right after the turn that read it: whether a slot was free only the plane knows."""
            for slot, record in enumerate(self.plane.streams):
                if record["client_fd"] == client.socket.fd and record["handoff_flags"] & m.OPENED:
                    stream.key = (slot, int(record["generation"]))
                    check(stream.key not in self.streams, f"{stream.key}: there are two of it")
                    self.streams[stream.key] = stream
                    apply()

        command = wire.command(m.ADOPT, (0, 0), payload, client_fd=client.socket.fd, cookie=cookie, **fields)
        self.sender.send(command, lambda: self.kernel.after_turn.append(opened))

    def _ask(self) -> None:
        """Commands that concern no stream, and some for streams that never were."""
        rng, send = self.rng, self.sender.send
        send(wire.command(m.PING, cookie=self.seed))
        send(wire.command(m.TABLE))
        send(wire.command(m.CONFIGURE, handoff_timeout_ms=rng.choice((100, 1000))))
        for kind in (m.OPEN, m.START, m.PUSH, m.FINISH, m.STOP, m.BODY_RETURN):
            send(wire.command(kind, (rng.randrange(0, 20), rng.choice((0, 99))), b"stale"))

    # ---- the control plane

    def _handle(self, event: ev.Event) -> None:
        self.kernel.log(f"   control: {event}")
        if isinstance(event, ev.HandoffEvent):
            self._handle_handoff(event)
        elif isinstance(event, ev.EndedEvent):
            self._handle_ended(event)
        elif isinstance(event, ev.ExpiredEvent):
            self._handle_expired(event)
        elif isinstance(event, ev.KeepAliveDueEvent):
            self._handle_keep_alive(event)
        elif isinstance(event, ev.ListenerIdleEvent):
            self.listener_idle += 1
        elif isinstance(event, ev.PongEvent):
            check(event.cookie == self.seed, "a PONG with another cookie")
            self.pongs += 1
        elif self.relaying is None or not self.relaying.handle(event):
            others = ev.TableReadyEvent | ev.AcceptPausedEvent | ev.AcceptResumedEvent
            check(isinstance(event, others), f"{event} on the control plane's channel")

    def _handle_handoff(self, event: ev.HandoffEvent) -> None:
        key = wire.key_of(event)
        if event.flags & m.OPENED:  # its descriptor may be closed by now
            adopted = self.adopted.pop(event.cookie)
            check(self.streams[key].socket is adopted.socket, f"{key}: another socket's")
            self._go_on(self.streams[key], adopted)
            return
        check(key not in self.streams, f"{key}: HANDOFF twice")
        client = self.clients.get(event.client_fd)
        check(client is not None, f"a HANDOFF with descriptor {event.client_fd}")
        assert client is not None
        stream = StreamCheck(self.kernel, key, client.socket, HEAD)
        self.streams[key] = stream
        client.socket.belongs_to_control = True
        if event.flags & m.ADOPTED:
            check(self.adopted.pop(event.cookie).socket is client.socket, "the wrong socket was adopted")
        else:
            self._check_handoff_data(event)
        answer_ns = self.rng.choice((0, 0, 1, 30)) * MILLISECOND
        client_plan = self.rng.random()
        self.kernel.at(answer_ns, lambda: self._answer(stream, client, client_plan))

    def _check_handoff_data(self, event: ev.HandoffEvent) -> None:
        peer = self.peers[event.peer_fd]
        data = ctypes.string_at(event.data_address, event.data_bytes)
        check(peer.data.startswith(data), "the handoff's data arrived altered")
        truncated = bool(event.flags & m.DATA_TRUNCATED)
        check(truncated == (peer.kind == "oversize"), f"DATA_TRUNCATED is {truncated}")
        check(truncated or peer.socket.was_reset or data == peer.data, "the handoff's data is not whole")
        extra = bool(event.flags & m.EXTRA_DESCRIPTORS)
        check(not extra or peer.kind == "several", "descriptors out of nowhere")
        if peer.kind == "several" and not event.flags & m.CONTROL_TRUNCATED:
            check(extra, "extra descriptors were not noted")

    def _answer(self, stream: StreamCheck, client: Client, chance: float) -> None:
        if client.socket.fd in self.peers or chance < 0.05:
            self._refuse_descriptor(stream)
        elif self.drained or chance < 0.2:
            self._refuse(stream)
        elif self.relaying is not None and chance > 0.35:
            self._open_relayed(stream)
        elif chance < 0.5:
            self._open_paced(stream)
        else:
            self._open_pushed(stream, client)
        self._go_on(stream, client)

    def _go_on(self, stream: StreamCheck, client: Client) -> None:
        if self.rng.random() < 0.15:
            self._stop_later(stream, self.rng.choice((0, 5, 300)) * MILLISECOND, st.BACKEND_ERROR)
        client.plan_read()
        taken = stream.socket.on_taken

        def on_taken(data: bytes) -> None:
            assert taken is not None
            taken(data)
            client.plan_read()

        stream.socket.on_taken = on_taken

    def _limits(self) -> dict[str, int]:
        rng = self.rng
        return {
            "write_timeout_ms": rng.choice((50, 1000, 30_000)),
            "linger_timeout_ms": rng.choice((0, 100, 2000)),
            "stream_timeout_ms": rng.choice((100, 3000, 60_000)),
            "keep_alive_ms": rng.choice((0, 0, 20, 500)),
        }

    def _send_open(self, stream: StreamCheck, payload: bytes, apply: Callable[[], None], **fields: int) -> None:
        stream.limit(fields)
        self.sender.send(wire.command(m.OPEN, stream.key, payload, **fields), apply)

    def _refuse_descriptor(self, stream: StreamCheck) -> None:
        def apply() -> None:
            stream.open(0, b"", b"")
            stream.finished, stream.end_reason = "finish", st.DESCRIPTOR_REFUSED

        stream.socket.is_stream = False
        self._send_open(stream, b"", apply, source=m.SOURCE_NONE, reason=st.DESCRIPTOR_REFUSED)

    def _refuse(self, stream: StreamCheck) -> None:
        response = b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + b"x" * self.rng.choice((0, 10, 2000))

        def apply() -> None:
            stream.open(m.REFUSAL, response, b"")
            stream.finished, stream.end_reason = "finish", st.REFUSED
            stream.first_finish_ns = self.kernel.active_ns

        limits = self._limits()
        client = self.clients[stream.socket.fd]
        enough = limits["linger_timeout_ms"] >= 2000 and self.settings.streaming.linger_bytes_max > 100_000
        stream.patient = client.reading == "eager" and enough and not self.kernel.hostility.jump
        head = len(response)
        self._send_open(stream, response, apply, source=m.SOURCE_NONE, flags=m.REFUSAL, head_bytes=head, **limits)

    def _open_paced(self, stream: StreamCheck) -> None:
        payload, apply, fields = self._paced(stream)
        self._send_open(stream, payload, apply, **fields)

    def _paced(self, stream: StreamCheck) -> tuple[bytes, Callable[[], None], dict[str, int]]:
        """The payload of a stream that the plane makes, what it comes to, and the fields of its command."""
        rng = self.rng
        text, closing = b"somebody"[: rng.randrange(0, 9)], b"in the end"[: rng.randrange(0, 11)]
        script = rng.randrange(len(ENDS))
        total, interval_ps = rng.choice((0, 1, 18, 100, 2000)), rng.choice((0, 10**9, 50 * 10**9, 333_333_333))
        if total == 2000:
            interval_ps = rng.choice((0, 10**5, 10**6, 10**7))  # more is due at once than a block holds
        latency_ms = rng.choice((0, 0, 5, 500))
        flags = m.STANDARD_HEAD | rng.choice((0, m.CHUNKED)) | rng.choice((0, 0, m.KEEP_HALF_OPEN))
        opening = rng.choice((b"", b"data: first\n\n"))

        def apply() -> None:
            stream.open(flags, b"", opening)
            delivery = stream.delivery
            ends = [len(delivery.text)]
            for number in range(total):
                message = MESSAGES[number % 2].replace(b"{text}", text).replace(b"{index}", b"%d" % number)
                delivery.hand_over(wire.chunk(message) if stream.chunked else message, pause=True)
                ends.append(len(delivery.text))
            end = ENDS[script].replace(b"{text}", text).replace(b"{index}", b"%d" % total)
            end = end.replace(b"{closing}", closing)
            if end or stream.chunked:
                delivery.hand_over(wire.chunk(end) + b"0\r\n\r\n" if stream.chunked else end, pause=False)
            if ENDS_COUNT[script]:
                ends.append(len(delivery.text))
            count = (opening != b"") + total + ENDS_COUNT[script]
            stream.paced = Paced(ends, self.kernel.now_ns + latency_ms * MILLISECOND, interval_ps, count)
            stream.true_end = True

        pace = {"script": script, "message_count": total, "interval_ps": interval_ps, "latency_ms": latency_ms}
        texts = {"text_bytes": len(text), "closing_bytes": len(closing)}
        fields = {"source": m.SOURCE_PACED, "flags": flags, **texts, **pace, **self._limits()}
        return text + closing + opening, apply, fields

    def _open_pushed(self, stream: StreamCheck, client: Client) -> None:
        rng = self.rng
        flags = m.QUEUED | rng.choice((0, m.CHUNKED)) | rng.choice((0, 0, m.KEEP_HALF_OPEN))
        upload = None
        if self.bodies < 8 and rng.random() < 0.3 and not client.socket.finished and not client.socket.incoming:
            upload = make_upload(rng)
            self.bodies += 1
            client.start_upload(upload)
            flags |= body_flags(upload) | rng.choice((0, m.CONTINUE_100))
        prefix = upload.wire[: upload.prefix_bytes] if upload else b""
        stream.has_body = upload is not None
        fields = {
            "source": m.SOURCE_PUSHED,
            "queue_timeout_ms": rng.choice((0, 30, 3000)),
            "first_byte_timeout_ms": rng.choice((0, 30, 3000)),
            "silence_timeout_ms": rng.choice((0, 50, 3000)),
            "content_length": len(upload.body) if upload else 0,
            "prefix_bytes": len(prefix),
        }
        self._send_open(stream, prefix, lambda: stream.open(flags, b"", b""), flags=flags, **fields, **self._limits())
        self.silences.append(SilenceCheck(stream, fields["silence_timeout_ms"] * MILLISECOND))
        worker = rng.choice(self.workers)
        feed = Feed(worker, stream, rng, upload, chunked=bool(flags & m.CHUNKED))
        worker.feeds[stream.key] = feed
        self.feeds.append(feed)
        delay_ns = rng.choice((0, 0, 5, 100, 5000)) * MILLISECOND
        self.sender.when_written(lambda: self.kernel.at(delay_ns, feed.begin))  # START must come behind the OPEN

    def _open_relayed(self, stream: StreamCheck) -> None:
        assert self.relaying is not None
        limits = self._limits() | {"stream_timeout_ms": self.rng.choice((100, 3000, 60_000, 60_000))}
        fields, effect = self.relaying.open(stream, limits)
        self._send_open(stream, b"", effect, **fields)

    def _stop_later(self, stream: StreamCheck, delay_ns: int, reason: int) -> None:
        def stop() -> None:
            if stream.ended is None:
                self.sender.send(*stop_command(stream, reason))

        self.kernel.at(delay_ns, stop)

    def _handle_expired(self, event: ev.ExpiredEvent) -> None:
        key = wire.key_of(event)
        stream = self.streams[key]
        check(event.reason in (3, 4, 5, 6), f"expired for {event.reason}")
        check(not stream.expired, f"{key}: EXPIRED twice")
        check(stream.ended is None, f"{key}: EXPIRED after ENDED")
        stream.expired.append(event.reason)
        stream.expired_active_ns = self.kernel.active_ns
        if self.rng.random() < 0.8:
            self._stop_later(stream, self.rng.choice((0, 1, 6000)) * MILLISECOND, event.reason)

    def _handle_keep_alive(self, event: ev.KeepAliveDueEvent) -> None:
        stream = self.streams[wire.key_of(event)]
        check(not stream.head_sent or stream.ended is None, "KEEP_ALIVE_DUE out of place")
        if self.rng.random() < 0.5:
            head, comment = b"HTTP/1.1 200 OK\r\nB: c\r\n\r\n", b": waiting\n\n"
            data = wire.command(m.PUSH, stream.key, head + comment, flags=m.KEEP_ALIVE, head_bytes=len(head))
            self.sender.send(data, lambda: stream.push(m.KEEP_ALIVE, head, comment))

    def _handle_ended(self, event: ev.EndedEvent) -> None:
        key = wire.key_of(event)
        check(key not in self.told_ended, f"{key}: ENDED twice")
        self.told_ended.add(key)
        self.reasons[st.REASONS[event.reason]] += 1
        check(event.reason not in (st.PROTOCOL, st.SEND_ERROR), f"ended for {st.REASONS[event.reason]}")
        stream = self.streams.get(key)
        if stream is None:
            check(st.HANDOFF_TIMEOUT <= event.reason <= st.HANDOFF_ERROR, f"{event}: ENDED without a HANDOFF")
            return
        stream.end(event)
        if self.relaying is not None:
            self.relaying.ended(key)
        for feed in self.feeds:
            if feed.stream is stream:
                self.bodies -= feed.upload is not None
                if not stream.started:
                    feed.done = True

    # ---- the end

    def _drain(self) -> None:
        self.drained = True
        self.sender.send(wire.command(m.DRAIN))
        self.kernel.at(self.rng.choice((0, 500, 5000)) * MILLISECOND, self._stop_all)

    def _stop_all(self) -> None:
        """What still runs is told to end, again and again, as late handoffs come through."""
        for stream in self.streams.values():
            if stream.opened and stream.ended is None and not stream.finished:
                self.sender.send(*stop_command(stream, st.SHUTDOWN))
        if not self.stopped:
            self.kernel.at(SECOND, self._stop_all)
        self._stop_calls = getattr(self, "_stop_calls", 0) + 1
        check(self._stop_calls < 200, "streams do not end: " + self._describe_open())

    def _describe_open(self) -> str:
        return "; ".join(
            f"slot {slot}: {st.STATES[int(record.state)]} in flight {int(record.in_flight):#x} "
            f"flags {int(record['flags']):#x} control {record.control_events} worker {record.worker_events}"
            for slot, record in enumerate(self.plane.streams)
            if record.state
        )

    def _is_over(self) -> bool:
        shared = self.shared
        quiet = shared.parked_count == shared.adopted_count == 0 and not any(pipe.data for pipe in self.pipes)
        told = all(stream.ended is not None for stream in self.streams.values())
        stopped = all(feed.stopped or not feed.stream.started for feed in self.feeds)
        stopped = stopped and (self.relaying is None or self.relaying.is_over)
        return bool(
            quiet
            and told
            and stopped
            and self.listener_idle
            and not self.adopted
            and self.plane.counters[counters.SLOTS_USED] == 0
            and not self.plane.channels["in_flight"].any()
            and not self.plane.channels["buffered_bytes"].any()
        )

    def _check_end(self) -> None:
        check(self.listener_idle == 1, f"LISTENER_IDLE came {self.listener_idle} times")
        check_at_rest(self.plane)
        if self.relaying is not None:
            self.relaying.check_at_rest()
        for stream in self.streams.values():
            check(stream.ended is not None, f"{stream.key}: no ENDED")
        for feed in self.feeds:
            check(feed.stopped or not feed.stream.started, f"{feed.stream.key}: no STOPPED")
        for peer in self.peers.values():
            accepted = peer.socket.fd in self.kernel.things
            check(not (accepted and peer.socket.is_open), f"peer {peer.socket.fd} was never closed")
        closed = int(self.plane.counters[counters.DESCRIPTORS_CLOSED])
        check(closed == self.kernel.closed_count, f"{closed} descriptors counted, {self.kernel.closed_count} closed")
