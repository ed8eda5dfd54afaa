"""The ledger: one JSON line for every relayed stream, however it ended, in a file that is kept within bounds.

`Ledger.write` is called on the main thread and only puts a row into a bounded queue. A thread writes. Where rows come
faster than the disk takes them, or the disk takes none, rows are lost: they are counted, and the log says so. Billing
that must not lose a row compares `dropped_count` with 0. docs/operations.md describes every field.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import signal
import stat
import threading
import time
from logging.handlers import QueueListener, RotatingFileHandler
from typing import Any, cast

import msgspec

QUEUE_ROWS_MAX = 8192  # about a second of the fastest daemon; a few MiB
CLOSE_TIMEOUT_S = 2.0
LOSSES_LOGGED_EVERY_S = 10.0
FILE_MODE = 0o640  # less what the umask takes away
# A line is bounded, because some of its texts come from clients.
LINE_BYTES_MAX = 4096
TEXT_CHARACTERS_MAX = 256

# A link at the ledger's path, which anyone who may write to its directory can make, would let us append to any file of
# ours. O_NONBLOCK: a FIFO that nobody reads must not stop the start, nor a full one the thread.
_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK

logger = logging.getLogger(__name__)


class LedgerRow(msgspec.Struct, frozen=True, gc=False):
    """What one stream used, and how it ended."""

    time: str  # when it ended: RFC 3339, UTC
    request_id: str
    user: str | int | None  # as the sender of the handoff said
    upstream: str  # the last that was asked; empty where none could be
    model_asked: str
    model_answered: str  # as the upstream named it; empty where it did not answer
    prompt_tokens: int | None
    completion_tokens: int | None
    estimated: bool  # the upstream did not say how many tokens, so they were counted here
    first_token_ms: float | None
    duration_ms: float
    bytes: int
    retries: int
    end_reason: str
    status: int  # of the answer to the client
    error: str  # a short text, without secrets


_encode = msgspec.json.Encoder().encode


def line_of(row: LedgerRow) -> bytes:
    """The row as it stands in the file: one JSON object and a line feed."""
    try:
        line = _encode(row)
    except (UnicodeEncodeError, OverflowError):  # half a surrogate pair, or a user's number that needs over 64 bits
        line = _encode(_tamed(row))
    return (line if len(line) < LINE_BYTES_MAX else _encode(_tamed(row))) + b"\n"


def _tamed(row: LedgerRow) -> LedgerRow:
    fields: dict[str, Any] = msgspec.structs.asdict(row)
    if isinstance(row.user, int):
        fields["user"] = str(row.user)
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = value[:TEXT_CHARACTERS_MAX].encode(errors="replace").decode()
    return LedgerRow(**fields)


class _Losses:
    """Rows lost on one thread: all are counted, and a log line says so at once, then at most every ten seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._unsaid_count = 0
        self._due_s = 0.0
        self._reason = ""

    def add(self, reason: str, count: int = 1) -> None:
        self.count += count
        self._unsaid_count += count
        self._reason = reason
        if time.monotonic() >= self._due_s:
            self.say()

    def say(self) -> None:
        if self._unsaid_count:
            logger.warning("rows of the ledger are lost: %s", self._reason, extra={"count": self._unsaid_count})
        self._unsaid_count = 0
        self._due_s = time.monotonic() + LOSSES_LOGGED_EVERY_S


