"""Admission: looks at each handoff once, and decides what streams on it. Main thread.

The path of a handoff that is let in is the program's hot path for Python: one compiled look at the descriptor, one
decoding of the JSON, one call of the backend, one command. What depends only on the settings is packed before.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import resource
import time
from typing import TYPE_CHECKING, NamedTuple

from backends.interface import BackendError, Request
from backends.relay import Relay, RelayError
from backends.sse import KEEP_ALIVE
from daemon.control.answers import STANDARD_HEAD, Ending, either, streaming_head, typed_head
from daemon.control.commands import pack
from daemon.control.descriptor import (
    CLEAR_NONBLOCKING,
    NOT_A_STREAM_SOCKET,
    PEER_UNKNOWN,
    WANT_CREDENTIALS,
    Scratch,
    inspect,
)
from daemon.control.handoff import Refusal, decode, header_lines
from daemon.control.limits import UserLimits, policy_of, remembered
from daemon.control.opening import Opener
from daemon.control.rare_log import RareLog
from daemon.control.relays import is_relaying
from daemon.control.streams import Stream
from daemon.control.workers import Job
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.table import WAITING_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.interface import Backend, Fields, Format, Paced
    from backends.registry import Registry
    from config.settings import Settings
    from daemon.control.adoption import Adoption
    from daemon.control.commands import CommandWriter
    from daemon.control.events import EventRecord
    from daemon.control.relays import Relays
    from daemon.control.scripts import ScriptBook
    from daemon.control.streams import Observer
    from daemon.control.workers import WorkerPool

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1  # of refusals for want of room: it may be free again at once
RETRY_AFTER_DRAIN_S = 5
DESCRIPTORS_RESERVED = 200  # for the process itself, and for idle connections to upstreams
_string_at = ctypes.string_at
_UNUSUAL = m.CONTROL_TRUNCATED | m.EXTRA_DESCRIPTORS

# What EXPIRED is answered with: the status before the first byte, and what is said then and later.
_EXPIRED = {
    st.QUEUE_TIMEOUT: (503, "its turn did not come in time"),
    st.FIRST_BYTE_TIMEOUT: (504, "the backend did not answer in time"),
    st.SILENCE_TIMEOUT: (504, "the backend fell silent"),
    st.STREAM_TIMEOUT: (504, "the stream took longer than is allowed"),
}


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
        self._rare = RareLog(logger)
        self._scratch = Scratch()
        self._clear_nonblocking = CLEAR_NONBLOCKING if kernel == "io_uring" else 0
        self._users = UserLimits(0, 0)
        self._streams: dict[int, Stream] = {}
        self._adoptions: dict[int, Adoption] = {}
        self._next_cookie = 1
        self._relays = None if relays is None else relays(self._streams.get)
        self._descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_RESERVED
        self._body_count = 0
        self.draining = False
        self._apply(settings)

    # -------------------------------------------------------------------------------------------- for the service

    @property
    def handlers(self) -> dict[int, Callable[[EventRecord], None]]:
        """By kind of event: those that concern streams."""
        return {
            m.HANDOFF: self.on_handoff,
            m.EXPIRED: self.on_expired,
            m.KEEP_ALIVE_DUE: self.on_keep_alive_due,
            m.ENDED: self.on_ended,
            **({} if self._relays is None else self._relays.handlers),
        }

    def flush(self) -> None:
        """Send what the handlers decided."""
        self._writer.flush()

    @property
    def active_count(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    def backend_of(self, slot: int) -> str:
        """The backend that streams on a slot, or "-"."""
        stream = self._streams.get(slot)
        return "-" if stream is None else stream.backend

    def drain(self) -> None:
        """Let nothing in from now; the plane stops accepting. Streams go on."""
        self.draining = True
        self._writer.send(kind=m.DRAIN)

    def stop_all(
        self, reason: int = st.SHUTDOWN, status: int = 503, detail: str = "the server is shutting down"
    ) -> None:
        """End every stream with a true word: a response where nothing has left yet, otherwise an error event."""
        for stream in self._streams.values():
            self._stop(stream, reason, _ending(status, st.REASONS[reason], detail, stream.style))
        self._writer.flush()

    def reload(self, settings: Settings) -> None:
        """New limits, timeouts and delays, for handoffs that come from now."""
        self._registry.reload(settings)
        self._apply(settings)
        self._writer.send(kind=m.CONFIGURE, handoff_timeout_ms=settings.timeouts.handoff_timeout_ms)

    def adopt(self, client_fd: int, adoption: Adoption) -> bool:
        """Stream on a socket of this process; its descriptor is the plane's from now. False when there is no room."""
        if self.draining or len(self._adoptions) >= WAITING_MAX // 2:
            return False
        cookie = self._next_cookie
        self._next_cookie += 1
        self._adoptions[cookie] = adoption
        self._writer.send(kind=m.ADOPT, client_fd=client_fd, cookie=cookie)
        return True

    def _apply(self, settings: Settings) -> None:
        self._policy = policy_of(settings)
        self._opener = Opener(self._policy)
        self._users.streams_max = settings.limits.streams_per_user
        self._users.per_minute = settings.limits.requests_per_minute_per_user
        checked = self._policy.allowed_uids or self._policy.allowed_gids
        self._wanted = self._clear_nonblocking | (WANT_CREDENTIALS if checked else 0)
        in_plane = not self._policy.every_backend_pooled
        self._routes = {
            name: Route(name, backend, in_plane or is_relaying(backend)) for name, backend in self._registry
        }
        self._default_route = self._routes[self._policy.default_backend]

    # -------------------------------------------------------------------------------------------- a stream's beginning

    def on_handoff(self, record: EventRecord) -> None:
        """A socket arrived: answered with exactly one OPEN."""
        _, flags, slot, generation, _, _, address, length, client_fd, peer_fd, accepted_ns, _, cookie = record
        adopted = flags & m.ADOPTED
        wanted = self._clear_nonblocking if adopted else self._wanted
        found = inspect(client_fd, peer_fd, wanted, self._scratch.address)
        if found == NOT_A_STREAM_SOCKET:
            self._rare.warn("handoff of something that is no stream socket", "descriptor_refused")
            self._writer.add(self._opener.dropped(slot, generation, st.DESCRIPTOR_REFUSED))
            return
        if flags & _UNUSUAL:
            self._rare.warn("handoff with more descriptors than one", "extra_descriptors")
        stream = Stream(slot, generation, accepted_ns)
        try:
            if wanted & WANT_CREDENTIALS:
                self._check_peer(found)
            if adopted:
                self._admit_adopted(stream, self._adoptions.pop(cookie))
                return
            self._check_room()
            self._check_size(flags)
            data = _string_at(address, length)
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
            stream.head = self._head(fields.response_headers)
        if fields.user_id is not None and self._users.active:
            user = remembered(fields.user_id)
            self._check_user(user)
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
                self._open_relay(stream, opened)
                return True
            command = None if opened is None else self._paced_command(stream, opened)
        except Refusal:
            raise
        except RelayError as error:
            raise Refusal(error.status, error.code, error.message, error.retry_after_s) from None
        except BackendError as error:
            raise Refusal(error.status, "backend_error", error.message) from None
        except BaseException:
            logger.exception("backend failed", extra={"backend": route.name})
            raise Refusal(500, "backend_error", "the backend failed") from None
        if command is None:
            return False
        self._writer.add(command)
        self._started(stream)
        return True

    def _open_relay(self, stream: Stream, relay: Relay) -> None:
        """A stream that an upstream makes; its connection needs a descriptor of its own."""
        assert self._relays is not None, "the registry knows who relays"
        stream.style = relay.format
        if len(self._streams) + self._relays.count + 2 > self._descriptors_max:
            raise Refusal(503, "descriptor_limit", "no descriptors are left for another relayed stream", RETRY_AFTER_S)
        stream.relayed = self._relays.first(relay)
        self._writer.add(self._opener.relayed(stream.slot, stream.generation))
        self._started(stream)
        self._relays.begin(stream)

    def _paced_command(self, stream: Stream, paced: Paced) -> bytes | None:
        """None when the stream does not fit in a command."""
        script = self._scripts.number(paced.script)
        if script is None:
            logger.error("backend opened a script that its scripts() does not list", extra={"backend": stream.backend})
            raise Refusal(500, "backend_error", "the backend failed")
        return self._opener.paced(stream.slot, stream.generation, script, paced, stream.head)

    def _open_pushed(self, stream: Stream, route: Route, request: Request, adoption: Adoption | None = None) -> None:
        self._take_form(stream, route, request)
        if not self._pool.reserve():
            raise Refusal(503, "queue_full", "all workers are busy and the queue is full", RETRY_AFTER_S)
        job = Job(stream.slot, stream.generation, route.name, route.backend, request)
        job.head = stream.head
        job.style = stream.style
        events = stream.style != "raw"
        if adoption is None:
            command = self._opener.pushed(stream.slot, stream.generation, events=events)
        else:
            job.chunked = bool(adoption.flags & m.CHUNKED)
            job.has_body = stream.has_body
            command = self._opener.adopted(stream.slot, stream.generation, adoption, events=events)
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
            if stream.adoption is None:
                stream.head = typed_head(stream.head, form.content_type)
        except BackendError as error:
            raise Refusal(error.status, "backend_error", error.message) from None
        except BaseException:
            logger.exception("backend failed", extra={"backend": route.name})
            raise Refusal(500, "backend_error", "the backend failed") from None

    def _admit_adopted(self, stream: Stream, adoption: Adoption) -> None:
        stream.adoption = adoption
        self._check_room()
        route = self._routes.get(adoption.backend)
        assert route is not None, "the HTTP front names backends of the registry"
        stream.backend = route.name
        stream.style = route.backend.format
        stream.head = adoption.head
        if adoption.has_body:
            if self._body_count >= self._policy.bodies_max:
                raise Refusal(503, "too_many_bodies", "as many uploads as are allowed are arriving", RETRY_AFTER_S)
            stream.has_body = True
        self._open_pushed(stream, route, adoption.request, adoption)

    def _started(self, stream: Stream) -> None:
        self._streams[stream.slot] = stream
        if stream.user is not None:
            self._users.hold(stream.user)
        if stream.has_body:
            self._body_count += 1
        self._observer.stream_started(stream.backend)

    # -------------------------------------------------------------------------------------------- what may come in

    def _check_room(self) -> None:
        if self.draining:
            raise Refusal(503, "draining", "the server is shutting down", RETRY_AFTER_DRAIN_S)
        if len(self._streams) >= self._policy.connections_max:
            raise Refusal(503, "connection_limit", "as many streams as are allowed are open", RETRY_AFTER_S)

    def _check_size(self, flags: int) -> None:
        if flags & m.DATA_TRUNCATED:
            limit = self._policy.handoff_bytes_max
            raise Refusal(413, "handoff_too_large", f"the handoff's data is larger than {limit} bytes")

    def _check_peer(self, found: int) -> None:
        policy, scratch = self._policy, self._scratch
        allowed = found != PEER_UNKNOWN and (scratch.uid in policy.allowed_uids or scratch.gid in policy.allowed_gids)
        if not allowed:
            raise Refusal(403, "peer_refused", "the process that handed this connection over may not do so")

    def _check_user(self, user: int | str) -> None:
        users = self._users
        if not users.may_hold(user):
            raise Refusal(429, "streams_per_user", f"a user may hold {users.streams_max} streams", RETRY_AFTER_S)
        wait_s = users.start(user, time.monotonic())
        if wait_s > 0:
            detail = f"a user may start {users.per_minute} streams a minute"
            raise Refusal(429, "requests_per_minute_per_user", detail, wait_s)

    def _head(self, headers: dict[str, object]) -> bytes | None:
        """The head with a handoff's own headers; None where none of them is left."""
        lines, dropped_count = header_lines(headers)
        if dropped_count > 0:
            self._rare.warn("response headers of a handoff that are not allowed", "response_headers")
        limit = self._policy.head_bytes_max
        if len(STANDARD_HEAD) + len(lines) > limit:
            detail = f"field `response_headers` of the handoff: the response head is larger than {limit} bytes"
            raise Refusal(400, "response_head_too_large", detail)
        return streaming_head(lines) if lines else None

    def _refuse(self, stream: Stream, refusal: Refusal) -> None:
        self._rare.warn("handoff refused", refusal.code, detail=refusal.detail)
        self._observer.handoff_rejected(refusal.code)
        response = refusal.response(stream.style)
        self._writer.add(self._opener.refused(stream.slot, stream.generation, response))
        if stream.adoption is not None and stream.adoption.ended is not None:
            stream.adoption.ended(st.REFUSED)

    # -------------------------------------------------------------------------------------------- a stream's end

    def on_expired(self, record: EventRecord) -> None:
        """A deadline passed: the plane asks how to say so."""
        stream = self._streams.get(record[2])
        if stream is None or stream.generation != record[3]:
            return  # its ENDED was on its way
        reason = record[4]
        status, detail = _EXPIRED[reason]
        self._stop(stream, reason, _ending(status, st.REASONS[reason], detail, stream.style))

    def on_keep_alive_due(self, record: EventRecord) -> None:
        """A long silence before the first byte: the head and a comment, so that nothing on the way gives up."""
        slot, generation = record[2], record[3]
        stream = self._streams.get(slot)
        if stream is None or stream.generation != generation or stream.style == "raw":
            return
        head, flag = (b"", m.STANDARD_HEAD) if stream.head is None else (stream.head, 0)
        flags = m.KEEP_ALIVE | flag
        self._writer.add(
            pack(head + KEEP_ALIVE, kind=m.PUSH, slot=slot, generation=generation, flags=flags, head_bytes=len(head))
        )

    def on_ended(self, record: EventRecord) -> None:
        """A slot is free: settle the accounts of its stream, if it had one."""
        reason = record[4]
        stream = self._streams.pop(record[2], None)
        if stream is None:
            self._observer.stream_ended(None, reason)
            return
        assert stream.generation == record[3], "one ENDED for each stream"
        if stream.user is not None:
            self._users.release(stream.user)
        if stream.job is not None:
            self._pool.end(stream.job)
        if stream.relayed is not None and self._relays is not None:
            self._relays.ended(stream, record)
        if stream.has_body:
            self._body_count -= 1
        if stream.adoption is not None and stream.adoption.ended is not None:
            stream.adoption.ended(reason)
        self._observer.stream_ended(stream.backend, reason)

    def settle(self, last_events: Callable[[Stream], tuple[EventRecord, EventRecord]]) -> None:
        """The plane has been stopped: relayed streams that it left open have ended as these events say of them."""
        if self._relays is None:
            return
        for stream in [stream for stream in self._streams.values() if stream.relayed is not None]:
            usage, ended = last_events(stream)
            self._relays.handlers[m.USAGE](usage)
            self.on_ended(ended)

    def _stop(self, stream: Stream, reason: int, ending: Ending) -> None:
        slot, generation = stream.slot, stream.generation
        payload, head_bytes = ending
        self._writer.add(
            pack(payload, kind=m.STOP, slot=slot, generation=generation, head_bytes=head_bytes, reason=reason)
        )
        if stream.job is not None:
            self._pool.cancel(stream.job)


@functools.lru_cache(maxsize=64)
def _ending(status: int, code: str, detail: str, style: Format) -> Ending:
    return either(status, code, detail, style, RETRY_AFTER_S if status == 503 else 0)
