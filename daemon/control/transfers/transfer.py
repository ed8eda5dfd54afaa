"""One attempt as libcurl makes it: its response is examined here, and buffered until the plane takes it.

libcurl calls `request_begins`, `take_head` and `take_body` while the thread is inside it; they touch this transfer and
the lists it was given, and never call libcurl, which forbids calls from callbacks. Returning 0 bytes aborts the
transfer, with the reason in `failure`.
"""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING

from backends.relay import Failure, FailureKind
from daemon.plane.messages import RAW_CREDIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.relay import Attempt
    from daemon.control.transfers.libcurl import Easy

HEAD_BYTES_MAX = 64 * 1024
STATUS_BODY_BYTES_MAX = 64 * 1024
STATUS_BODY_TIMEOUT_S = 5.0
# How much may be buffered here, for lack of credit or of room in the command pipe, before libcurl is paused; one of its
# pieces (at most 16 KiB) may be added on top.
HELD_BYTES_MAX = RAW_CREDIT_BYTES
LINGER_S = 1.0
LINGER_BYTES_MAX = 64 * 1024

_EVENT_STREAM = "text/event-stream"
_ABORT = 0  # fewer bytes than were offered: libcurl ends the transfer


class Phase(enum.IntEnum):
    """The state of a transfer."""

    CONNECTING = 0
    HEAD = 1  # sending the request, or waiting for the response's head
    STATUS_BODY = 2  # the response is not 2xx: collect its body
    STREAMING = 3
    LINGERING = 4  # the rest is discarded, but reading to its end lets the connection be reused
    OVER = 5


_STREAMING = Phase.STREAMING  # an attribute access on an enumeration costs as much as the rest of `take_body`


class Deadlines:
    """Transfers with a deadline. There are few changes per stream, so a scan is fast enough."""

    __slots__ = ("_transfers", "next_s")

    _SCAN_INTERVAL_S = 0.01  # at least; otherwise each cleared deadline would cause a scan

    def __init__(self) -> None:
        self._transfers: dict[Transfer, None] = {}
        self.next_s = float("inf")  # when to call `passed`; it may then return nothing

    def set(self, transfer: Transfer, deadline_s: float) -> None:
        """The transfer must make progress by then."""
        transfer.deadline_s = deadline_s
        self._transfers[transfer] = None
        self.next_s = min(self.next_s, deadline_s)

    def clear(self, transfer: Transfer) -> None:
        """It has."""
        self._transfers.pop(transfer, None)

    def passed(self, now_s: float) -> list[Transfer]:
        """Remove and return the transfers whose deadline has passed."""
        late = [transfer for transfer in self._transfers if transfer.deadline_s <= now_s]
        for transfer in late:
            del self._transfers[transfer]
        earliest_s = min((transfer.deadline_s for transfer in self._transfers), default=float("inf"))
        self.next_s = max(earliest_s, now_s + self._SCAN_INTERVAL_S)
        return late


class OriginFacts:
    """What transfers have learnt about their origin, for later transfers."""

    __slots__ = ("counts_bodies", "has_answered")

    def __init__(self) -> None:
        # It streams with a Content-Length: bytes after it would begin the next response, so connections serve once.
        self.counts_bodies = False
        self.has_answered = False  # it has answered, so it speaks our version of HTTP


