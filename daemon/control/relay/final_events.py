"""Relayed streams that are still open when the plane has been stopped: what it would have said of them at their end.

A client that reads nothing keeps its stream from ending, and the daemon does not wait for it. Its upstream has been
asked all the same, so its accounts are settled like any other's. Main thread, once the plane's has ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daemon.plane import state as st
from daemon.plane.event_records import EndedEvent, UsageEvent

if TYPE_CHECKING:
    from daemon.control.stream.stream import Stream
    from daemon.plane.table import Plane


def last_events(plane: Plane, stream: Stream) -> tuple[UsageEvent, EndedEvent]:
    """USAGE and ENDED of a relayed stream, from the plane's own records of it."""
    of_stream, of_relay = plane.streams[stream.slot], plane.relays[stream.slot]
    has_ended = int(of_stream["state"]) in {st.CLOSING, st.FREE}
    first_token_ns, first_byte_ns = int(of_relay["first_token_ns"]), int(of_stream["first_byte_ns"])
    accepted_ns = stream.accepted_ns
    usage = UsageEvent(
        is_done=int(of_relay["is_done"]),
        slot=stream.slot,
        generation=stream.generation,
        malformed_count=int(of_relay["malformed"]),
        stale_count=int(of_relay["stale"]),
        prompt_tokens=int(of_relay["prompt_tokens"]),
        completion_tokens=int(of_relay["completion_tokens"]),
        first_token_after_ns=first_token_ns - accepted_ns if first_token_ns else -1,
        cancel_ns=-1,
        token_count=int(of_relay["token_count"]),
    )
    ended = EndedEvent(
        reason=int(of_stream["reason"]) if has_ended else st.SHUTDOWN,
        slot=stream.slot,
        generation=stream.generation,
        accepted_ns=accepted_ns,
        ended_ns=time.monotonic_ns(),
        first_byte_after_ns=first_byte_ns - accepted_ns if first_byte_ns else -1,
        sent_bytes=int(of_stream["sent_bytes"]),
        message_count=int(of_stream["message_count"]),
    )
    return usage, ended
