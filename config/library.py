"""Loads the machine code built from the marked sources: one shared library for the plane, one for mel frames.

A library is in a folder `built` beside its sources, with a JSON description of the same name: a digest of the sources
it was built from, its machine, and its own digest. Only a library that matches its description is loaded, so no stale,
foreign or damaged library ever runs. `compiler` writes both files.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from config import VERSION
from config.compilation import INTERPRETED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parent.parent
BUILDING = "building it, which takes half a minute"
LEVEL_VARIABLE = "STREAMING_DAEMON_CPU_LEVEL"

logger = logging.getLogger(__name__)

# The flags in /proc/cpuinfo that each level requires beyond the level before it (x86-64 psABI).
_LEVEL_FLAGS = {
    "v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    "v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
    "v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
_CPUINFO_BYTES_MAX = 8192  # covers the first processor's entry; there may be hundreds


@dataclass(frozen=True)
class Source:
    """The sources of one library, and its levels of instruction sets."""

    name: str
    folder: str
    """The folder that contains its folder `built`."""
    patterns: tuple[str, ...]
    """All files that the machine code depends on: functions, and constants compiled into them."""
    levels: tuple[str, ...]

    def files(self) -> list[Path]:
        """The sources, sorted by name."""
        return sorted({path for pattern in self.patterns for path in ROOT.glob(pattern)})

    def digest(self) -> str:
        """A digest of the current sources."""
        digest = hashlib.sha256()
        for path in self.files():
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()[:24]


PLANE = Source(
    "plane",
    "daemon",
    (
        "config/compilation.py",
        "daemon/plane/**/*.py",
        "daemon/ring/enter.py",
        "daemon/epoll/*.py",
        "daemon/loop.py",
        "daemon/control/admission/client_socket.py",
    ),
    ("v2", "v3"),
)
MEL = Source(
    "mel",
    "backends/mel",
    (
        "config/compilation.py",
        "backends/mel/batch.py",
        "backends/mel/spec.py",
        "backends/mel/transform.py",
        "backends/mel/vectors.py",
    ),
    ("v2", "v3", "v4"),
)
SOURCES = {source.name: source for source in (PLANE, MEL)}


class LibraryError(Exception):
    """A library cannot be used; the message names the file, the reason and the remedy."""


class Description(msgspec.Struct, frozen=True):
    """The description stored beside a library."""

    version: str
    machine: str
    level: str
    sources: str
    """`Source.digest` at the time of the build."""
    compiler: str
    """The versions of the compiler, and a digest of the package `compiler`."""
    sha256: str
    """The digest of the library's file."""
    entries: dict[str, tuple[str, list[str], str]]
    """Symbol, argument kinds and result kind of each entry point, by name (`Entry`)."""


@lru_cache(maxsize=1)
def cpu_level() -> str:
    """The highest level of this processor, or STREAMING_DAEMON_CPU_LEVEL; "" on machines without levels."""
    if platform.machine() != "x86_64":
        return ""
    chosen = os.environ.get(LEVEL_VARIABLE, "")
    if chosen in _LEVEL_FLAGS:
        return chosen
    with open("/proc/cpuinfo", "rb") as cpuinfo:
        text = cpuinfo.read(_CPUINFO_BYTES_MAX).decode(errors="replace")
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    best = ""
    for level, needed in _LEVEL_FLAGS.items():
        if not needed <= flags:
            break
        best = level
    return best


def level_of(source: Source) -> str:
    """The level of the library that this processor loads."""
    level = cpu_level()
    fitting = [candidate for candidate in source.levels if candidate <= level]
    return fitting[-1] if fitting else source.levels[0] if level else ""


def path_of(source: Source, level: str | None = None, machine: str | None = None) -> Path:
    """The path of a library."""
    parts = [source.name, machine or platform.machine(), level_of(source) if level is None else level]
    return ROOT / source.folder / "built" / f"{'-'.join(part for part in parts if part)}.so"


def is_checkout() -> bool:
    """Whether the package `compiler` is present, which only a source checkout contains."""
    return (ROOT / "compiler" / "__main__.py").is_file()


