"""What became of a relayed stream, from the events that the plane sent of its end. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.relay import Outcome
from daemon.plane import state as st

if TYPE_CHECKING:
    from daemon.control.channel.events import EventRecord


def outcome_of(record: EventRecord, usage: EventRecord | None) -> Outcome:
    """What became of a stream, from its ENDED and the USAGE before it."""
    reason, ended_ns, accepted_ns, sent = record[4], record[6], record[10], record[11]
    duration_s = (ended_ns - accepted_ns) / 1e9
    if usage is None:
        return Outcome(st.REASONS[reason], reason == st.COMPLETE, sent, duration_s, None, None, 0, None, None, 0)
    first_token_s = usage[10] / 1e9 if usage[10] >= 0 else None
    return Outcome(
        reason=st.REASONS[reason],
        is_complete=reason == st.COMPLETE,
        bytes_sent=sent,
        duration_s=duration_s,
        first_token_s=first_token_s,
        last_token_s=None if first_token_s is None else duration_s,
        token_count=usage[12],
        prompt_tokens=usage[6] if usage[6] >= 0 else None,
        completion_tokens=usage[7] if usage[7] >= 0 else None,
        malformed_events=usage[8],
        cancel_s=usage[11] / 1e9 if usage[11] >= 0 else None,
        stale_retries=usage[9],
    )


def unopened_outcome(reason: int) -> Outcome:
    """The outcome of a stream that never began."""
    return Outcome(st.REASONS[reason], False, 0, 0.0, None, None, 0, None, None, 0)
