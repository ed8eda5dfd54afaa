"""From one LLVM module to shared libraries: optimised per level, and linked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import BuildError
from compiler.untyped import llvm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Symbols that a library may import from libc; any other means that Python or Numba's runtime crept in.
ALLOWED_SYMBOLS = frozenset(
    {"__errno_location", "clock_gettime", "fcntl", "getsockopt", "memchr", "memcpy", "memmove", "memset", "setsockopt"}
    | {"syscall"}
)


@dataclass(frozen=True)
class Target:
    """A target processor."""

    machine: str
    level: str

    @property
    def triple(self) -> str:
        """LLVM's name of machine and system."""
        return f"{self.machine}-unknown-linux-gnu"

    @property
    def processor(self) -> str:
        """LLVM's name of the processor."""
        return f"x86-64-{self.level}" if self.machine == "x86_64" else "generic"

    @property
    def emulation(self) -> str:
        """The linker's name of the machine."""
        return {"x86_64": "elf_x86_64", "aarch64": "aarch64linux"}[self.machine]


def export(module: Any, entries: Mapping[str, str]) -> None:
    """Export entry points (LLVM's name -> exported name), and make everything else internal."""
    for function in list(module.functions):
        if not function.is_declaration:
            if function.name in entries:
                function.name = entries[function.name]
            else:
                function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"


def emit(bitcode: bytes, target: Target) -> bytes:
    """An object file, optimised for the target.

    Raises:
        BuildError: it imports symbols that are not allowed.
    """
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_bitcode(bitcode)
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.processor, features="", opt=3, reloc="pic", codemodel="default"
    )
    module.triple, module.data_layout = target.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(3)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    needed = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if needed - ALLOWED_SYMBOLS:
        raise BuildError(f"compiled code imports {', '.join(sorted(needed - ALLOWED_SYMBOLS))}")
    return bytes(machine.emit_object(module))


def linker(target: Target) -> list[str]:
    """A linker for the target: binutils' or LLVM's if installed, otherwise that of the package ziglang.

    Raises:
        BuildError: none is installed.
    """
    native = sysconfig.get_platform().endswith(target.machine)
    for name in ("ld", "ld.lld") if native else (f"{target.machine}-linux-gnu-ld", "ld.lld"):
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "ld.lld"]
    raise BuildError(
        f"no linker for {target.machine}: install binutils (Debian: apt-get install binutils) or lld, or the Python "
        "package ziglang, which includes a linker (pip install ziglang)"
    )


def link(object_file: bytes, path: Path, target: Target, exported: Sequence[str]) -> None:
    """Link an object file into a shared library.

    Raises:
        BuildError: the linker failed, or none is installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    object_path, map_path = path.with_suffix(".o"), path.with_suffix(".map")
    object_path.write_bytes(object_file)
    map_path.write_text(f"{{ global: {' '.join(f'{name};' for name in exported)} local: *; }};\n")
    command = [
        *linker(target), "-shared", "-s", "-m", target.emulation, "-z", "now", "-z", "relro", "-z", "noexecstack",
        "--hash-style=gnu", "-Bsymbolic", "--version-script", str(map_path), "-soname", path.name,
        "-o", str(path), str(object_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own arguments)
    object_path.unlink()
    map_path.unlink()
    if done.returncode != 0:
        raise BuildError(f"the linker failed: {done.stderr.strip()[:1000]}")
