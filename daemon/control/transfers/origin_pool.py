"""All transfers to one origin: libcurl's multi handle, the shared connections, and each transfer's options.

Used by the transfers' thread only. Each origin has its own multi handle, because libcurl limits connections per handle.
"""

from __future__ import annotations

import logging
import math
import os
import select
import time
from typing import TYPE_CHECKING, NamedTuple

from daemon.control.transfers.libcurl import system_ca_file
from daemon.control.transfers.transfer import OriginFacts

if TYPE_CHECKING:
    from backends.relay import Attempt, Origin
    from daemon.control.transfers.libcurl import Easy, LibCurl, Multi
    from daemon.control.transfers.transfer import Transfer

logger = logging.getLogger(__name__)

STREAMS_PER_CONNECTION_MAX = 100  # per HTTP/2 connection; a server may allow fewer. One lost packet delays all of them
RECEIVE_BYTES = 16 * 1024  # one TLS record; libcurl delivers no larger piece
# How often at least to run all transfers that share a connection, whatever one of them reads on behalf of all.
ALL_INTERVAL_S = 0.1

_NEVER_S = float("inf")


class Reader(NamedTuple):
    """The transfer that reads a connection shared by several."""

    transfer: Transfer
    all_due_s: float  # when to run all of them again


class Pool:
    """One origin's."""

    def __init__(
        self, libcurl: LibCurl, origin: Origin, epoll: select.epoll, sockets: dict[int, Pool], touched: list[Transfer]
    ) -> None:
        """Sockets are added to `epoll` and to `sockets`; transfers that receive data are added to `touched`."""
        self._libcurl = libcurl
        self.origin = origin
        self.write_pause = libcurl.WRITEFUNC_PAUSE
        self.facts = OriginFacts()
        self.transfers: dict[Easy, Transfer] = {}
        self.ended: list[tuple[Transfer, int, str]] = []  # with CURLcode and message
        self.due_s = _NEVER_S  # when libcurl must be called next
        # When to close while there is no transfer: libcurl checks idle connections only when a transfer begins.
        self.idle_until_s = self._idle_until_s()
        self.trouble: OSError | None = None  # raised in a callback, which cannot propagate it
        self._epoll = epoll
        self._sockets = sockets
        self._touched = touched
        self._readers: dict[int, Reader] = {}  # by socket; HTTP/2 only
        self._spare: list[Easy] = []
        self._epoll_events = {
            libcurl.POLL_NONE: 0,
            libcurl.POLL_IN: select.EPOLLIN,
            libcurl.POLL_OUT: select.EPOLLOUT,
            libcurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
        }
        # By the low bits of an epoll event. Hang-ups and errors are detected by reading.
        self._selected = [
            (libcurl.CSELECT_IN if events & ~select.EPOLLOUT else 0)
            | (libcurl.CSELECT_OUT if events & select.EPOLLOUT else 0)
            for events in range(32)
        ]
        self._multi: Multi = libcurl.CurlMulti()
        self._multi.setopt(libcurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(libcurl.M_TIMERFUNCTION, self._wake_in)
        self._multi.setopt(libcurl.M_PIPELINING, libcurl.PIPE_MULTIPLEX)
        self._multi.setopt(libcurl.M_MAX_CONCURRENT_STREAMS, STREAMS_PER_CONNECTION_MAX)
        self._socket_action = self._multi.socket_action

    # ------------------------------------------------------------------------------------------------ transfers

    def handle(self) -> Easy:
        """An easy handle without options."""
        return self._spare.pop() if self._spare else self._libcurl.Curl()

    def add(self, transfer: Transfer) -> None:
        """Add a transfer; libcurl does nothing yet. Raises pycurl.error or ValueError for an impossible request."""
        easy = transfer.easy
        self._set_options(easy, transfer)
        self._multi.add_handle(easy)
        self.transfers[easy] = transfer
        self._set_connection_count()
        self.idle_until_s = _NEVER_S

    def remove(self, transfer: Transfer) -> None:
        """Remove it in any state: closes its HTTP/1.1 connection or resets its HTTP/2 stream, unless it is complete."""
        easy = transfer.easy
        if self.transfers.pop(easy, None) is None:
            return
        self._multi.remove_handle(easy)
        easy.reset()
        reader = self._readers.get(transfer.reads)
        if reader is not None and reader.transfer is transfer:
            del self._readers[transfer.reads]
        self._set_connection_count()
        if len(self._spare) < self.origin.idle_connections_max:
            self._spare.append(easy)
        else:
            easy.close()
        if not self.transfers:
            self.idle_until_s = self._idle_until_s()

    def act(self, fd: int, events: int, now_s: float) -> None:
        """Handle an event of a socket. Transfers that end are added to `ended`."""
        taken_count = len(self._touched)
        reader = self._readers.get(fd)
        if reader is not None and events == select.EPOLLIN and now_s < reader.all_due_s:
            self._read_alone(reader.transfer)
            if len(self._touched) > taken_count:
                return
        self._run(fd, self._selected[events & 31])
        if self.origin.http2 and len(self._touched) > taken_count:
            transfer = self._touched[-1]
            transfer.reads = fd
            self._readers[fd] = Reader(transfer, now_s + ALL_INTERVAL_S)

    def _read_alone(self, transfer: Transfer) -> None:
        """Have one transfer read for all that share its connection.

        On a socket event libcurl runs every transfer of the connection, and each tries to read: one of a hundred
        finds data, for all of them. A transfer that continues "after a pause" runs alone, as do those completed by what
        it read. For whatever this misses, `act` runs all of them from time to time.
        """
        if transfer.has_ended or transfer.is_paused:
            return
        try:
            transfer.easy.pause(self._libcurl.PAUSE_CONT)
        except self._libcurl.error as error:
            logger.debug("a transfer cannot read for others: %s", error)
            return
        self._run(self._libcurl.SOCKET_TIMEOUT, 0)

    def _run(self, fd: int, selected: int) -> None:
        _, running_count = self._socket_action(fd, selected)
        if running_count != len(self.transfers):
            self._collect()

    def act_by_time(self) -> None:
        """The time set by libcurl has come."""
        self.due_s = _NEVER_S
        self._socket_action(self._libcurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def resume(self, transfer: Transfer) -> None:
        """Continue after `take_body` paused."""
        transfer.is_paused = False
        transfer.easy.pause(self._libcurl.PAUSE_CONT)

    def system_error(self, transfer: Transfer) -> int:
        """The last errno of its connection attempt."""
        try:
            os.close(os.dup(self._epoll.fileno()))  # libcurl does not report that it got no descriptor
        except OSError as error:
            return error.errno or 0
        return int(transfer.easy.getinfo(self._libcurl.OS_ERRNO))

    def close(self) -> None:
        """End all transfers and close all connections."""
        for easy in list(self.transfers):
            self._multi.remove_handle(easy)
            easy.close()
        self.transfers.clear()
        for easy in self._spare:
            easy.close()
        self._multi.close()
        for fd in [fd for fd, pool in self._sockets.items() if pool is self]:
            self._forget(fd)

    def _idle_until_s(self) -> float:
        return time.monotonic() + self.origin.idle_timeout_ms / 1000

    def _collect(self) -> None:
        queued = 1
        while queued:
            queued, succeeded, failed = self._multi.info_read()
            self.ended += [(self.transfers[easy], 0, "") for easy in succeeded if easy in self.transfers]
            self.ended += [(self.transfers[easy], code, why) for easy, code, why in failed if easy in self.transfers]

    def _set_connection_count(self) -> None:
        """Let at most `idle_connections_max` be idle after the next transfer ends.

        libcurl limits all connections, including those in use, and closes an excess one when another becomes idle. So
        the limit may be exceeded for a while after many transfers end at once.
        """
        connection_count_max = len(self.transfers) - 1 + self.origin.idle_connections_max
        self._multi.setopt(self._libcurl.M_MAXCONNECTS, max(1, connection_count_max))

    # --------------------------------------------------------------------------------------------- libcurl's callbacks

    def _watch(self, what: int, fd: int, _multi: Multi, _assigned: object) -> None:
        """Socket callback of libcurl: what to wait for."""
        try:
            events = self._epoll_events.get(what)
            if events is None:
                self._forget(fd)
            elif fd in self._sockets:
                self._epoll.modify(fd, events)
            else:
                self._epoll.register(fd, events)
                self._sockets[fd] = self
        except OSError as error:
            self.trouble = error

    def _wake_in(self, timeout_ms: int) -> None:
        self.due_s = time.monotonic() + timeout_ms / 1000 if timeout_ms >= 0 else _NEVER_S

    def _forget(self, fd: int) -> None:
        if self._sockets.get(fd) is not self:
            return
        del self._sockets[fd]
        self._readers.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except OSError as error:  # already closed, which removed it from the epoll set
            self._epoll_error = error

    # ----------------------------------------------------------------------------------------------------- options

    def _set_options(self, easy: Easy, transfer: Transfer) -> None:
        curl, origin, attempt = self._libcurl, self.origin, transfer.attempt
        host = f"[{origin.host.replace('%', '%25')}]" if ":" in origin.host else origin.host
        options: list[tuple[int, object]] = [
            (curl.URL, f"{origin.scheme}://{host}:{origin.port}{attempt.path}"),
            (curl.PATH_AS_IS, 1),
            (curl.POST, 1),
            (curl.POSTFIELDS, attempt.body),
            (curl.HTTPHEADER, header_lines(attempt)),
            (curl.HTTP_VERSION, self._http_version()),
            (curl.PIPEWAIT, int(origin.http2)),
            # A limit of zero idle connections applies to HTTP/1.1 only: with HTTP/2 it would prevent sharing.
            (
                curl.FORBID_REUSE,
                int(self.facts.counts_bodies or (not origin.http2 and not origin.idle_connections_max)),
            ),
            (curl.FRESH_CONNECT, int(self.facts.counts_bodies)),
            (curl.PREREQFUNCTION, transfer.request_begins),
            (curl.HEADERFUNCTION, transfer.take_head),
            (curl.WRITEFUNCTION, transfer.take_body),
            (curl.CONNECTTIMEOUT_MS, origin.connect_timeout_ms),
            (curl.MAXAGE_CONN, max(1, math.ceil(origin.idle_timeout_ms / 1000))),
            # libcurl sets an HTTP/2 stream's window: while paused, up to 10 MiB may be in flight, usually 1 MB
            # (measured), then nothing. A speed limit would reduce it, but libcurl enforces that by pauses of a second.
            (curl.BUFFERSIZE, RECEIVE_BYTES),
            (curl.PROTOCOLS, curl.PROTO_HTTPS if origin.scheme == "https" else curl.PROTO_HTTP),
            (curl.FOLLOWLOCATION, 0),
            (curl.HTTP_CONTENT_DECODING, 0),
            (curl.PROXY, ""),
            (curl.NOPROXY, "*"),
            (curl.NETRC, curl.NETRC_IGNORED),
            (curl.NOSIGNAL, 1),
            (curl.TCP_NODELAY, 1),
            (curl.TCP_KEEPALIVE, 1),
        ]
        if origin.socket_path:
            options.append((curl.UNIX_SOCKET_PATH, origin.socket_path))
        if origin.scheme == "https":
            options += self._tls_options()
        for option, value in options:
            easy.setopt(option, value)

    def _http_version(self) -> int:
        curl, origin = self._libcurl, self.origin
        if not origin.http2:
            return curl.CURL_HTTP_VERSION_1_1
        return curl.CURL_HTTP_VERSION_2TLS if origin.scheme == "https" else curl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE

    def _tls_options(self) -> list[tuple[int, object]]:
        curl, origin = self._libcurl, self.origin
        options: list[tuple[int, object]] = [(curl.SSLVERSION, curl.SSLVERSION_TLSv1_2)]  # the lowest permitted
        if origin.insecure_ssl:
            return [*options, (curl.SSL_VERIFYPEER, 0), (curl.SSL_VERIFYHOST, 0)]
        ca_file = origin.ca_file or system_ca_file()
        if ca_file:
            options.append((curl.CAINFO, ca_file))
        return [*options, (curl.SSL_VERIFYPEER, 1), (curl.SSL_VERIFYHOST, 2)]


def header_lines(attempt: Attempt) -> list[str]:
    """The request's headers as libcurl takes them, without those that it would add itself.

    Raises:
        ValueError: a line end in a header would begin another header, or end the head.
    """
    lines: list[str] = []
    for name, value in attempt.headers:
        if any(character in "\r\n\0" for character in name + value):
            raise ValueError(f"the header {name!r} contains a line end")
        lines.append(f"{name}: {value}" if value else f"{name};")
    given = {name.lower() for name, _ in attempt.headers}
    # An empty value removes libcurl's own header. `Expect` would make it wait a second before a large body.
    return lines + [
        f"{name}:" for name in ("Accept", "Content-Type", "Expect", "User-Agent") if name.lower() not in given
    ]
