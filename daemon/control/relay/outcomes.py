"""What became of a relayed stream, from the events that the plane sent of its end. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.relay import Outcome
from daemon.plane import state as st

if TYPE_CHECKING:
    from daemon.plane.event_records import EndedEvent, UsageEvent


def outcome_of(ended: EndedEvent, usage: UsageEvent | None) -> Outcome:
    """What became of a stream, from its ENDED and the USAGE before it."""
    reason, is_complete, bytes_sent = st.REASONS[ended.reason], ended.reason == st.COMPLETE, ended.sent_bytes
    duration_s = (ended.ended_ns - ended.accepted_ns) / 1e9
    if usage is None:
        return Outcome(reason, is_complete, bytes_sent, duration_s, None, None, 0, None, None, 0)
    first_token_s = usage.first_token_after_ns / 1e9 if usage.first_token_after_ns >= 0 else None
    return Outcome(
        reason=reason,
        is_complete=is_complete,
        bytes_sent=bytes_sent,
        duration_s=duration_s,
        first_token_s=first_token_s,
        last_token_s=None if first_token_s is None else duration_s,
        token_count=usage.token_count,
        prompt_tokens=usage.prompt_tokens if usage.prompt_tokens >= 0 else None,
        completion_tokens=usage.completion_tokens if usage.completion_tokens >= 0 else None,
        malformed_events=usage.malformed_count,
        cancel_s=usage.cancel_ns / 1e9 if usage.cancel_ns >= 0 else None,
        stale_retries=usage.stale_count,
    )


def unopened_outcome(reason: int) -> Outcome:
    """The outcome of a stream that never began."""
    return Outcome(st.REASONS[reason], False, 0, 0.0, None, None, 0, None, None, 0)
