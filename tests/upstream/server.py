"""The upstream: listeners on TCP, a Unix socket and TLS, served by one thread, told what to do by a test.

    with Upstream() as upstream:
        upstream.answer("some-model", Plan(status=500), Plan(openai_stream(["Hello"])))
        ... # ask upstream.base for some-model, twice
        assert upstream.requests("some-model")[0].header("Authorization") == "Bearer KEY"

The TCP and the Unix listener speak HTTP/1.1, and HTTP/2 to a client that begins with its preface; TLS agrees by ALPN.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

from tests.upstream.certificate import make_certificate, server_context
from tests.upstream.http1 import Http1
from tests.upstream.http2 import PREFACE, Http2
from tests.upstream.journal import Journal
from tests.upstream.wire import Speaker, Wire

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.upstream.plan import Plan
    from tests.upstream.records import ConnectionRecord, Request

LISTEN_BACKLOG = 4096


class Accept(enum.Enum):
    """What a new connection gets, before it has asked for anything."""

    SERVE = "serve"
    CLOSE = "close"
    RESET = "reset"
    SILENT = "silent"  # it is read, and nothing is ever answered


class _Unspoken:
    """Before it is known what a client speaks; or for good, where nothing is to be answered."""

    def __init__(self, wire: Wire, record: ConnectionRecord, upstream: Upstream, *, is_silent: bool) -> None:
        self._wire = wire
        self._record = record
        self._upstream = upstream
        self._is_silent = is_silent
        self._begun = b""
        self.speaker: Http1 | Http2 | None = None

    def received(self, data: bytes) -> None:
        """Bytes have come: the first of them say which HTTP it is."""
        if self._is_silent:
            return
        if self.speaker is None:
            self._begun += data
            if len(self._begun) < len(PREFACE) and PREFACE.startswith(self._begun):
                return
            is_2 = self._begun.startswith(PREFACE)
            self.speaker = (Http2 if is_2 else Http1)(self._wire, self._record, self._upstream.journal)
            data = self._begun
        self.speaker.received(data)

    def cut(self) -> None:
        """End it, whatever it does."""
        self._wire.cut()

    def lost(self) -> None:
        """It is over."""
        if self.speaker is not None:
            self.speaker.lost()
        else:
            self._upstream.journal.closed(self._record)
        self._upstream.forget(self)


@final
class Upstream:
    """A server on a thread of its own. Everything public may be called from the test's thread."""

    def __init__(self, *, tcp_port: int = 0, tls_port: int = 0, unix_path: str = "", host: str = "127.0.0.1") -> None:
        """Ports of 0 are chosen by the kernel; an empty path is made up."""
        self.journal = Journal()
        self.accept = Accept.SERVE
        self.alpn: tuple[str, ...] = ("h2", "http/1.1")
        self._host = host
        self._directory = Path(tempfile.mkdtemp(prefix="upstream-"))
        self.unix_path = unix_path or str(self._directory / "upstream.sock")
        self._ports = tcp_port, tls_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._wires: set[_Unspoken] = set()
        self._certificate = make_certificate()
        self._is_started = threading.Event()
        self.tcp_port = self.tls_port = 0

    # ---- its life

    def __enter__(self) -> Upstream:
        """Listen."""
        self._thread.start()
        assert self._is_started.wait(10), "the upstream does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything, and wait for the thread's end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.run_until_complete(self._listen())
            self._is_started.set()
            loop.run_forever()
            loop.run_until_complete(self._end())
        finally:
            loop.close()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        tcp_port, tls_port = self._ports
        context = server_context(self._certificate, self.alpn)
        tcp = await loop.create_server(lambda: self._wire("tcp"), self._host, tcp_port, backlog=LISTEN_BACKLOG)
        unix = await loop.create_unix_server(lambda: self._wire("unix"), self.unix_path, backlog=LISTEN_BACKLOG)
        tls = await loop.create_server(
            lambda: self._wire("tls"), self._host, tls_port, ssl=context, backlog=LISTEN_BACKLOG
        )
        self._servers = [tcp, unix, tls]
        self.tcp_port = tcp.sockets[0].getsockname()[1]
        self.tls_port = tls.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        for unspoken in list(self._wires):
            unspoken.cut()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    # ---- connections, on its own thread

    def _wire(self, kind: Literal["tcp", "unix", "tls"]) -> Wire:
        def begin(wire: Wire) -> Speaker:
            record = self.journal.connection(kind)
            unspoken = _Unspoken(wire, record, self, is_silent=self.accept is Accept.SILENT)
            self._wires.add(unspoken)
            if self.accept is Accept.CLOSE:
                wire.close()
            elif self.accept is Accept.RESET:
                wire.reset()
            return unspoken

        return Wire(begin)

    def forget(self, unspoken: _Unspoken) -> None:
        """A connection is over."""
        self._wires.discard(unspoken)

    # ---- addresses

    @property
    def base(self) -> str:
        """By TCP."""
        return f"http://{self._host}:{self.tcp_port}/v1"

    @property
    def tls_base(self) -> str:
        """By TLS."""
        return f"https://localhost:{self.tls_port}/v1"

    @property
    def ca_file(self) -> str:
        """What a client must trust for that."""
        return str(self._certificate.certificate_file)

    # ---- what it does

    def answer(self, name: str, *plans: Plan) -> None:
        """What requests for this model, or of this id, get in their order; the last of them for all that follow."""
        self.journal.answer(name, list(plans))

    def close_idle(self) -> None:
        """FIN on every connection that is kept and has nothing to answer."""
        done = threading.Event()

        def close() -> None:
            for unspoken in list(self._wires):
                if unspoken.speaker is not None:
                    unspoken.speaker.close_idle()
            done.set()

        self._loop.call_soon_threadsafe(close)
        assert done.wait(5)

    # ---- what it saw

    def requests(self, name: str = "") -> list[Request]:
        """The requests so far, in their order; those for one model or of one id, where it is given."""
        with self.journal.changed:
            return [request for request in self.journal.requests if not name or request.is_for(name)]

    def connections(self, *, used: bool = True) -> list[ConnectionRecord]:
        """The connections so far; `used`: only those that a request has come on."""
        with self.journal.changed:
            return [record for record in self.journal.connections if record.request_count or not used]

    def wait_for_requests(self, count: int, name: str = "", timeout_s: float = 30) -> list[Request]:
        """Wait until so many have come."""
        self.journal.wait(lambda: len(self.requests(name)) >= count, f"{count} requests for {name!r}", timeout_s)
        return self.requests(name)

    def wait_gone(self, request: Request, timeout_s: float = 30) -> float:
        """Wait until a request's client has left in the middle of its answer: when that was seen."""
        self.journal.wait(
            lambda: request.left_s is not None or request.ended_s is not None, "a client's going", timeout_s
        )
        assert request.left_s is not None, "the answer ended before its client left"
        return request.left_s

    def wait_sent(self, request: Request, byte_count: int, timeout_s: float = 30) -> None:
        """Wait until at least so much of an answer has been taken."""
        self.journal.wait(lambda: request.sent_bytes >= byte_count, f"{byte_count} bytes sent", timeout_s)


@contextlib.contextmanager
def full_backlog(path: str = "") -> Generator[int]:
    """A listener that accepts nobody and whose queue is full: a connect hangs. Its port, or 0 with a Unix `path`."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(path or ("127.0.0.1", 0))
    listener.listen(0)
    port = 0 if path else int(listener.getsockname()[1])
    waiting: list[socket.socket] = []
    try:
        for _ in range(16):
            client = socket.socket(listener.family)
            waiting.append(client)
            client.settimeout(0.05)
            try:
                client.connect(path or listener.getsockname())
            except (TimeoutError, BlockingIOError):
                break
        else:
            raise AssertionError("the queue does not fill")
        yield port
    finally:
        for client in (*waiting, listener):
            client.close()
