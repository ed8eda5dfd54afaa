"""Streams that each user holds and starts, checked against the limits per user."""

from __future__ import annotations

import hashlib
import math
from operator import itemgetter

USERS_MAX = 65_536  # users whose rate is remembered
USER_CHARACTERS_MAX = 64  # longer user_ids are stored as a digest
_USER_BITS_MAX = 64
_WINDOW_S = 60.0


def remembered(user: int | str) -> int | str:
    """The key of a user in the counts: a digest for a long user_id, which bounds memory."""
    if isinstance(user, int):
        if user.bit_length() <= _USER_BITS_MAX:
            return user
        text = hex(user)
    elif len(user) <= USER_CHARACTERS_MAX:
        return user
    else:
        text = user
    return f"{type(user).__name__}:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


class UserLimits:
    """Streams held and started by each user_id. Main thread.

    The rate limit is the generic cell rate algorithm: a user may start a minute's worth at once, and then one stream
    per share of a minute. It stores one number per user, where a list of starts would need as many as the limit.
    """

    __slots__ = ("_due_s", "_held", "per_minute", "streams_max")

    def __init__(self, streams_max: int, per_minute: int) -> None:
        """0 is no limit."""
        self.streams_max = streams_max
        self.per_minute = per_minute
        self._held: dict[int | str, int] = {}
        self._due_s: dict[int | str, float] = {}

    @property
    def active(self) -> bool:
        """Whether any limit is set."""
        return self.streams_max > 0 or self.per_minute > 0

    @property
    def remembered_count(self) -> int:
        """Users with an entry: they hold a stream, or started one in the last minute."""
        return len(self._held.keys() | self._due_s.keys())

    def may_hold(self, user: int | str) -> bool:
        """Whether the user may hold another stream."""
        return self.streams_max == 0 or self._held.get(user, 0) < self.streams_max

    def start(self, user: int | str, now_s: float) -> int:
        """Count a start. Returns 0 if it is allowed, otherwise the number of seconds to wait."""
        if self.per_minute == 0:
            return 0
        share_s = _WINDOW_S / self.per_minute
        due_s = max(self._due_s.get(user, 0.0), now_s)
        wait_s = due_s + share_s - now_s - _WINDOW_S
        if wait_s > 1e-6:
            return math.ceil(wait_s)
        if len(self._due_s) >= USERS_MAX and user not in self._due_s:
            self._forget(now_s)
        self._due_s[user] = due_s + share_s
        return 0

    def hold(self, user: int | str) -> None:
        """The user has opened a stream."""
        self._held[user] = self._held.get(user, 0) + 1

    def release(self, user: int | str) -> None:
        """A stream of the user has ended."""
        count = self._held[user] - 1
        if count > 0:
            self._held[user] = count
        else:
            del self._held[user]

    def _forget(self, now_s: float) -> None:
        """Drop entries older than a minute, then those closest to expiry, until an eighth is free.

        This scans all users, so it must not be needed for each new one.
        """
        live = sorted((item for item in self._due_s.items() if item[1] > now_s), key=itemgetter(1))
        kept_max = USERS_MAX - max(1, USERS_MAX // 8)
        self._due_s = dict(live[max(0, len(live) - kept_max) :])
