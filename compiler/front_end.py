"""Numba's front end only: marked functions in, LLVM's intermediate representation out.

Unmodified, Numba compiles each function to machine code on its own, with wrappers for calls from Python. Python calls
two of 460 functions, so four fifths of that work would be wasted. Here each function's module is only kept as text; all
are combined into one module, which `compiler.back_end` optimises once.

Numba has no interface for this: `_replace_parts` lists what is replaced. Numba is pinned, and a broken build fails when
linking or in the tests of the plane, never at run time.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compiler import quicker
from compiler.untyped import Context, PythonApi, cgutils, codegen, cpu_target, llvm, numba, types
from config.library import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

_texts: list[str] = []


class _KeptAsText(codegen.JITCodeLibrary):  # type: ignore[misc]  # numba has no types here
    """A function's LLVM code, not compiled further."""

    def __init__(self, codegen_: Any, name: str) -> None:
        codegen.CodeLibrary.__init__(self, codegen_, name)
        self._is_runtime = name == "nrt"  # Numba's own allocator, which nothing here calls

    def add_linking_library(self, library: Any) -> None:
        """Callees are kept separately."""

    def add_ir_module(self, module: Any) -> None:
        """Keep it."""
        if not self._is_runtime:
            _texts.append(str(module))

    def finalize(self) -> None:
        """Nothing to do."""
        self._finalized = True


def _placeholder(_context: Any, library: Any, description: Any, environment: Any) -> Any:
    """Numba's dispatcher requires a builtin function for each compiled function. Never called."""
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    name = description.qualname.split(".")[-1]
    return numba._dynfunc.make_function(description.lookup_module(), name, "", abort, environment, (library,))


def _nothing(*_arguments: Any, **_named: Any) -> None:
    """Replaces a step that is skipped."""


def _exception_as_text(api: Any, exception: Any) -> Any:
    """Numba pickles the exceptions of compiled code. A library without Python stores them as text.

    Kind, message, function, and file with line, separated by NUL; `config.library` parses it.
    """
    kind, arguments, place = exception
    function, file, line = place or ("", "", 0)
    path = os.path.relpath(file, ROOT) if file else ""
    parts = (kind.__name__ if kind else "", " ".join(map(str, arguments or ())), function, f"{path}:{line}")
    structure, digest = api._serialize_data("\0".join(parts).encode())
    return api.context.insert_unique_const(api.module, f".exception.{digest.hex()}", structure)


def _replace_parts() -> None:
    type(cpu_target.target_context.codegen())._library_class = _KeptAsText
    Context.create_cpython_wrapper = Context.create_cfunc_wrapper = Context.post_lowering = _nothing
    Context.get_executable = _placeholder
    PythonApi.serialize_object = _exception_as_text
    quicker.apply()


@dataclass
class FrontEnd:
    """Compiles functions in sequence. At most one per process, before anything else is compiled in it."""

    symbols: dict[str, tuple[str, list[str], str]] = field(default_factory=dict[str, "tuple[str, list[str], str]"])
    """LLVM's name, argument kinds and result kind of each function, by its module and name."""

    def __post_init__(self) -> None:
        """From here on Numba compiles nothing to machine code in this process."""
        _texts.clear()
        _replace_parts()

    def compile(self, functions: Iterable[tuple[Any, tuple[Any, ...]]]) -> None:
        """Compile functions with the given argument types, and their callees."""
        for function, arguments in functions:
            function.compile(arguments)

    def note_symbols(self, dispatchers: Iterable[Any]) -> None:
        """Record the symbols of these functions, if C can call them."""
        for dispatcher in dispatchers:
            for result in dispatcher.overloads.values():
                description = result.fndesc
                arguments = [kind_of(argument) for argument in description.argtypes]
                returned = kind_of(description.restype)
                if returned is not None and returned != "record" and all(arguments):
                    name = f"{dispatcher.py_func.__module__}.{dispatcher.py_func.__qualname__}"
                    self.symbols[name] = (description.llvm_func_name, [kind for kind in arguments if kind], returned)

    def module(self) -> Any:
        """All compiled code as one LLVM module, not optimised."""
        combined = None
        for text in _texts:
            part = llvm.parse_assembly(cgutils.normalize_ir_text(text))
            if combined is None:
                combined = part
            else:
                combined.link_in(part)
        assert combined is not None, "nothing was compiled"
        return combined


def kind_of(numba_type: Any) -> str | None:
    """The kind (`config.library.Entry`) that a type is passed as; None if C cannot pass it."""
    if isinstance(numba_type, types.Boolean):
        return "boolean"
    if isinstance(numba_type, types.Integer):
        return f"{'' if numba_type.signed else 'u'}int{numba_type.bitwidth}"
    if isinstance(numba_type, types.Record):
        return "record"
    if isinstance(numba_type, types.NoneType):
        return "none"
    if isinstance(numba_type, types.UniTuple | types.Tuple):
        kinds = [kind_of(part) for part in numba_type.types]
        return ",".join(kind for kind in kinds if kind) if len(kinds) > 1 and all(kinds) else None
    return None
