"""Exit codes from sysexits.h, so that supervisors and operators can tell causes apart; see docs/operations.md."""

from __future__ import annotations

import errno

EXIT_CLEAN = 0
EXIT_USAGE = 64
EXIT_PLANE_DIED = 70
EXIT_OS_ERROR = 71
EXIT_CANNOT_CREATE = 73
EXIT_IN_USE = 75
EXIT_NO_PERMISSION = 77
EXIT_CONFIGURATION = 78


class StartError(Exception):
    """The daemon cannot start. Carries the message and the exit status of the process."""

    def __init__(self, message: str, exit_status: int) -> None:
        """`message` is for the operator."""
        super().__init__(message)
        self.exit_status = exit_status


def status_of_errno(number: int | None) -> int:
    """The exit code for a socket that cannot be bound."""
    if number == errno.EADDRINUSE:
        return EXIT_IN_USE
    if number in {errno.EACCES, errno.EPERM}:
        return EXIT_NO_PERMISSION
    return EXIT_OS_ERROR
