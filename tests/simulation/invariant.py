"""What all of the simulation raises when the plane has broken an invariant."""

from __future__ import annotations


class ViolationError(AssertionError):
    """The plane broke an invariant."""


def check(condition: object, message: str) -> None:
    """Raise `ViolationError` with the message, unless the condition holds."""
    if not condition:
        raise ViolationError(message)
