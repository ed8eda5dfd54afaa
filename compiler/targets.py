"""The content of each library: the functions to compile, and which of them are entry points."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from compiler.front_end import FrontEnd
from compiler.untyped import Dispatcher, numba
from config.library import PLANE, ROOT, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def compile_source(source: Source, *, also: Sequence[str]) -> tuple[FrontEnd, dict[str, str]]:
    """A front end that has compiled everything, and the exported name of each entry point by LLVM's name."""
    front_end = FrontEnd()
    entries: Sequence[Any]
    if source is PLANE:
        from compiler import order  # noqa: PLC0415  (imports what is marked)

        front_end.compile(order.plane_functions())
        entries = order.ENTRIES
    else:
        from compiler import mel  # noqa: PLC0415

        front_end.compile(mel.mel_functions())
        entries = mel.ENTRIES
    _check_digest_covers(source)
    for name in also:
        _compile_module(front_end, name)
    front_end.note_symbols(_compiled_functions() if also else entries)
    exported = {
        symbol: f"sd_{name.rpartition('.')[2].lstrip('_')}_{number}" if also else f"sd_{name.rpartition('.')[2]}"
        for number, (name, (symbol, _, _)) in enumerate(sorted(front_end.symbols.items()))
    }
    return front_end, exported


def _compile_module(front_end: FrontEnd, name: str) -> None:
    """Compile a module's functions, all of whose arguments are integers."""
    module = importlib.import_module(name)
    for function in vars(module).values():
        if isinstance(function, Dispatcher) and function.py_func.__module__ == name:
            count = function.py_func.__code__.co_argcount
            front_end.compile([(function, (numba.types.int64,) * count)])


def _compiled_functions() -> Iterator[Any]:
    """All compiled functions of our modules."""
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in {"daemon", "backends", "tests"}:
            for value in list(vars(module).values()):
                if isinstance(value, Dispatcher) and value.py_func.__module__ == name:
                    yield value


def _check_digest_covers(source: Source) -> None:
    """Refuse to compile a function from a file outside the digest: a change of it would go unnoticed."""
    covered = set(source.files())
    for dispatcher in _compiled_functions():  # modules of tests are compiled later
        file = ROOT / dispatcher.py_func.__code__.co_filename
        assert not dispatcher.overloads or file in covered, f"{file} is compiled, but not part of the digest"
