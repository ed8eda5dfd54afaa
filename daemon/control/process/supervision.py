"""Decides which failures end the process, and which end one connection or request only. Main thread.

What the whole daemon depends on is marked as essential, by name: tasks that live as long as the daemon, the readers of
the channels between the planes, and callbacks for streams that the data plane holds. An exception there ends the
process, because it leaves unknown state behind. Any other exception that reaches the event loop belongs to one
connection or one request and is contained: counted by kind and logged, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from daemon.control.process.rate_limited_log import RateLimitedLog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, MutableMapping

P = ParamSpec("P")
R = TypeVar("R")

KINDS: tuple[str, ...] = ("connection", "task", "callback", "event", "other")
LOG_INTERVAL_S = 60.0

logger = logging.getLogger(__name__)


class EssentialError(Exception):
    """Something essential failed; the original exception is the cause. Only the event loop may catch it."""


def essential(name: str, call: Callable[P, R]) -> Callable[P, R]:
    """Wrap `call` so that its exceptions end the process; `name` identifies it in the log."""

    @functools.wraps(call)
    def supervised(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return call(*arguments, **options)
        except Exception as error:
            raise EssentialError(name) from error

    return supervised


def essential_task(loop: asyncio.AbstractEventLoop, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose exception ends the process."""
    task = loop.create_task(work, name=name)
    task.add_done_callback(_raise_its_exception)
    return task


def _raise_its_exception(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        raise EssentialError(task.get_name()) from error


def essential_failure(context: Mapping[str, Any]) -> BaseException | None:
    """The failure that must end the process, or None when the handler's context holds a containable one."""
    error: BaseException | None = context.get("exception")
    if isinstance(error, EssentialError):
        return error
    # uvloop reports this way, and only so, that the kernel failed a listener or a poll, which uvloop then closed.
    return error if isinstance(error, OSError) and len(context) == 1 else None


class Containment:
    """Counts and logs failures that end one connection or request."""

    def __init__(self, counts: MutableMapping[str, int]) -> None:
        """`counts` has a key for each of KINDS."""
        self._counts = counts
        self._log = RateLimitedLog(logger, interval_s=LOG_INTERVAL_S)

    def contain(self, context: Mapping[str, Any]) -> None:
        """Handle an exception handler's context that is not essential; closes its connection, if it has one."""
        self._record(_kind_of(context), context.get("exception"), context.get("message", ""))
        transport = context.get("transport")
        if transport is not None:
            transport.abort()

    def contain_event(self, event: object, error: Exception) -> None:
        """The handler of one stream's event failed; the caller ends that stream."""
        self._record("event", error, type(event).__name__)

    def _record(self, kind: str, error: BaseException | None, detail: str) -> None:
        self._counts[kind] += 1
        message = f"contained an exception in the code of one {kind}" if kind != "other" else "contained an exception"
        self._log.warn(message, kind, error, detail=detail)


def _kind_of(context: Mapping[str, Any]) -> str:
    if "transport" in context or "protocol" in context:
        return "connection"
    if "task" in context or "future" in context:
        return "task"
    return "callback" if "handle" in context else "other"
