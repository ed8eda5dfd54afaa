"""`python -m compiler`: build the libraries that are missing or stale."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.build import Order, build
from config.library import SOURCES

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED = 1
PTX = "ptx"


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m compiler", description="Build machine code from marked sources.")
    add = parser.add_argument
    add("sources", nargs="+", choices=[*sorted(SOURCES), PTX], help="what to build; ptx: the CUDA kernels")
    add("--levels", default="", help="instruction sets, such as v2,v3, or all (this machine's)")
    add("--machine", default=platform.machine(), choices=["x86_64", "aarch64"], help="target machine")
    add("--folder", type=Path, help="output folder (default: beside the sources)")
    add("--also", action="append", default=[], metavar="MODULE", help="for tests: also compile this module, and "
        "make every function an entry point")  # fmt: skip
    add("--force", action="store_true", help="rebuild even if current")
    return parser.parse_args(arguments)


def _order(name: str, options: argparse.Namespace) -> Order:
    source = SOURCES[name]
    levels = source.levels if options.levels == "all" else [level for level in options.levels.split(",") if level]
    if options.machine != "x86_64":
        levels = [""]
    return Order(source, levels, options.machine, options.folder, options.also, options.force)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options and build; returns 0 if everything is up to date afterwards."""
    options = _parse(arguments)
    for package in ("numba", "llvmlite"):
        if find_spec(package) is None:
            print(f"error: {package} is not installed, and compiling needs it: pip install '.[build]'", file=sys.stderr)
            return EXIT_FAILED
    for name in options.sources:
        if name == PTX:
            from compiler.ptx import build_ptx  # noqa: PLC0415  (imports numba-cuda)

            succeeded = build_ptx(_say)
        else:
            succeeded = build(_order(name, options), _say)
        if not succeeded:
            return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
