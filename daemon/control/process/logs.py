"""Log lines on stderr, as text or JSON; the level can change while the daemon runs.

Fields passed as `extra` become `key=value` at the end of a text line, or members of the JSON object.
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
# Lines may contain client input, which must not start a new line or move a terminal's cursor.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES.update({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in vars(record).items() if name not in _STANDARD)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _shown(value: object) -> str:
    """A value in a text line, quoted if it would otherwise be ambiguous."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value ...`; a traceback follows on indented lines."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message contains."""
        words = [record.getMessage(), *(f"{name}={_shown(value)}" for name, value in _extras(record))]
        line = f"{_timestamp(record)} {record.levelname} {record.name}: {' '.join(words).translate(_ESCAPES)}"
        if record.exc_info:
            # An exception may quote client input: indented, it cannot pass for a log line.
            traceback = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n  {part.translate(_ESCAPES)}" for part in traceback)
        return line


class JSONFormatter(logging.Formatter):
    """One JSON object per line, with the traceback as a member."""

    def format(self, record: logging.LogRecord) -> str:
        """One line: JSON escapes line breaks."""
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
    """A class of its own, so that `configure` replaces only handlers that it installed."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)


def configure(level: str, log_format: str) -> None:
    """Set level and format of all log lines, at start and on a reload; replaces earlier handlers of ours."""
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
    # Numba and asyncio log details that are of no use to operators.
    for name in ("numba", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def flush() -> None:
    """Write buffered lines, before an exit that skips the interpreter's handlers."""
    for handler in logging.getLogger().handlers:
        handler.flush()
