"""Backends of the tests' own, named in a configuration as a user would name theirs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from backends.interface import Backend, Request

if TYPE_CHECKING:
    from collections.abc import Iterator


class Raises(Backend):
    """Raises before or after its first piece, by the prompt."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        if request.prompt == "before":
            raise ValueError("a secret that must not reach the wire")
        yield "first"
        raise ValueError("a secret that must not reach the wire")


class Hangs(Backend):
    """Says nothing, or one piece and then nothing; notices that it is cancelled."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        if request.prompt == "after":
            yield "first"
        while not request.cancelled():
            time.sleep(0.01)


class Large(Backend):
    """Megabytes at once, in pieces of very different sizes; it falls silent afterwards if the prompt says so."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        for number in range(8):
            yield b"data: " + b"%d" % number + b"x" * (1 << 20) + b"\n\n"
            yield f"small {number}"
        while request.prompt == "hang" and not request.cancelled():
            time.sleep(0.01)


class Many(Backend):
    """Very many small pieces, as fast as they are taken."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        del request
        for number in range(20_000):
            yield f"piece {number}"


class Wrong(Backend):
    """Yields what is neither text nor bytes."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        del request
        yield 42  # type: ignore[misc]  # pyright: ignore[reportReturnType]


class Silent(Backend):
    """A long silence in the middle."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        del request
        yield "before"
        time.sleep(1.2)
        yield "after"


class Hogs(Backend):
    """Leaves a thread behind that keeps the interpreter to itself, for a long moment at a time, some seconds long."""

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        del request
        threading.Thread(target=self._hog, daemon=True).start()
        yield "done"

    @staticmethod
    def _hog() -> None:
        until_s = time.monotonic() + 4
        while time.monotonic() < until_s:
            sum(range(2_000_000))  # in one instruction, so that nobody else has a turn
