"""Log lines on stderr, as text or as JSON, with a level that can change while the daemon runs.

What a caller passes as `extra` becomes `key=value` at the end of a text line, or a member of the JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# What a client sent may stand in a line: it must not be able to begin another one, or to move a terminal's cursor.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES.update({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in vars(record).items() if name not in _STANDARD)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _shown(value: object) -> str:
    """A value in a text line: quoted where it would otherwise not end where it ends."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value ...`; a traceback follows on lines of its own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        words = [record.getMessage(), *(f"{name}={_shown(value)}" for name, value in _extras(record))]
        line = f"{_timestamp(record)} {record.levelname} {record.name}: {' '.join(words).translate(_ESCAPES)}"
        if record.exc_info:
            # An exception may quote what a client sent: indented, it cannot pass for a line of ours.
            traceback = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n  {part.translate(_ESCAPES)}" for part in traceback)
        return line


class JSONFormatter(logging.Formatter):
    """One JSON object per line; the traceback is a member of it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line: json escapes whatever could end it."""
        fields: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update(_extras(record))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # not subscriptable before Python 3.11


class _StandardError(_StreamHandler):
    """A class of its own, so that `configure` finds, and replaces, only what it made."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)


def configure(level: str, log_format: str) -> None:
    """Set level and format of all log lines, at start and again on a reload; earlier handlers of ours are replaced."""
    assert level in LEVELS
    assert log_format in FORMATS
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _StandardError)]:
        root.removeHandler(handler)
    handler = _StandardError()
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    # Numba and asyncio tell their own developers more than an operator wants to read.
    for name in ("numba", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def flush() -> None:
    """Write out what is buffered, before an exit that runs no handlers."""
    for handler in logging.getLogger().handlers:
        handler.flush()