class _RowFile(RotatingFileHandler):
    """The file. Every row looks whether the path still leads to it, as logrotate and operators move files away.

    Rows are written past the handler's own stream, whole or not at all: a stream would keep what a full disk refused,
    and half a line would spoil the next one.
    """

    def __init__(self, path: str, bytes_max: int, count_max: int) -> None:
        self.losses = _Losses()
        self.is_abandoned = False
        self._identity = (-1, -1)
        super().__init__(path, maxBytes=bytes_max, backupCount=count_max, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, _OPEN_FLAGS, FILE_MODE)
        found = os.fstat(descriptor)
        self._identity = (found.st_dev, found.st_ino)
        return open(descriptor, "a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one row, on the ledger's thread."""
        if self.is_abandoned:  # the end came while this thread hung: what was queued has been counted as lost
            self.close()
            return
        try:
            self._write(line_of(cast("LedgerRow", record.msg)))
        except Exception as error:  # noqa: BLE001  (whatever it is, the thread must live to write the next row)
            self.losses.add(error.strerror or str(error) if isinstance(error, OSError) else repr(error))

    def _write(self, line: bytes) -> None:
        if self.stream and not self._is_in_place():
            self.stream.close()
            self.stream = None  # what the base class does as well
        if not self.stream:
            self.stream = self._open()
        found = os.fstat(self.stream.fileno())
        is_regular = stat.S_ISREG(found.st_mode)
        if is_regular and self.maxBytes and found.st_size > 0 and found.st_size + len(line) > self.maxBytes:
            self.doRollover()
            found = os.fstat(self.stream.fileno())
        _write_whole(self.stream.fileno(), line, found.st_size if is_regular else None)

    def _is_in_place(self) -> bool:
        try:
            found = os.lstat(self.baseFilename)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity


def _write_whole(descriptor: int, line: bytes, size_bytes: int | None) -> None:
    """Append all of the line, or take back what of it was written. `size_bytes` is None for what is no regular file."""
    written_bytes = 0
    try:
        while written_bytes < len(line):
            written_bytes += os.write(descriptor, line[written_bytes:])
    except OSError:
        # Not where someone else (logrotate's copytruncate) has changed the file meanwhile.
        if written_bytes and size_bytes is not None and os.fstat(descriptor).st_size == size_bytes + written_bytes:
            os.ftruncate(descriptor, size_bytes)
        raise


class _Listener(QueueListener):
    """The thread. It takes rows in order, so when it meets the end mark all of them have been written.

    It closes the file itself: nobody else can know when it is done with it.
    """

    def __init__(self, rows: queue.Queue[Any], file: _RowFile) -> None:
        super().__init__(rows, file)
        self._file = file
        self.has_finished = threading.Event()

    def dequeue(self, block: bool) -> logging.LogRecord:
        record: Any = super().dequeue(block)
        if record is None:  # the end mark
            self._file.close()
            self.has_finished.set()
        return cast("logging.LogRecord", record)


class Ledger:
    """Where rows go. With an empty path there is no file and no thread, and `write` does nothing."""

    def __init__(self, path: str, bytes_max: int, count_max: int) -> None:
        """Open the file at `path`, and begin a new one, keeping `count_max` older ones, before it exceeds `bytes_max`.

        0 bytes: the file is never rotated here; logrotate does it. Raises OSError where that cannot work.
        """
        assert bytes_max >= 0
        assert count_max > 0 or bytes_max == 0, "a file that is rotated without a trace is no ledger"
        self._losses = _Losses()
        self._is_closed = False
        self._file: _RowFile | None = None
        if not path:
            return
        if bytes_max and not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK | os.X_OK):
            # Found out at the first rotation, it would cost rows.
            raise PermissionError(
                f"the directory of the ledger {path!r} is missing or not writable, so it cannot rotate"
            )
        self._file = _RowFile(path, bytes_max, count_max)
        self._rows: queue.Queue[Any] = queue.Queue(QUEUE_ROWS_MAX)
        self._listener = _Listener(self._rows, self._file)
        # The thread inherits the mask: signals are the main thread's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._listener.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def dropped_count(self) -> int:
        """Rows that are in no file: the queue was full, or they could not be written."""
        return self._losses.count + (self._file.losses.count if self._file is not None else 0)

    @property
    def is_on(self) -> bool:
        """Whether rows go into a file."""
        return self._file is not None

    def write(self, row: LedgerRow) -> None:
        """Have the row written soon. Never blocks; main thread."""
        if self._file is None:
            return
        if self._is_closed:
            self._losses.add("the ledger is closed")
            return
        try:
            self._rows.put_nowait(logging.makeLogRecord({"msg": row}))
        except queue.Full:
            self._losses.add("the disk does not keep up")

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Write what is queued, within a bounded time; whether all of it could be. Calling it again does nothing."""
        if self._file is None or self._is_closed:
            return True
        self._is_closed = True
        deadline_s = time.monotonic() + timeout_s
        has_finished, unwritten_count = False, self._rows.qsize()
        try:
            self._rows.put(None, timeout=timeout_s)
            has_finished = self._listener.has_finished.wait(max(0.0, deadline_s - time.monotonic()))
            unwritten_count = self._rows.qsize() - 1  # but for the end mark
        except queue.Full:
            pass  # the thread hangs in a write: what is queued is lost, as it is when it does not finish
        if has_finished:
            self._file.losses.say()
        else:
            self._file.is_abandoned = True
            self._losses.add("the disk did not take them before the end", unwritten_count)
        self._losses.say()
        return has_finished
