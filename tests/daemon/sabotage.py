"""Starts the daemon with a way to break it: on SIGUSR2 one of its planes dies, or a part of it fails.

Run as `python sabotage.py data|control|callback|websocket|handoff PYTHON -m daemon OPTIONS`: what follows the kind
is the daemon's command.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import uvloop

from daemon.__main__ import main
from daemon.control.channel import events

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from backends.interface import Fields
    from daemon.control.stream.stream import Stream

T = TypeVar("T")
KIND = sys.argv[1]


def _break_data_plane() -> None:
    """Close the descriptor that its loop waits on, so that its next call to the kernel fails with EBADF."""
    waited_on: list[int] = []
    for link in list(Path("/proc/self/fd").iterdir()):
        # One of them listed the directory and is closed by now.
        target = os.readlink(link) if os.path.lexists(link) else ""
        if "io_uring" in target or "eventpoll" in target:
            waited_on.append(int(link.name))
    # uvloop has one of each, too: they are older than the data plane's.
    os.close(max(waited_on))


def _fail(*_: object) -> NoReturn:
    raise RuntimeError("sabotaged")


def _break_websockets() -> None:
    """What comes on them fails from now on."""
    from daemon.control.http.uvicorn.websocket import WebSocketProtocol

    WebSocketProtocol.handle_events = _fail  # type: ignore[assignment,method-assign]


def _break_handoffs() -> None:
    """Handoffs for the user `sabotage` fail from now on, where nothing may fail."""
    from daemon.control.admission.admission import Admission

    admit = Admission._admit  # pyright: ignore[reportPrivateUsage]

    def fail_one(self: Admission, stream: Stream, fields: Fields, data: bytes) -> None:
        if fields.user_id == "sabotage":
            _fail()
        admit(self, stream, fields, data)

    Admission._admit = fail_one  # type: ignore[method-assign]


class _Loop(uvloop.Loop):
    """uvloop, with our signal installed as soon as it runs."""

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        self.add_signal_handler(signal.SIGUSR2, self._sabotage)
        return super().run_until_complete(future)

    def _sabotage(self) -> None:
        print("sabotaging", KIND, file=sys.stderr, flush=True)
        if KIND == "data":
            _break_data_plane()
        elif KIND == "control":
            events.whole_records = _fail  # type: ignore[assignment]
        elif KIND == "websocket":
            _break_websockets()
        elif KIND == "handoff":
            _break_handoffs()
        else:
            _fail()


uvloop.new_event_loop = _Loop
sys.exit(main(sys.argv[5:]))