class Transfer:
    """One attempt. Compared by identity."""

    __slots__ = (
        "_counts_body",
        "_head_bytes",
        "_lines",
        "_status_body",
        "_touched",
        "_write_pause",
        "attempt",
        "common",
        "credit_end",
        "deadline_s",
        "deadlines",
        "easy",
        "facts",
        "failure",
        "generation",
        "has_ended",
        "headers",
        "is_complete",
        "is_paused",
        "is_start_due",
        "lingered_bytes",
        "number",
        "pending",
        "phase",
        "pushed_bytes",
        "reads",
        "slot",
        "status",
    )

    def __init__(self, slot: int, generation: int, number: int, attempt: Attempt) -> None:
        self.slot = slot
        self.generation = generation
        self.number = number
        self.attempt = attempt
        self.phase = Phase.CONNECTING
        self.deadline_s = float("inf")
        self.failure: Failure | None = None  # why a callback aborted it
        # The response.
        self.status = 0
        self.headers: dict[str, str] = {}
        self._lines: list[bytes] = []
        self._counts_body = False
        self._head_bytes = 0
        self._status_body = b""
        # Output to the plane. A transfer with pending data is in `touched`, or waits for credit.
        self.pending = b""
        self.pushed_bytes = 0
        self.credit_end = RAW_CREDIT_BYTES  # limit for `pushed_bytes`
        self.is_start_due = False
        self.is_paused = False
        self.has_ended = True  # libcurl does not hold it
        self.is_complete = False
        self.lingered_bytes = 0
        self.reads = -1  # the connection's socket, if it reads for all transfers on it

    def attach(
        self, facts: OriginFacts, easy: Easy, touched: list[Transfer], deadlines: Deadlines, write_pause: int
    ) -> None:
        """Set what it runs with; `write_pause` is the return value that makes libcurl pause."""
        self.has_ended = False
        self.facts = facts
        self.easy = easy
        self.deadlines = deadlines
        self._touched = touched
        self._write_pause = write_pause
        connect_timeout_ms = self.attempt.origin.connect_timeout_ms
        if connect_timeout_ms:
            deadlines.set(self, time.monotonic() + connect_timeout_ms / 1000)

    # ------------------------------------------------------------------------------------------- libcurl's callbacks

    def request_begins(self, *_addresses: object) -> int:
        """A connection, new or reused, is open and the request is about to be sent."""
        self.phase = Phase.HEAD
        timeout_ms = self.attempt.origin.head_timeout_ms
        if timeout_ms:
            self.deadlines.set(self, time.monotonic() + timeout_ms / 1000)
        else:
            self.deadlines.clear(self)
        return 0

    def take_head(self, line: bytes) -> int | None:
        """A header or trailer line."""
        if self.phase > Phase.HEAD:
            return None
        self._head_bytes += len(line)
        if self._head_bytes > HEAD_BYTES_MAX:
            return self._abort(FailureKind.HEAD_TOO_LARGE, "the response head is larger than 64 KiB")
        if line not in {b"\r\n", b"\n"}:
            self._lines.append(line)
            return None
        self.status, self.headers = _parsed_head(self._lines)
        is_counted = "content-length" in self.headers and "transfer-encoding" not in self.headers
        self._counts_body = is_counted and self._lines[0].startswith(b"HTTP/1")
        self._lines.clear()
        return None if 100 <= self.status < 200 else self._judge()

    def take_body(self, data: bytes) -> int | None:
        """A piece of the body without transfer framing. Called once per token: keep it lean."""
        if self.phase != _STREAMING:
            return self._take_unstreamed(data)
        pending = self.pending
        if not pending:
            self.pending = data
            self._touched.append(self)
            return None
        if len(pending) >= HELD_BYTES_MAX:
            self.is_paused = True
            return self._write_pause
        self.pending = pending + data
        return None

    def _take_unstreamed(self, data: bytes) -> int | None:
        if self.phase == Phase.LINGERING:
            self.lingered_bytes += len(data)
            return _ABORT if self.lingered_bytes > LINGER_BYTES_MAX else None
        assert self.phase == Phase.STATUS_BODY, f"body in phase {self.phase.name}"
        self._status_body += data
        if len(self._status_body) < STATUS_BODY_BYTES_MAX and not self._is_counted_out():
            return None
        self.failure = self.status_failure()
        return _ABORT

    def _is_counted_out(self) -> bool:
        """All of a body with a length has arrived. libcurl would reuse the connection, with the bytes that follow."""
        length = self.headers.get("content-length", "")
        return self._counts_body and length.isdecimal() and len(self._status_body) >= int(length)

    # ------------------------------------------------------------------------------------------------ outcome

    def status_failure(self) -> Failure:
        """The failure for a response that is not 2xx, with the body received so far."""
        body = b"" if _is_compressed(self.headers) else self._status_body[:STATUS_BODY_BYTES_MAX]
        return Failure(FailureKind.STATUS, self.status, self.headers, body, f"it responded with status {self.status}")

    def linger(self) -> None:
        """Discard the rest, but read to its end, which is near, so that the connection can be reused."""
        self.phase = Phase.LINGERING
        self.pending = b""
        self.deadlines.set(self, time.monotonic() + LINGER_S)

    def _judge(self) -> int | None:
        """The head is complete: decide whether it is a stream."""
        self.facts.has_answered = True
        self.deadlines.clear(self)
        status, headers = self.status, self.headers
        if status == 0:
            return self._abort(FailureKind.HEAD_MALFORMED, "the response head is not HTTP")
        if 300 <= status < 400:
            return self._abort(FailureKind.REDIRECT, f"it redirects (status {status}), which is not followed")
        if not 200 <= status < 300:
            self.phase = Phase.STATUS_BODY
            self.deadlines.set(self, time.monotonic() + STATUS_BODY_TIMEOUT_S)
            if self._is_counted_out():
                self.failure = self.status_failure()
                return _ABORT
            return None
        if _is_compressed(headers):
            return self._abort(FailureKind.COMPRESSED, "its response is compressed, which was not requested")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _EVENT_STREAM:
            return self._abort(FailureKind.NOT_A_STREAM, "its response is not an event stream")
        if self._counts_body:
            self.facts.counts_bodies = True
        self.phase = Phase.STREAMING
        self.is_start_due = True
        self._touched.append(self)
        return None

    def _abort(self, kind: FailureKind, detail: str) -> int:
        self.failure = Failure(kind, self.status, self.headers, detail=detail)
        return _ABORT


def _is_compressed(headers: dict[str, str]) -> bool:
    return headers.get("content-encoding", "").strip().lower() not in {"", "identity"}


def _parsed_head(lines: Iterable[bytes]) -> tuple[int, dict[str, str]]:
    """Status (0 if there is none) and headers with names in lower case; repeated headers are joined."""
    status, headers = 0, dict[str, str]()
    for line in lines:
        text = line.decode("latin-1").strip()
        name, colon, value = text.partition(":")
        if not headers and text.startswith("HTTP/"):
            code = text.split(maxsplit=2)[1:2]
            status = int(code[0]) if code and code[0].isascii() and code[0].isdecimal() else 0
        elif colon:
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return status, headers
