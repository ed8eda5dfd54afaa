"""The settings that admission reads for each handoff, as one flat record."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from config.settings import Settings


class Policy(NamedTuple):
    """The settings that admission reads for each handoff. Rebuilt on a reload."""

    connections_max: int
    bodies_max: int
    head_bytes_max: int
    handoff_bytes_max: int
    default_backend: str
    allowed_uids: frozenset[int]
    allowed_gids: frozenset[int]
    every_backend_pooled: bool
    keep_half_open: bool
    queue_timeout_ms: int
    first_byte_timeout_ms: int
    silence_timeout_ms: int
    stream_timeout_ms: int
    write_timeout_ms: int
    linger_timeout_ms: int
    handoff_timeout_ms: int
    keep_alive_ms: int


def policy_of(settings: Settings) -> Policy:
    """The policy from the settings."""
    timeouts = settings.timeouts
    return Policy(
        connections_max=settings.server.max_connections,
        bodies_max=settings.performance.body_buffer_count,
        head_bytes_max=settings.limits.response_head_bytes_max,
        handoff_bytes_max=settings.limits.handoff_bytes_max,
        default_backend=settings.server.backend,
        allowed_uids=frozenset(settings.server.allowed_uids),
        allowed_gids=frozenset(settings.server.allowed_gids),
        every_backend_pooled=settings.thread_pool.thread_pool,
        keep_half_open=settings.streaming.half_close == "keep",
        queue_timeout_ms=timeouts.queue_timeout_ms,
        first_byte_timeout_ms=timeouts.first_byte_timeout_ms,
        silence_timeout_ms=timeouts.silence_timeout_ms,
        stream_timeout_ms=timeouts.stream_timeout_ms,
        write_timeout_ms=timeouts.write_timeout_ms,
        linger_timeout_ms=timeouts.linger_timeout_ms,
        handoff_timeout_ms=timeouts.handoff_timeout_ms,
        keep_alive_ms=settings.streaming.keep_alive_ms,
    )
