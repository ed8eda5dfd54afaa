"""What must hold of a worker's silence: it counts from its last piece, or from when the client had taken everything.

`look` follows right after each turn, `check_on_time` looks now and then; neither asks the plane what it believes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.plane import messages as m
from daemon.plane import state as st
from tests.simulation.invariant import check

if TYPE_CHECKING:
    from tests.simulation.checks import StreamCheck

SLACK_NS = 3_000_000_000  # a send is executed late, and its completion is late once more


class SilenceCheck:
    """One pushed stream's."""

    def __init__(self, stream: StreamCheck, silence_ns: int) -> None:
        """`silence_ns` is what its OPEN said; 0 is no limit."""
        self._stream = stream
        self._silence_ns = silence_ns
        self._handed_over = -1  # bytes of the source's, once it has spoken
        self._since_ns = self._since_active_ns = 0
        self._is_expired = False

    @property
    def is_over(self) -> bool:
        """Nothing more is to be looked at."""
        return self._is_expired or self._stream.ended is not None or bool(self._stream.finished)

    def look(self) -> None:
        """After a turn."""
        stream = self._stream
        slot, generation = stream.key
        kernel, delivery = stream.kernel, stream.delivery
        record = kernel.plane.streams[slot]
        if self.is_over or record.generation != generation or record.state != st.STREAMING:
            return
        handed_over = len(delivery.text)
        if handed_over != self._handed_over or delivery.matched < handed_over:
            self._handed_over = handed_over
            self._since_ns, self._since_active_ns = kernel.now_ns, kernel.active_ns
        self._is_expired = bool(int(record["flags"]) & m.FLAG_EXPIRED)
        if self._is_expired and record.expired == st.SILENCE_TIMEOUT:
            waited_ns = kernel.now_ns - self._since_ns
            check(
                waited_ns >= self._silence_ns > 0,
                f"{stream.key}: called silent {waited_ns / 1e6:.1f} ms after its client had taken everything",
            )

    def check_on_time(self) -> None:
        """A source is not silent for longer than was agreed."""
        slot, generation = self._stream.key
        kernel = self._stream.kernel
        record = kernel.plane.streams[slot]
        waits = self._handed_over >= 0 and record.generation == generation and record.state == st.STREAMING
        if self.is_over or not waits or self._silence_ns == 0 or int(record["flags"]) & m.FLAG_EXPIRED:
            return
        late_ns = kernel.active_ns - self._since_active_ns - self._silence_ns
        check(late_ns < SLACK_NS, f"{self._stream.key}: silent for {late_ns / 1e9:.1f} s too long")
