"""Admission: looks at each handoff once, and decides what streams on it. Main thread.

The path of a handoff that is let in is the program's hot path for Python: one compiled look at the descriptor, one
decoding of the JSON, one call of the backend, one command. What depends only on the settings is packed before.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import resource
from typing import TYPE_CHECKING, NamedTuple

from backends.interface import TEXT_BYTES_MAX, Request
from backends.relay import Relay
from backends.sse import KEEP_ALIVE
from daemon.control.admission.checks import RETRY_AFTER_S, Gate
from daemon.control.admission.client_socket import (
    CLEAR_NONBLOCKING,
    NOT_A_STREAM_SOCKET,
    WANT_CREDENTIALS,
    Inspector,
)
from daemon.control.admission.error_responses import ending, expired, refusal_of
from daemon.control.admission.handoff import decode
from daemon.control.admission.open_commands import Opener
from daemon.control.admission.policy import policy_of
from daemon.control.admission.refusal import Refusal
from daemon.control.admission.user_limits import remembered
from daemon.control.channel.commands import adopting, pack
from daemon.control.channel.events import Handler, handler
from daemon.control.channel.responses import typed_head
from daemon.control.process.rate_limited_log import RateLimitedLog
from daemon.control.relay.backends import is_relaying
from daemon.control.stream.adoption import HEAD_BYTES_MAX, Entry
from daemon.control.stream.job import Job
from daemon.control.stream.stream import Stream
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.command_records import ConfigureCommand, DrainCommand, OpenCommand, PushCommand, StopCommand
from daemon.plane.event_records import EndedEvent, ExpiredEvent, HandoffEvent, KeepAliveDueEvent, UsageEvent
from daemon.plane.table import WAITING_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.interface import Backend, Fields, Paced
    from backends.registry import Registry
    from config.settings import Settings
    from daemon.control.channel.command_pipe import CommandWriter
    from daemon.control.channel.responses import Ending
    from daemon.control.channel.scripts import ScriptBook
    from daemon.control.relay.attempts import Relays
    from daemon.control.stream.adoption import Adoption
    from daemon.control.stream.relayed import Relayed
    from daemon.control.stream.stream import Observer
    from daemon.control.workers.pool import WorkerPool
    from daemon.plane.event_records import StreamEvent

INTERNAL_ERROR = "the server failed to handle this request"
logger = logging.getLogger(__name__)
DESCRIPTORS_RESERVED = 200  # for the process itself, and for idle connections to upstreams
_string_at = ctypes.string_at
_PACED_BYTES_MAX = m.PAYLOAD_BYTES_MAX - HEAD_BYTES_MAX - 2 * TEXT_BYTES_MAX  # what an OPEN holds beside a head
_UNUSUAL = m.CONTROL_TRUNCATED | m.EXTRA_DESCRIPTORS


class Route(NamedTuple):
    """A backend as admission uses it."""

    name: str
    backend: Backend
    in_plane: bool  # its paced streams are made in the plane


class Admission:
    """Answers the data plane's events. Its `handlers` go to an EventReader, and `flush` follows each batch."""

    def __init__(  # noqa: PLR0913  (the planes wire it, once)
        self,
        settings: Settings,
        registry: Registry,
        scripts: ScriptBook,
        writer: CommandWriter,
        pool: WorkerPool,
        observer: Observer,
        *,
        kernel: str,
        relays: Callable[[Callable[[int], Stream | None]], Relays] | None = None,
    ) -> None:
        """`kernel` is "io_uring" or "epoll". The book has the scripts of all the registry's backends.

        `relays` makes what relays streams, where a backend of the registry does.
        """
        self._registry = registry
        self._scripts = scripts
        self._writer = writer
        self._pool = pool
        self._observer = observer
        self._rare = RateLimitedLog(logger)
        self._inspector = Inspector()
        self._clear_nonblocking = CLEAR_NONBLOCKING if kernel == "io_uring" else 0
        self._gate = Gate(self._rare)
        self._streams: dict[int, Stream] = {}
        self._adoptions: dict[int, Adoption] = {}
        self._next_cookie = 1
        self._relays = None if relays is None else relays(self._streams.get)
        of_front = 2 * settings.http.connections_max if settings.http.listen else 0
        self._descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_RESERVED - of_front
        self._body_count = 0
        self._entries: set[Entry] = set()  # let in, but not yet known to be opened
        self._last_word: tuple[int, int, str] | None = None  # reason, status, detail: what all were stopped with
        self._is_settled = False
        self._apply(settings)

    # -------------------------------------------------------------------------------------------- for the service

    @property
    def handlers(self) -> list[Handler]:
        """Those of the events that concern streams."""
        return [
            handler(HandoffEvent, self.on_handoff),
            handler(ExpiredEvent, self.on_expired),
            handler(KeepAliveDueEvent, self.on_keep_alive_due),
            handler(EndedEvent, self.on_ended),
            *([] if self._relays is None else self._relays.handlers),
        ]

    def flush(self) -> None:
        """Send what the handlers decided."""
        self._writer.flush()

    @property
    def active_count(self) -> int:
        """Streams that are open, those included whose sockets are on their way."""
        return len(self._streams) + len(self._entries)

    @property
    def draining(self) -> bool:
        """Whether everything new is refused."""
        return self._gate.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._gate.draining = draining

    def backend_of(self, slot: int) -> str:
        """The backend that streams on a slot, or "-"."""
        stream = self._streams.get(slot)
        return "-" if stream is None else stream.backend

    def drain(self) -> None:
        """Let nothing in from now; the plane stops accepting. Streams go on."""
        self.draining = True
        self._writer.send(DrainCommand())

    def stop_all(
        self, reason: int = st.SHUTDOWN, status: int = 503, detail: str = "the server is shutting down"
    ) -> None:
        """End every stream with a true word: a response where nothing has left yet, otherwise an error event."""
        self._last_word = (reason, status, detail)
        for stream in self._streams.values():
            self._stop_with(stream, reason, status, detail)
        self._writer.flush()

    def reload(self, settings: Settings) -> None:
        """New limits, timeouts and delays, for handoffs that come from now."""
        self._registry.reload(settings)
        self._apply(settings)
        self._writer.send(ConfigureCommand(settings.timeouts.handoff_timeout_ms))

    # -------------------------------------------------------------------------------------------- for the HTTP front

    def admit(self, name: str, request: Request, *, user: str = "", has_body: bool = False) -> Entry:
        """Let a request of the front in, whose socket follows by `adopt`. Raises Refusal; then nothing is held.

        The limits are those of handoffs. `user` is who they are counted for; `has_body`: an upload follows.
        """
        self._gate.check_room(self.active_count)
        if len(self._entries) >= WAITING_MAX // 2:  # all of them may come to be adopted in one turn of the plane
            raise Refusal(503, "connection_limit", "as many streams as can be opened at once are being opened", 1)
        if has_body:
            self._gate.check_bodies(self._body_count)
        route = self._routes[name]
        entry = Entry(route.name, route.backend, request)
        counted = user and self._gate.users.active
        if counted:
            self._gate.check_user(remembered(user))
        self._prepare(entry, route)
        if counted:
            entry.user = remembered(user)
            self._gate.users.hold(entry.user)
        if has_body:
            entry.has_body = True
            self._body_count += 1
        self._entries.add(entry)
        return entry

    def adopt(self, client_fd: int, adoption: Adoption) -> None:
        """Stream what was let in on a socket of this process; its descriptor is the plane's from now."""
        cookie = self._next_cookie
        self._next_cookie += 1
        self._adoptions[cookie] = adoption
        found = self._inspector.inspect(client_fd, -1, self._clear_nonblocking)
        assert found != NOT_A_STREAM_SOCKET, "the front gives stream sockets"
        # What the plane makes by itself it also opens by itself, and nobody is waited for before the first token.
        opening = b"" if adoption.entry.opened is None else self._opening(0, 0, adoption)
        self._writer.add_soon(adopting(opening or pack(OpenCommand(0, 0)), client_fd, cookie))

    def _opening(self, slot: int, generation: int, adoption: Adoption) -> bytes:
        """The OPEN of what the plane makes by itself."""
        assert adoption.entry.opened is not None, "somebody else makes it"
        script, paced = adoption.entry.opened
        packed = self._opener.paced(slot, generation, script, paced, adoption.head, adoption.flags)
        assert packed is not None, "whether it fits was asked when it was let in"
        return packed

    def abandon(self, entry: Entry, reason: int = st.REFUSED) -> None:
        """The socket of what was let in does not come: its client has left, or for another reason of the plane's."""
        if self._is_settled:
            return  # the daemon ends, and has accounted for it
        self._entries.remove(entry)
        if entry.user is not None:
            self._gate.users.release(entry.user)
        if entry.has_body:
            self._body_count -= 1
        if entry.relayed is not None and self._relays is not None:
            self._relays.abandon(entry.relayed, reason)
        elif entry.opened is None:
            self._pool.give_back()

    def _prepare(self, entry: Entry, route: Route) -> None:
        """Find out who makes the stream, and keep what it needs. It is the backend's own code, as for a handoff."""
        request = entry.request
        try:
            opened = route.backend.open(request) if route.in_plane else None
            if isinstance(opened, Relay):
                entry.style = opened.format
                entry.relayed = self._first(opened)
                return
            if opened is not None and len(opened.text) + len(opened.opening) <= _PACED_BYTES_MAX:
                script = self._script_number(opened, route.name)
                # What no command holds is found out here: later, nobody could be told.
                self._opener.paced(0, 0, script, opened, b"")
                entry.opened = script, opened
                return
            form = route.backend.form(request)
        except Refusal:
            raise
        except BaseException as error:  # noqa: BLE001  (whatever a backend raises is told as a refusal)
            raise refusal_of(error, route.name) from None
        if form is not None:
            entry.style, entry.content_type = form
        self._reserve_worker()

    def _admit_adopted(self, stream: Stream, adoption: Adoption, *, is_opened: bool) -> None:
        entry = adoption.entry
        self._entries.remove(entry)
        stream.lines, stream.ended = adoption.lines, adoption.ended
        stream.backend, stream.style = entry.name, entry.style
        stream.user, stream.has_body = entry.user, entry.has_body
        slot, generation = stream.slot, stream.generation
        if entry.opened is not None:  # its head, which is most of what would be kept of it, is the plane's
            if not is_opened:
                self._writer.add(self._opening(slot, generation, adoption))
            self._started(stream)
            return
        stream.head = adoption.head
        if entry.relayed is not None:
            assert self._relays is not None, "it chose the first attempt"
            stream.relayed = entry.relayed
            self._writer.add(self._opener.relayed(slot, generation, adoption.flags))
            self._started(stream)
            self._relays.begin(stream)
            return
        job = Job(slot, generation, entry.name, entry.backend, entry.request)
        job.chunked, job.has_body, job.lines = bool(adoption.flags & m.CHUNKED), entry.has_body, adoption.lines
        command = self._opener.adopted(slot, generation, adoption, events=entry.style != "raw")
        self._enqueue(stream, job, command)

    def _apply(self, settings: Settings) -> None:
        self._policy = policy_of(settings)
        self._opener = Opener(self._policy)
        self._gate.apply(settings, self._policy)
        checked = self._policy.allowed_uids or self._policy.allowed_gids
        self._wanted = self._clear_nonblocking | (WANT_CREDENTIALS if checked else 0)
        in_plane = not self._policy.every_backend_pooled
        self._routes = {
            name: Route(name, backend, in_plane or is_relaying(backend)) for name, backend in self._registry
        }
        self._default_route = self._routes[self._policy.default_backend]

    # -------------------------------------------------------------------------------------------- a stream's beginning

    def on_handoff(self, event: HandoffEvent) -> None:
        """A socket arrived: answered with exactly one OPEN."""
        flags, stream = event.flags, Stream(event.slot, event.generation, event.accepted_ns)
        if flags & m.ADOPTED:
            self._admit_adopted(stream, self._adoptions.pop(event.cookie), is_opened=bool(flags & m.OPENED))
            if self._last_word is not None:  # it was on the way when all were stopped
                self._stop_with(stream, *self._last_word)
            return
        found = self._inspector.inspect(event.client_fd, event.peer_fd, self._wanted)
        if found == NOT_A_STREAM_SOCKET:
            self._rare.warn("handoff of something that is no stream socket", "descriptor_refused")
            self._writer.add(self._opener.dropped(stream.slot, stream.generation, st.DESCRIPTOR_REFUSED))
            return
        if flags & _UNUSUAL:
            self._rare.warn("handoff with more descriptors than one", "extra_descriptors")
        try:
            if self._wanted & WANT_CREDENTIALS:
                self._gate.check_peer(found, self._inspector)
            self._gate.check_room(self.active_count)
            self._gate.check_size(flags)
            data = _string_at(event.data_address, event.data_bytes)
            self._admit(stream, decode(data), data)
        except Refusal as refusal:
            self._refuse(stream, refusal)

    def _admit(self, stream: Stream, fields: Fields, data: bytes) -> None:
        name = fields.backend
        route = self._default_route if name is None else self._routes.get(name)
        if route is None:
            known = ", ".join(sorted(self._routes))
            raise Refusal(400, "unknown_backend", f"field `backend` of the handoff: known backends are {known}")
        stream.backend = route.name
        stream.style = route.backend.format
        if fields.response_headers:
            stream.head = self._gate.head(fields.response_headers)
        if fields.user_id is not None and self._gate.users.active:
            user = remembered(fields.user_id)
            self._gate.check_user(user)
            stream.user = user
        request = Request(fields, data)
        if not (route.in_plane and self._open_in_plane(stream, route, request)):
            self._open_pushed(stream, route, request)

    def _open_in_plane(self, stream: Stream, route: Route, request: Request) -> bool:
        """Ask the backend for a stream that the plane can make. False when a thread has to make it.

        It is the backend's own code that runs here, and what it returned may be anything: numbers that a client chose
        and no record holds, or no Paced at all. None of that may reach the event loop, where it would end the process.
        """
        try:
            opened = route.backend.open(request)
            if isinstance(opened, Relay):
                stream.style = opened.format
                stream.relayed = self._first(opened)
                command: bytes | None = self._opener.relayed(stream.slot, stream.generation)
            elif opened is None:
                return False
            else:
                script = self._script_number(opened, route.name)
                command = self._opener.paced(stream.slot, stream.generation, script, opened, stream.head)
        except Refusal:
            raise
        except BaseException as error:  # noqa: BLE001  (whatever a backend raises is told as a refusal)
            raise refusal_of(error, route.name) from None
        if command is None:  # it does not fit in one
            return False
        self._writer.add(command)
        self._started(stream)
        if stream.relayed is not None and self._relays is not None:
            self._relays.begin(stream)
        return True

    def _first(self, relay: Relay) -> Relayed:
        """A stream that an upstream makes; its connection needs a descriptor of its own."""
        assert self._relays is not None, "the registry knows who relays"
        if self.active_count + self._relays.count + 2 > self._descriptors_max:
            raise Refusal(503, "descriptor_limit", "no descriptors are left for another relayed stream", RETRY_AFTER_S)
        return self._relays.first(relay)

    def _script_number(self, paced: Paced, name: str) -> int:
        script = self._scripts.number(paced.script)
        if script is None:
            logger.error("backend opened a script that its scripts() does not list", extra={"backend": name})
            raise Refusal(500, "backend_error", "the backend failed")
        return script

    def _open_pushed(self, stream: Stream, route: Route, request: Request) -> None:
        self._take_form(stream, route, request)
        self._reserve_worker()
        job = Job(stream.slot, stream.generation, route.name, route.backend, request)
        command = self._opener.pushed(stream.slot, stream.generation, events=stream.style != "raw")
        self._enqueue(stream, job, command)

    def _reserve_worker(self) -> None:
        """Keep a place in the queue for a stream that a worker makes."""
        if not self._pool.reserve():
            raise Refusal(503, "queue_full", "all workers are busy and the queue is full", RETRY_AFTER_S)

    def _enqueue(self, stream: Stream, job: Job, command: bytes) -> None:
        """A worker makes the stream, for which a place in the queue is kept."""
        job.head, job.style = stream.head, stream.style
        stream.job = job
        self._started(stream)
        # The worker's START must come behind the OPEN: only what is in the pipe is in order.
        self._writer.add(command)
        self._writer.after_flush(functools.partial(self._pool.enqueue, job))

    def _take_form(self, stream: Stream, route: Route, request: Request) -> None:
        """Have the stream written as the backend says for this request. It is the backend's own code, as in `open`."""
        try:
            form = route.backend.form(request)
            if form is None:
                return
            stream.style = form.format
            stream.head = typed_head(stream.head, form.content_type)
        except BaseException as error:  # noqa: BLE001  (whatever a backend raises is told as a refusal)
            raise refusal_of(error, route.name) from None

    def _started(self, stream: Stream) -> None:
        self._streams[stream.slot] = stream
        if stream.user is not None and stream.lines is None:  # of the front's it was done when they were let in
            self._gate.users.hold(stream.user)
        self._observer.stream_started(stream.backend)

    def _refuse(self, stream: Stream, refusal: Refusal) -> None:
        self._rare.warn("handoff refused", refusal.code, detail=refusal.detail)
        self._observer.handoff_rejected(refusal.code)
        response = refusal.response(stream.style)
        self._writer.add(self._opener.refused(stream.slot, stream.generation, response))

    # -------------------------------------------------------------------------------------------- a stream's end

    def on_expired(self, event: ExpiredEvent) -> None:
        """A deadline passed: the plane asks how to say so."""
        stream = self._streams.get(event.slot)
        if stream is None or stream.generation != event.generation:
            return  # its ENDED was on its way
        awaits = stream.job is not None and stream.job.awaits_upload
        self._stop(stream, event.reason, expired(event.reason, stream.style, stream.lines, is_upload_due=awaits))

    def on_keep_alive_due(self, event: KeepAliveDueEvent) -> None:
        """A long silence before the first byte: the head and a comment, so that nothing on the way gives up."""
        slot, generation = event.slot, event.generation
        stream = self._streams.get(slot)
        if stream is None or stream.generation != generation or stream.style == "raw":
            return
        head, flag = (b"", m.STANDARD_HEAD) if stream.head is None else (stream.head, 0)
        push = PushCommand(slot, generation, head_bytes=len(head), flags=m.KEEP_ALIVE | flag)
        self._writer.add(pack(push, head + KEEP_ALIVE))

    def on_ended(self, event: EndedEvent) -> None:
        """A slot is free: settle the accounts of its stream, if it had one."""
        reason = event.reason
        stream = self._streams.pop(event.slot, None)
        if stream is None:
            self._observer.stream_ended(None, reason)
            return
        assert stream.generation == event.generation, "one ENDED for each stream"
        if stream.user is not None:
            self._gate.users.release(stream.user)
        if stream.job is not None:
            self._pool.end(stream.job)
        if stream.relayed is not None and self._relays is not None:
            self._relays.ended(stream, event)
        if stream.has_body:
            self._body_count -= 1
        if stream.ended is not None:
            stream.ended(reason)
        self._observer.stream_ended(stream.backend, reason)

    def end_failed(self, event: StreamEvent) -> None:
        """The handler of this event raised an exception: end its stream. The plane drops what is not due any more."""
        stream = self._streams.get(event.slot) or Stream(event.slot, event.generation, 0)
        if isinstance(event, HandoffEvent):
            self._refuse(stream, Refusal(500, "internal_error", INTERNAL_ERROR))
        if stream.generation == event.generation:
            self._stop_with(stream, st.BACKEND_ERROR, 500, INTERNAL_ERROR)

    def settle(self, last_events: Callable[[Stream], tuple[UsageEvent, EndedEvent]]) -> None:
        """The plane has been stopped. What was let in is not opened any more, whether or not its socket had come.

        Relayed streams that the plane left open have ended as these events say of them.
        """
        for entry in list(self._entries):
            self.abandon(entry, st.SHUTDOWN)
        self._is_settled = True
        for adoption in self._adoptions.values():
            if adoption.ended is not None:
                adoption.ended(st.SHUTDOWN)
        self._adoptions.clear()
        if self._relays is None:
            return
        for stream in list(self._streams.values()):
            if stream.relayed is not None:
                stream.relayed.usage, ended = last_events(stream)
                self.on_ended(ended)

    def _stop_with(self, stream: Stream, reason: int, status: int, detail: str) -> None:
        self._stop(stream, reason, ending(status, st.REASONS[reason], detail, stream.style, stream.lines))

    def _stop(self, stream: Stream, reason: int, said: Ending) -> None:
        stop = StopCommand(stream.slot, stream.generation, said.head_bytes, reason)
        self._writer.add(pack(stop, said.payload))
        if stream.job is not None:
            self._pool.cancel(stream.job)
