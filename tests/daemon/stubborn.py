"""A backend that behaves badly: it never lets go of its thread, and refuses options at a reload."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from backends.interface import Backend, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Stubborn(Backend):
    """One piece, and then no more, whatever happens to the stream."""

    def reload(self, options: Mapping[str, Any]) -> None:
        if options.get("refused"):
            raise ValueError("refused")

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        del request
        yield "held"
        time.sleep(3600)
