"""The OPEN commands that answer a handoff, packed from the policy in advance as far as they can be. Main thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.control.channel.commands import open_tail, pack, pack_open
from daemon.plane import messages as m
from daemon.plane.command_records import OpenCommand

if TYPE_CHECKING:
    from backends.interface import Paced
    from daemon.control.admission.policy import Policy
    from daemon.control.stream.adoption import Adoption

_TAILS_MAX = 1024  # different paces that are kept packed; a client may ask for any number of tokens


class Opener:
    """Packs OPEN for one policy."""

    __slots__ = (
        "_flags",
        "_linger_tail",
        "_paced_tails",
        "_policy",
        "_pushed_tail",
        "_raw_tail",
        "_relayed_tail",
        "_timed",
    )

    def __init__(self, policy: Policy) -> None:
        """A reload makes a new one."""
        self._policy = policy
        self._flags = m.KEEP_HALF_OPEN if policy.keep_half_open else 0
        ending = OpenCommand(
            slot=0,
            generation=0,
            source=m.SOURCE_NONE,
            write_timeout_ms=policy.write_timeout_ms,
            linger_timeout_ms=policy.linger_timeout_ms,
        )
        self._linger_tail = open_tail(ending)
        self._timed = ending._replace(
            queue_timeout_ms=policy.queue_timeout_ms,
            first_byte_timeout_ms=policy.first_byte_timeout_ms,
            silence_timeout_ms=policy.silence_timeout_ms,
            stream_timeout_ms=policy.stream_timeout_ms,
        )
        keep_alive_ms = policy.keep_alive_ms
        self._pushed_tail = open_tail(self._timed._replace(source=m.SOURCE_PUSHED, keep_alive_ms=keep_alive_ms))
        self._raw_tail = open_tail(self._timed._replace(source=m.SOURCE_PUSHED))
        self._relayed_tail = open_tail(self._timed._replace(source=m.SOURCE_UPSTREAM, keep_alive_ms=keep_alive_ms))
        self._paced_tails: dict[tuple[int, int, int, int], bytes] = {}

    def paced(
        self, slot: int, generation: int, script: int, paced: Paced, head: bytes | None, flags: int = 0
    ) -> bytes | None:
        """A stream that the plane makes; `head` is None for the standard one. None where it does not fit a command."""
        _, count, interval_ps, latency_ms, text, opening, closing = paced
        if len(text) > m.TEXT_BYTES_MAX or len(closing) > m.TEXT_BYTES_MAX:
            raise ValueError(f"a paced stream's texts have at most {m.TEXT_BYTES_MAX} bytes each")
        key = (script, count, interval_ps, latency_ms)
        common = self._paced_tails.get(key)
        if common is None:
            common = self._paced_tail(key)
        if head is None:
            payload, head_bytes, flags = text + closing + opening, 0, self._flags | m.STANDARD_HEAD | flags
        else:
            payload, head_bytes, flags = text + closing + head + opening, len(head), self._flags | flags
        if len(payload) > m.PAYLOAD_BYTES_MAX:
            return None
        return pack_open(common, slot, generation, flags, payload, head_bytes, len(text), len(closing))

    def _paced_tail(self, key: tuple[int, int, int, int]) -> bytes:
        script, count, interval_ps, latency_ms = key
        if count < 0 or interval_ps < 0:
            message = f"{count} messages, {interval_ps} ps apart: a paced stream has neither below 0"
            raise ValueError(message)
        if len(self._paced_tails) >= _TAILS_MAX:
            self._paced_tails.clear()
        paced = self._timed._replace(
            source=m.SOURCE_PACED,
            keep_alive_ms=self._policy.keep_alive_ms,
            script=script,
            message_count=count,
            interval_ps=interval_ps,
            latency_ms=latency_ms,
        )
        common = self._paced_tails[key] = open_tail(paced)
        return common

    def pushed(self, slot: int, generation: int, *, events: bool) -> bytes:
        """A stream that waits for a worker; without `events` no comment is put in."""
        common = self._pushed_tail if events else self._raw_tail
        return pack_open(common, slot, generation, self._flags | m.QUEUED)

    def relayed(self, slot: int, generation: int, flags: int = 0) -> bytes:
        """A stream that waits for an upstream's answer."""
        return pack_open(self._relayed_tail, slot, generation, self._flags | flags)

    def adopted(self, slot: int, generation: int, adoption: Adoption, *, events: bool) -> bytes:
        """A stream that waits for a worker, on a socket of this process; without `events` no comment is put in."""
        command = self._timed._replace(
            slot=slot,
            generation=generation,
            flags=self._flags | m.QUEUED | adoption.flags,
            source=m.SOURCE_PUSHED,
            prefix_bytes=len(adoption.prefix),
            content_length=adoption.body_bytes,
            keep_alive_ms=self._policy.keep_alive_ms if events else 0,
        )
        return pack(command, adoption.prefix)

    def refused(self, slot: int, generation: int, response: bytes) -> bytes:
        """A whole response in place of a stream."""
        return pack_open(self._linger_tail, slot, generation, m.REFUSAL, response)

    @staticmethod
    def dropped(slot: int, generation: int, reason: int) -> bytes:
        """A descriptor that nothing can be said on is closed."""
        return pack(OpenCommand(slot, generation, source=m.SOURCE_NONE, reason=reason))
