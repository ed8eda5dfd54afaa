"""From one LLVM module to shared libraries: optimised once for each level, and linked."""

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

# What a library may ask of the C library; anything else means that Python or Numba's runtime crept in.
ALLOWED_SYMBOLS = frozenset(
    {"__errno_location", "clock_gettime", "fcntl", "getsockopt", "memchr", "memcpy", "memmove", "memset", "setsockopt"}
    | {"syscall"}
)


@dataclass(frozen=True)
class Target:
    """A processor to compile for."""

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
    """Give entry points (LLVM's name -> exported name) their names, and keep everything else inside."""
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
    """An object file, optimised for this target.

    Raises:
        BuildError: it needs symbols that a library of ours must not need.
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
        raise BuildError(f"compiled code asks for {', '.join(sorted(needed - ALLOWED_SYMBOLS))}")
    return bytes(machine.emit_object(module))


def linker(target: Target) -> list[str]:
    """A linker for the target: binutils' or LLVM's if there is one, else that of the package ziglang.

    Raises:
        BuildError: there is none.
    """
    native = sysconfig.get_platform().endswith(target.machine)
    for name in ("ld", "ld.lld") if native else (f"{target.machine}-linux-gnu-ld", "ld.lld"):
        if found := shutil.which(name):
            return [found]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "ld.lld"]
    raise BuildError(
        f"no linker for {target.machine}: install binutils (Debian: apt-get install binutils) or lld, or the Python "
        "package ziglang, which brings one along (pip install ziglang)"
    )


def link(object_file: bytes, path: Path, target: Target, exported: Sequence[str]) -> None:
    """A shared library of one object file.

    Raises:
        BuildError: the linker failed, or there is none.
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
