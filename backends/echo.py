"""The echo: what is uploaded comes back, piece by piece. It shows, and tests, the direction of bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.interface import Backend, Format, Request

if TYPE_CHECKING:
    from collections.abc import Iterator


class Echo(Backend):
    """No options."""

    format: Format = "raw"
    end = b""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        """The body, as it comes."""
        yield from request.body
