"""The command `streaming-daemon`, also `python -m daemon`: runs the daemon, or the tool `mel`.

Imports are made where needed: --help and --version respond at once, and a configuration error is reported before
anything large is loaded.
"""
# ruff: noqa: PLC0415  (see above)

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.load import Loaded

PROGRAM = "streaming-daemon"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (docs/operations.md)."""
    from daemon.control.process.exit_codes import EXIT_CONFIGURATION, EXIT_USAGE

    if not __debug__:
        return _refuse("assertions guard the memory of the data plane: run without -O and PYTHONOPTIMIZE", EXIT_USAGE)
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] == "mel":
        from backends.mel import command

        return command.main(given[1:])
    from config.load import ConfigError, load

    try:
        loaded = load(given)
    except ConfigError as error:
        return _refuse(str(error), EXIT_CONFIGURATION)
    except SystemExit as ended:
        # argparse has printed the error; its exit status would mean something else to a shell.
        return EXIT_USAGE if ended.code else 0
    if loaded.action == "check_config":
        return _check_config(loaded)
    if loaded.action == "check_kernel":
        return _check_kernel(loaded)
    if loaded.action == "warm_cache":
        return _warm_cache()
    from daemon.service import serve

    return serve(loaded, given)


def _refuse(message: str, status: int) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return status


def _check_config(loaded: Loaded) -> int:
    from backends.registry import RegistryError, check
    from config.load import describe
    from daemon.control.http.server.startup_checks import check as check_http
    from daemon.control.process.exit_codes import EXIT_CONFIGURATION, StartError

    try:
        warnings = [*loaded.warnings, *check(loaded.settings)]
        check_http(loaded.settings.http)
    except RegistryError as error:
        return _refuse(str(error), EXIT_CONFIGURATION)
    except StartError as error:
        return _refuse(str(error), error.exit_status)
    for warning in warnings:
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)
    print(describe(loaded))
    return 0


def _check_kernel(loaded: Loaded) -> int:
    from daemon.control.process.exit_codes import EXIT_OS_ERROR
    from daemon.control.process.kernel_report import render
    from daemon.data_plane import probe
    from daemon.ring.memory import KernelError

    try:
        print(render(probe(loaded.settings)))
    except KernelError as error:
        return _refuse(f"io_uring is required and cannot be used: {error}", EXIT_OS_ERROR)
    return 0


def _warm_cache() -> int:
    print("Nothing to do: machine code is built before the daemon runs (by make plane, or included in the wheel).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
