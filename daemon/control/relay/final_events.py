"""Relayed streams that are still open when the plane has been stopped: what it would have said of them at their end.

A client that reads nothing keeps its stream from ending, and the daemon does not wait for it. Its upstream has been
asked all the same, so its accounts are settled like any other's. Main thread, once the plane's has ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from daemon.plane import messages as m
from daemon.plane import state as st

if TYPE_CHECKING:
    from daemon.control.channel.events import EventRecord
    from daemon.control.stream.stream import Stream
    from daemon.plane.table import Plane


def last_events(plane: Plane, stream: Stream) -> tuple[EventRecord, EventRecord]:
    """USAGE and ENDED of a relayed stream, from the plane's own records of it."""
    of_stream, of_relay = plane.streams[stream.slot], plane.relays[stream.slot]
    has_ended = int(of_stream["state"]) in {st.CLOSING, st.FREE}
    reason = int(of_stream["reason"]) if has_ended else st.SHUTDOWN
    first_token_ns, first_byte_ns = int(of_relay["first_token_ns"]), int(of_stream["first_byte_ns"])
    accepted_ns = stream.accepted_ns
    usage = (
        *(m.USAGE, 0, stream.slot, stream.generation, int(of_relay["is_done"]), 0),
        *(int(of_relay["prompt_tokens"]), int(of_relay["completion_tokens"])),
        *(int(of_relay["malformed"]), int(of_relay["stale"])),
        *(first_token_ns - accepted_ns if first_token_ns else -1, -1, int(of_relay["token_count"])),
    )
    ended = (
        *(m.ENDED, 0, stream.slot, stream.generation, reason, 0),
        *(time.monotonic_ns(), first_byte_ns - accepted_ns if first_byte_ns else -1, -1, -1),
        *(accepted_ns, int(of_stream["sent_bytes"]), int(of_stream["message_count"])),
    )
    return usage, ended
