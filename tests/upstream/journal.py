"""What is to be answered, and what was seen: shared by the upstream's thread and the test's, under one lock."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal

from tests.upstream.events import openai_stream
from tests.upstream.patterns import plan_named
from tests.upstream.plan import Plan
from tests.upstream.records import ConnectionRecord, Request

if TYPE_CHECKING:
    from collections.abc import Callable

PATTERN_HEADER = "X-Test-Pattern"


class Journal:
    """Plans by model or request, and records of requests and connections."""

    def __init__(self) -> None:
        """Every request gets `default` until something else is said."""
        self.changed = threading.Condition()
        self.requests: list[Request] = []
        self.connections: list[ConnectionRecord] = []
        self.dropped_count = 0  # requests that came on a connection which was closed for that
        self.default = Plan(openai_stream(["Hello", " ", "world"]))
        self._plans: dict[str, list[Plan]] = {}

    # ---- plans, test's thread

    def answer(self, name: str, plans: list[Plan]) -> None:
        """What requests for this model, or of this id, get in their order; the last of them for all that follow."""
        assert plans, "at least one"
        with self.changed:
            self._plans[name] = list(plans)

    def wait(self, holds: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Until something is so."""
        with self.changed:
            is_so = self.changed.wait_for(holds, timeout_s)
            seen = f"{len(self.requests)} requests, {len(self.connections)} connections"
        assert is_so, f"within {timeout_s} s not: {what} ({seen})"

    # ---- the upstream's thread

    def plan_of(self, request: Request) -> Plan:
        """By the pattern it names, by its id, by its model, or the default."""
        pattern = request.header(PATTERN_HEADER)
        if pattern:
            return plan_named(pattern)
        with self.changed:
            plans = self._plans.get(request.header("X-Request-Id") or "") or self._plans.get(request.model)
            if not plans:
                return self.default
            return plans.pop(0) if len(plans) > 1 else plans[0]

    def connection(self, kind: Literal["tcp", "unix", "tls"]) -> ConnectionRecord:
        """One was made."""
        with self.changed:
            record = ConnectionRecord(len(self.connections), kind, time.monotonic())
            self.connections.append(record)
            self.changed.notify_all()
        return record

    def request(
        self,
        connection: ConnectionRecord,
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...],
        protocol: Literal["HTTP/1.1", "HTTP/2"],
        body: bytes,
    ) -> Request:
        """One has come, whole."""
        with self.changed:
            connection.request_count += 1
            record = Request(
                len(self.requests), connection.number, method, path, headers, protocol, time.monotonic(), body
            )
            self.requests.append(record)
            self.changed.notify_all()
        return record

    def sent(self, request: Request, sent_bytes: int) -> None:
        """So much of its answer has been taken."""
        with self.changed:
            request.sent_bytes = sent_bytes
            self.changed.notify_all()

    def ended(self, request: Request) -> None:
        """Its answer is over, as planned."""
        self._stamp(request, "ended_s")

    def left(self, request: Request) -> None:
        """Its client has left before that."""
        self._stamp(request, "left_s")

    def _stamp(self, request: Request, name: Literal["ended_s", "left_s"]) -> None:
        now_s = time.monotonic()
        with self.changed:
            if request.ended_s is None and request.left_s is None:
                setattr(request, name, now_s)
            self.changed.notify_all()

    def closed(self, connection: ConnectionRecord) -> None:
        """A connection is over."""
        with self.changed:
            if connection.closed_s is None:
                connection.closed_s = time.monotonic()
            self.changed.notify_all()

    def dropped(self) -> None:
        """A request came on a connection that was closed for it."""
        with self.changed:
            self.dropped_count += 1
            self.changed.notify_all()
