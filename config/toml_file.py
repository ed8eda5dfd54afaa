"""Reads a configuration file: ours, or the C daemon's.

The C daemon ignored sections, so its keys are accepted in any section or none, and it wrote `socket_mode = 0660`, which
is not TOML. Both load here, because a drop-in replacement must accept the old file.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from config.schema import KEYS, SECTIONS, ConfigError, check, suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

C_KEYS = {
    "socket": "server.socket_path",
    "socket_path": "server.socket_path",
    "socket_mode": "server.socket_mode",
    "max_connections": "server.max_connections",
    "delay": "streaming.message_delay_ms",
    "message_delay_ms": "streaming.message_delay_ms",
    "pool_size": "thread_pool.pool_size",
    "metrics_port": "monitoring.metrics_port",
    "handoff_timeout_ms": "timeouts.handoff_timeout_ms",
    "write_timeout_ms": "timeouts.write_timeout_ms",
    "shutdown_timeout_s": "timeouts.shutdown_timeout_s",
    "thread_pool": "thread_pool.thread_pool",
    "sqpoll": "performance.sqpoll",
    "benchmark": "monitoring.benchmark",
}
"""The C daemon's keys, and their names here."""

# The C daemon read its file by C's rules: 0660 is octal, and 432 is decimal, the same mode. 0o660 is TOML, but is
# quoted, too: a parsed number no longer shows how it was written.
_BARE_SOCKET_MODE = re.compile(
    r"^(?P<before>[ \t]*(?:server[ \t]*\.[ \t]*)?socket_mode[ \t]*=[ \t]*)(?P<digits>(?:0o)?[0-9]+)"
    r"(?=[ \t\r]*(?:#.*)?$)",
    re.MULTILINE,
)
_MODE_MAX = 0o777
_OTHER_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass
class FileContent:
    """The content of a file."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    others: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    warnings: list[str] = field(default_factory=list[str])


def read_file(path: Path) -> FileContent:
    """Everything that the file sets, checked.

    Raises:
        ConfigError: it cannot be read, is not TOML, or contains something unknown or not permitted.
    """
    try:
        text = _bytes_of(path).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8: byte {error.start} is invalid") from error
    content = FileContent()
    text = _quote_bare_modes(text, str(path), content.warnings)
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply") from error
    _Reader(str(path), content).read(document)
    return content


def _bytes_of(path: Path) -> bytes:
    """A regular file's content. Nothing else is read: a FIFO or a device could block the daemon for ever.

    Raises ConfigError, OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = next((name for is_it, name in _OTHER_KINDS if is_it(mode)), "something else")
            raise ConfigError(f"{path}: is {what}; the configuration must be a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _quote_bare_modes(text: str, origin: str, warnings: list[str]) -> str:
    """Quote each bare octal `socket_mode` within its line, so that line numbers in a later error match the file.

    A number that C's rules make decimal is left as is, and the setting rejects it: 432 meant 0660 to the C daemon, but
    as octal digits it lets every user connect, so neither reading may be assumed. 660 is too large to be decimal.
    """

    def quoted(match: re.Match[str]) -> str:
        before = text[: match.start()]
        if before.count('"""') % 2 or before.count("'''") % 2:
            return match[0]  # a line within a multi-line string, not a key
        mode, line = match["digits"], before.count("\n") + 1
        if not mode.startswith("0") and len(mode) <= len(str(_MODE_MAX)) and int(mode) <= _MODE_MAX:
            return match[0]
        if not mode.startswith("0o"):
            warnings.append(f'{origin}: line {line}: socket_mode = {mode} is read as octal; write "{mode.zfill(4)}"')
        return f'{match["before"]}"{mode}"'

    return _BARE_SOCKET_MODE.sub(quoted, text)


class _Reader:
    """Sorts a parsed document into settings."""

    def __init__(self, origin: str, content: FileContent) -> None:
        self._origin = origin
        self._content = content
        self._written_as: dict[str, str] = {}

    def read(self, document: dict[str, Any]) -> None:
        for name, value in document.items():
            if isinstance(value, dict):
                self._read_section(name, cast("dict[str, Any]", value))
            elif name in C_KEYS:
                self._set(C_KEYS[name], value, name)
            elif name in SECTIONS or name == "backend":
                raise self._error(f"{name} is a section: write [{name}], and keys below it")
            else:
                raise self._error(f"unknown key {name}, outside any section{suggestion('', name, C_KEYS)}")

    def _read_section(self, section: str, table: dict[str, Any]) -> None:
        if section == "backend":
            self._read_backends(table)
        elif section in SECTIONS:
            for name, value in table.items():
                self._read_key(section, name, value)
        elif table and all(name in C_KEYS and not isinstance(value, dict) for name, value in table.items()):
            self._content.warnings.append(
                f"{self._origin}: unknown section [{section}]; its keys are read as if they had none"
            )
            for name, value in table.items():
                self._read_key(section, name, value)
        else:
            close = difflib.get_close_matches(section, [*SECTIONS, "backend"], n=1)
            end = f"; did you mean [{close[0]}]?" if close else f"; known are {', '.join(SECTIONS)}"
            inside = "".join(f" (with {name})" for name in list(table)[:1])
            raise self._error(f"unknown section [{section}]{inside}{end}")

    def _read_key(self, section: str, name: str, value: object) -> None:
        path = f"{section}.{name}"
        if path in KEYS:
            self._set(path, value, path)
        elif name in C_KEYS:
            self._set(C_KEYS[name], value, path)
        else:
            raise self._error(f"unknown key {path}{suggestion(section, name)}")

    def _read_backends(self, table: dict[str, Any]) -> None:
        for name, value in table.items():
            section = f"backend.{name}"
            if not isinstance(value, dict):
                self._read_key("backend", name, value)
            elif section in SECTIONS:
                self._read_section(section, cast("dict[str, Any]", value))
            else:
                self._read_other(name, cast("dict[str, Any]", value))

    def _read_other(self, name: str, options: dict[str, Any]) -> None:
        path, form = f"backend.{name}.class", 'class = "package.module:Class"'
        if "class" not in options:
            known = [section.removeprefix("backend.") for section in SECTIONS if section.startswith("backend.")]
            close = difflib.get_close_matches(name, known, n=1)
            end = f"; did you mean [backend.{close[0]}]?" if close else ""
            raise self._error(f"{path} is missing: a backend of your own needs {form}{end}")
        named = options["class"]
        if not isinstance(named, str) or not _CLASS.fullmatch(named):
            raise self._error(f"{path} = {named!r} is refused: permitted is a string of the form package.module:Class")
        self._content.others[name] = options

    def _set(self, path: str, value: object, written_as: str) -> None:
        checked = check(path, value, self._origin, None if written_as == path else written_as)
        if path in self._written_as:
            both = f"{self._written_as[path]} and {written_as} both set {path}"
            self._content.warnings.append(f"{self._origin}: {both}; {written_as} counts")
        self._content.values[path] = checked
        self._written_as[path] = written_as

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"{self._origin}: {message}")
