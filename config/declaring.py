"""Declaration of settings: msgspec's constraints, and the description for the reference.

Fields marked `RELOADABLE` take effect on SIGHUP; any other change needs a restart.
"""

from __future__ import annotations

from msgspec import Meta

RELOADABLE = {"reloadable": True}


def reloadable(description: str, *, ge: float | None = None, le: float | None = None) -> Meta:
    """A setting that SIGHUP changes, with bounds for a number."""
    return Meta(description=description, extra=RELOADABLE, ge=ge, le=le)


def reloadable_text(description: str, *, min_length: int | None = None, max_length: int | None = None) -> Meta:
    """As `reloadable`, for a text or a list, with bounds of its length."""
    return Meta(description=description, extra=RELOADABLE, min_length=min_length, max_length=max_length)
