"""Admission checks: room for a stream, size, peer, user limits, and response headers. Main thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daemon.control.admission.client_socket import PEER_UNKNOWN
from daemon.control.admission.handoff import header_lines
from daemon.control.admission.refusal import Refusal
from daemon.control.admission.user_limits import UserLimits
from daemon.control.channel.responses import STANDARD_HEAD, streaming_head
from daemon.plane import messages as m

if TYPE_CHECKING:
    from config.settings import Settings
    from daemon.control.admission.client_socket import Inspector
    from daemon.control.admission.policy import Policy
    from daemon.control.process.rate_limited_log import RateLimitedLog

RETRY_AFTER_S = 1  # for refusals when a limit is reached: room may be available at once
RETRY_AFTER_DRAIN_S = 5


class Gate:
    """The limits of a policy, and the users counted against them. Every check raises Refusal."""

    __slots__ = ("_policy", "_rare", "draining", "users")

    def __init__(self, rare: RateLimitedLog) -> None:
        """`apply` must follow."""
        self._rare = rare
        self.users = UserLimits(0, 0)
        self.draining = False

    def apply(self, settings: Settings, policy: Policy) -> None:
        """Use these limits from now on."""
        self._policy = policy
        self.users.streams_max = settings.limits.streams_per_user
        self.users.per_minute = settings.limits.requests_per_minute_per_user

    def check_room(self, stream_count: int) -> None:
        """Refuse while draining or when the stream limit is reached."""
        if self.draining:
            raise Refusal(503, "draining", "the server is shutting down", RETRY_AFTER_DRAIN_S)
        if stream_count >= self._policy.connections_max:
            raise Refusal(503, "connection_limit", "the limit on open streams is reached", RETRY_AFTER_S)

    def check_size(self, flags: int) -> None:
        """Refuse a handoff whose data was truncated."""
        if flags & m.DATA_TRUNCATED:
            limit = self._policy.handoff_bytes_max
            raise Refusal(413, "handoff_too_large", f"the handoff's data is larger than {limit} bytes")

    def check_peer(self, result: int, inspector: Inspector) -> None:
        """Refuse a handoff from a process that is not allowed; `result` is what `inspector.inspect` returned."""
        policy = self._policy
        allowed = result != PEER_UNKNOWN and (
            inspector.uid in policy.allowed_uids or inspector.gid in policy.allowed_gids
        )
        if not allowed:
            raise Refusal(403, "peer_refused", "the process that handed this connection over is not allowed to")

    def check_user(self, user: int | str) -> None:
        """Refuse when the user's limits are reached; otherwise count the start."""
        users = self.users
        if not users.may_hold(user):
            raise Refusal(429, "streams_per_user", f"a user may hold {users.streams_max} streams", RETRY_AFTER_S)
        wait_s = users.start(user, time.monotonic())
        if wait_s > 0:
            detail = f"a user may start {users.per_minute} streams a minute"
            raise Refusal(429, "requests_per_minute_per_user", detail, wait_s)

    def check_bodies(self, body_count: int) -> None:
        """Refuse when the upload limit is reached."""
        if body_count >= self._policy.bodies_max:
            raise Refusal(503, "too_many_bodies", "the limit on concurrent uploads is reached", RETRY_AFTER_S)

    def head(self, headers: dict[str, object]) -> bytes | None:
        """The response head with a handoff's own headers; None when none of them is permitted."""
        lines, dropped_count = header_lines(headers)
        if dropped_count > 0:
            self._rare.warn("response headers of a handoff that are not allowed", "response_headers")
        limit = self._policy.head_bytes_max
        if len(STANDARD_HEAD) + len(lines) > limit:
            detail = f"field `response_headers` of the handoff: the response head is larger than {limit} bytes"
            raise Refusal(400, "response_head_too_large", detail)
        return streaming_head(lines) if lines else None
