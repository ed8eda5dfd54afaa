"""Builds a library: the front end once, the back end for each level, and the description beside each file."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compiler.errors import BuildError
from config import VERSION, compilation
from config.library import Description, LibraryError, Source, check, compiler_digest, level_of, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from compiler.front_end import FrontEnd

WIDE_VECTOR_BITS, VECTOR_BITS = 512, 256


@dataclass
class Order:
    """What to build."""

    source: Source
    levels: Sequence[str] = ()
    """None: this machine's."""
    machine: str = field(default_factory=platform.machine)
    folder: Path | None = None
    """The output folder, if not beside the sources."""
    also: Sequence[str] = ()
    """For tests: further modules to compile, with every function that C can call as an entry point."""
    force: bool = False

    def path(self, level: str) -> Path:
        """The library's file."""
        path = path_of(self.source, level, self.machine)
        return path if self.folder is None else self.folder / path.name

    def all_levels(self) -> list[str]:
        """The levels to build; by default this machine's."""
        return list(self.levels) or [level_of(self.source)]


def is_current(order: Order, level: str) -> bool:
    """Whether a library exists that was built from the current sources."""
    try:
        description = check(order.source, order.path(level))
    except LibraryError:
        return False
    return description.level == level and description.compiler == _compiler()


def _compiler() -> str:
    checked = "bounds checked" if os.environ.get("NUMBA_BOUNDSCHECK", "0") == "1" else ""
    versions = [f"{name} {version(name)}" for name in ("numba", "llvmlite")]
    return ", ".join([compiler_digest(), *versions, *([checked] if checked else [])])


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Serialise processes that build the same library, such as two daemons that start at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(order: Order, say: Callable[[str], None]) -> bool:
    """Build what is missing or stale; returns whether that succeeded. A child process that fails prints the error."""
    levels = order.all_levels()
    with _locked(order.path(levels[0])):
        missing = [level for level in levels if order.force or not is_current(order, level)]
        if not missing:
            say(f"{order.source.name}: nothing to do")
            return True
        return all(
            in_a_child(functools.partial(_build_levels, order, group, say)) for group in _groups(order.source, missing)
        )


def _groups(source: Source, levels: Sequence[str]) -> list[list[str]]:
    """Groups of levels that can share a front end: vectorised code depends on the vector width."""
    if source.name != "mel":
        return [list(levels)]
    wide = [level for level in levels if level == "v4"]
    narrow = [level for level in levels if level != "v4"]
    return [group for group in (wide, narrow) if group]


def in_a_child(work: Callable[[], None]) -> bool:
    """Run this in a process of its own, because replaced parts of Numba stay replaced; whether it succeeded."""
    child = os.fork()
    if child != 0:
        _, status = os.waitpid(child, 0)
        return status == 0
    status = 1
    try:
        work()
        status = 0
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception:  # noqa: BLE001  (a child must not return into its parent's code)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _build_levels(order: Order, levels: Sequence[str], say: Callable[[str], None]) -> None:
    began_s = time.monotonic()
    sources = order.source.digest()
    platform.machine = lambda: order.machine  # system call numbers and layouts are the target's
    from compiler import back_end, targets  # noqa: PLC0415  (imports Numba, which takes half a second)
    from compiler.toolchain import NumbaToolchain  # noqa: PLC0415

    compilation.use(NumbaToolchain(WIDE_VECTOR_BITS if levels == ["v4"] else VECTOR_BITS))
    front_end, symbols = targets.compile_source(order.source, also=order.also)
    module = front_end.module()
    back_end.export(module, symbols)
    bitcode = module.as_bitcode()
    say(f"{order.source.name}: compiled in {time.monotonic() - began_s:.1f} s")
    entries = _entries(front_end, symbols)
    for level in levels:
        began_s = time.monotonic()
        target = back_end.Target(order.machine, level)
        path = order.path(level)
        partial = path.with_suffix(f".{os.getpid()}.so")
        back_end.link(back_end.emit(bitcode, target), partial, target, sorted(symbols.values()))
        content = partial.read_bytes()
        description = Description(
            version=VERSION,
            machine=order.machine,
            level=level,
            sources=sources,
            compiler=_compiler(),
            sha256=hashlib.sha256(content).hexdigest(),
            entries=entries,
        )
        # Write the description last: until then the old one does not match the new file, and neither is loaded.
        partial.replace(path)
        path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(description)))
        say(f"{path}: optimised and linked in {time.monotonic() - began_s:.1f} s, {len(content) // 1000} KB")


def _entries(front_end: FrontEnd, symbols: dict[str, str]) -> dict[str, Any]:
    return {
        name: (symbols[symbol], arguments, result)
        for name, (symbol, arguments, result) in front_end.symbols.items()
        if symbol in symbols
    }