def compiler_digest() -> str:
    """A digest of the package `compiler`, if present."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "compiler").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def describe(path: Path) -> Description:
    """The description of a library, verified against its file.

    Raises:
        LibraryError: a file is missing, cannot be read, or does not match.
    """
    try:
        description = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Description)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise LibraryError(f"{error.filename} is missing") from None
    except OSError as error:
        raise LibraryError(f"{error.filename} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise LibraryError(f"{path.with_suffix('.json')} is damaged: {error}") from None
    if hashlib.sha256(content).hexdigest() != description.sha256:
        raise LibraryError(f"{path} is damaged, or from another build than its description")
    return description


def check(source: Source, path: Path | None = None) -> Description:
    """The description of the library that this process would load.

    Raises:
        LibraryError: there is no library, or it must not be used.
    """
    file = path_of(source) if path is None else path
    description = describe(file)
    if description.machine != platform.machine():
        raise LibraryError(f"{file} is for {description.machine}, but this machine is {platform.machine()}")
    if description.version != VERSION:
        raise LibraryError(f"{file} is of version {description.version}, but this is {VERSION}")
    if description.sources != source.digest():
        raise LibraryError(f"{file} was built from sources that have changed")
    if is_checkout() and not description.compiler.startswith(compiler_digest()):
        raise LibraryError(f"{file} was built by another version of the compiler package")
    return description


def fault(source: Source) -> str | None:
    """Why the library that this process would load must not be used; None if it may."""
    try:
        check(source)
    except LibraryError as error:
        return str(error)
    return None


class PlaneAssertionError(AssertionError):
    """An assertion of compiled code failed."""


class _Fault(ctypes.Structure):
    """The record of a failed assertion that an entry point leaves: text, as `compiler` wrote it."""

    _fields_ = (("text", ctypes.c_void_p), ("length", ctypes.c_int32))


_KINDS: dict[str, Any] = {
    "boolean": ctypes.c_bool,
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "record": ctypes.c_void_p,
    "uint32": ctypes.c_uint32,
    "uint64": ctypes.c_uint64,
    "uint8": ctypes.c_uint8,
}
_NONE = -2  # the status of a function that returns nothing


def _result_type(kind: str) -> Any:
    """The C type of a result; comma-separated kinds are a tuple."""
    kinds = kind.split(",")
    if len(kinds) == 1:
        return ctypes.c_void_p if kind == "none" else _KINDS[kind]
    fields = [(f"field_{index}", _KINDS[part]) for index, part in enumerate(kinds)]
    return type("_Tuple", (ctypes.Structure,), {"_fields_": fields})


class Entry:
    """An entry point: takes integers, booleans and addresses of records, returns integers.

    The machine code has Numba's calling convention: int f(result *, fault **, arguments...).
    """

    def __init__(self, function: Any, arguments: Sequence[str], result: str) -> None:
        """`arguments` and `result` are kinds, as in a `Description`."""
        function.restype = ctypes.c_int32
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, *(_KINDS[kind] for kind in arguments))
        self._function = function
        self._result_type = _result_type(result)
        self._is_tuple = "," in result

    def __call__(self, *arguments: int) -> Any:
        """Call it; raises PlaneAssertionError when an assertion fails."""
        result, fault = self._result_type(), ctypes.POINTER(_Fault)()
        status = self._function(ctypes.byref(result), ctypes.byref(fault), *arguments)
        if status == 0:
            if self._is_tuple:
                return tuple(getattr(result, name) for name, _ in result._fields_)
            return result.value
        if status == _NONE:
            return None
        raise _error(fault)

    def for_one_thread(self) -> Callable[..., int]:
        """The same for a result that is one number, in a third of the time: memory for the call is made only once."""
        function, result, fault = self._function, self._result_type(), ctypes.POINTER(_Fault)()
        result_address, fault_address = ctypes.byref(result), ctypes.byref(fault)

        def call(*arguments: int) -> int:
            if function(result_address, fault_address, *arguments) != 0:
                raise _error(fault)
            return int(result.value)

        return call


def _error(fault: Any) -> Exception:
    """The exception raised by compiled code."""
    if not fault:
        return RuntimeError("compiled code failed without a reason")
    text = ctypes.string_at(fault.contents.text, fault.contents.length).decode()
    kind, message, function, place = (*text.split("\0"), "", "", "")[:4]
    known: dict[str, Callable[[str], Exception]] = {"IndexError": IndexError, "ZeroDivisionError": ZeroDivisionError}
    return known.get(kind, PlaneAssertionError)(f"{message or 'no message'} ({function}, {place})")


class Library:
    """A loaded library that matches its description."""

    def __init__(self, path: Path, description: Description) -> None:
        """Raises LibraryError when the dynamic loader rejects the file."""
        self.path = path
        self.description = description
        try:
            self._unlocked, self._locked = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        except OSError as error:
            raise LibraryError(f"{path} cannot be loaded: {error}") from None

    def entry(self, name: str, *, holds_gil: bool = False) -> Entry:
        """An entry point by name. `holds_gil` is for calls so short that releasing the GIL would cost more."""
        symbol, arguments, result = self.description.entries[name]
        function = (self._locked if holds_gil else self._unlocked)[symbol]
        return Entry(function, arguments, result)


_loaded: dict[str, Library] = {}


def load(source: Source) -> Library:
    """This machine's library, loaded once; in a checkout, built first when missing or stale.

    Raises:
        LibraryError: it cannot be used or built; the message names the remedy.
    """
    library = _loaded.get(source.name)
    if library is None:
        try:
            description = check(source)
        except LibraryError as error:
            if not is_checkout():
                raise LibraryError(f"{error}: install the wheel of streaming-daemon again") from None
            logger.info("%s: %s", error, BUILDING)
            description = _build(source)
        library = _loaded[source.name] = Library(path_of(source), description)
    return library


def build_command(source: Source) -> list[str]:
    """The command that builds a library in a child process: a compiler would leave a quarter of a gigabyte behind."""
    return [sys.executable, "-m", "compiler", source.name]


def build_error(source: Source, output: bytes) -> LibraryError:
    """The error for a failed build, with its last output."""
    reason = output.decode(errors="replace").strip().removeprefix("error: ")
    return LibraryError(f"the library {source.name} cannot be built: {reason}")


def _build(source: Source) -> Description:
    done = subprocess.run(build_command(source), cwd=ROOT, capture_output=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise build_error(source, done.stderr)
    return check(source)


def native(source: Source, name: str, *, is_short: bool = False) -> Callable[..., Any]:
    """The compiled form of an entry point, by the full name of its Python function, which is not imported.

    `is_short` is for what one thread calls often, for a microsecond: it keeps the GIL. When code is interpreted (in
    tests), the result is the Python function itself.

    Raises:
        LibraryError: the library must not be used; the message names the remedy.
    """
    if INTERPRETED:
        module, _, function = name.rpartition(".")
        return cast("Callable[..., Any]", getattr(import_module(module), function))
    entry = load(source).entry(name, holds_gil=is_short)
    return entry.for_one_thread() if is_short else entry
