"""The states of a connection to an upstream, and the one table of permitted transitions.

As daemon/plane/state.py for slots: `change_state` asserts the table, and docs/architecture.md shows it as a diagram.
"""

from __future__ import annotations

from typing import Any

from config.compilation import inlined
from daemon.plane.state import transition_bits

FREE = 0
OPENING = 1  # gets its descriptor
CONNECTING = 2
BUSY = 3  # the request is being sent, or its response read
DRAINING = 4  # the stream has what it needs; the rest of the response is read so that the connection can be kept
IDLE = 5
CLOSING = 6

STATES = ("free", "opening", "connecting", "busy", "draining", "idle", "closing")

TRANSITIONS: dict[int, tuple[int, ...]] = {
    FREE: (OPENING,),
    OPENING: (CONNECTING, CLOSING),
    CONNECTING: (BUSY, CLOSING),
    BUSY: (DRAINING, IDLE, CLOSING),  # IDLE: the response has been read to its end
    DRAINING: (IDLE, CLOSING),
    IDLE: (BUSY, CLOSING),
    CLOSING: (FREE,),
}

_PERMITTED = transition_bits(TRANSITIONS)


@inlined
def change_state(connection: Any, state: int) -> None:
    """Nothing else assigns a connection's state."""
    assert _PERMITTED >> (8 * connection.state + state) & 1, "a connection's state changes as TRANSITIONS permits"
    connection.state = state
