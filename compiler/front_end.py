"""Numba's front end alone: marked functions in, LLVM's intermediate representation out.

As it stands Numba makes machine code of each function by itself, and wrappers by which Python calls it. Of 460
functions Python calls two, so that is four fifths of the work for nothing. Here each function's module is only kept as
text; all of them become one module, which `compiler.back_end` optimises once.

Numba has no interface for this: what is replaced is named in `_replace_parts`. Numba is pinned, and a build that went
wrong fails in its link or in the tests of the plane, never at run time.
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
    """A function's code, not compiled any further."""

    def __init__(self, codegen_: Any, name: str) -> None:
        codegen.CodeLibrary.__init__(self, codegen_, name)
        self._is_runtime = name == "nrt"  # Numba's own allocator, which nothing here calls

    def add_linking_library(self, library: Any) -> None:
        """Callees are kept by themselves."""

    def add_ir_module(self, module: Any) -> None:
        """Keep it."""
        if not self._is_runtime:
            _texts.append(str(module))

    def finalize(self) -> None:
        """Nothing is left to be done."""
        self._finalized = True


def _placeholder(_context: Any, library: Any, description: Any, environment: Any) -> Any:
    """Numba's dispatcher wants a builtin function for each compiled one. Nobody calls this."""
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    name = description.qualname.split(".")[-1]
    return numba._dynfunc.make_function(description.lookup_module(), name, "", abort, environment, (library,))


def _nothing(*_arguments: Any, **_named: Any) -> None:
    """Takes the place of a step that is left out."""


def _exception_as_text(api: Any, exception: Any) -> Any:
    """Numba pickles an exception that compiled code raises. A library without Python says it as text.

    Kind, message, function, and file with line, separated by NUL; `config.library` reads it.
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
    """Compiles functions one after the other. One of a process, and before anything else is compiled in it."""

    symbols: dict[str, tuple[str, list[str], str]] = field(default_factory=dict[str, "tuple[str, list[str], str]"])
    """LLVM's name, kinds of arguments and kind of the result of each function by its module and name."""

    def __post_init__(self) -> None:
        """From here on Numba compiles nothing to machine code in this process."""
        _texts.clear()
        _replace_parts()

    def compile(self, functions: Iterable[tuple[Any, tuple[Any, ...]]]) -> None:
        """Compile functions, with the types of their arguments, and whatever they call."""
        for function, arguments in functions:
            function.compile(arguments)

    def note_symbols(self, dispatchers: Iterable[Any]) -> None:
        """Remember how these functions can be called, as far as a C caller can."""
        for dispatcher in dispatchers:
            for result in dispatcher.overloads.values():
                description = result.fndesc
                arguments = [kind_of(argument) for argument in description.argtypes]
                returned = kind_of(description.restype)
                if returned is not None and returned != "record" and all(arguments):
                    name = f"{dispatcher.py_func.__module__}.{dispatcher.py_func.__qualname__}"
                    self.symbols[name] = (description.llvm_func_name, [kind for kind in arguments if kind], returned)

    def module(self) -> Any:
        """Everything that was compiled as one LLVM module, not optimised."""
        whole = None
        for text in _texts:
            part = llvm.parse_assembly(cgutils.normalize_ir_text(text))
            if whole is None:
                whole = part
            else:
                whole.link_in(part)
        assert whole is not None, "nothing was compiled"
        return whole


def kind_of(numba_type: Any) -> str | None:
    """The kind of `config.library.Entry` that a type is passed as; None where C cannot pass it."""
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
