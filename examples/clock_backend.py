"""A backend of your own: tells the time, once a second."""

import time
from collections.abc import Iterator

from backends.interface import Backend, BackendError, Request


class Clock(Backend):
    """Options: `ticks`, how often."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        """Text is sent as `data: {"content":"..."}`, bytes as they are; `[DONE]` follows by itself."""
        if "sundial" in request.prompt:
            raise BackendError(502, "no sun")  # nothing was sent yet: the client gets this status
        for _ in range(int(self.options.get("ticks", 5))):
            yield time.strftime("%H:%M:%S")
            if request.pause(1.0):  # the client has left
                return
