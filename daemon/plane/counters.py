"""Names of the plane's counters and histograms: aligned 8-byte words, written by the plane alone, read at any time."""

from __future__ import annotations

COUNTERS = (
    "turns",
    "completions",
    "submissions",
    "stale_completions",
    "accepted",
    "accept_pauses",
    "accepted_parked",
    "accepted_refused",
    "bytes_sent",
    "messages_sent",
    "sends",
    "sends_short",
    "sends_blocked",
    "keep_alives",
    "commands",
    "commands_stale",
    "events",
    "events_blocked",
    "slots_used",
    "slots_used_peak",
    "blocks_used",
    "blocks_used_peak",
    "body_bytes",
    "discarded_bytes",
    "timers_late_ns_max",
    "completion_overflows",
    "descriptors_closed",
    "bytes_handed_over",
    "connections_opened",
    "connections_reused",
    "connections_idle",
    "connections_stale",
    "upstream_bytes",
    "tokens",
    "malformed_events",
)
(
    TURNS,
    COMPLETIONS,
    SUBMISSIONS,
    STALE_COMPLETIONS,
    ACCEPTED,
    ACCEPT_PAUSES,
    ACCEPTED_PARKED,
    ACCEPTED_REFUSED,
    BYTES_SENT,
    MESSAGES_SENT,
    SENDS,
    SENDS_SHORT,
    SENDS_BLOCKED,
    KEEP_ALIVES,
    COMMANDS,
    COMMANDS_STALE,
    EVENTS,
    EVENTS_BLOCKED,
    SLOTS_USED,
    SLOTS_USED_PEAK,
    BLOCKS_USED,
    BLOCKS_USED_PEAK,
    BODY_BYTES,
    DISCARDED_BYTES,
    TIMERS_LATE_NS_MAX,
    COMPLETION_OVERFLOWS,
    DESCRIPTORS_CLOSED,
    BYTES_HANDED_OVER,
    CONNECTIONS_OPENED,  # to upstreams
    CONNECTIONS_REUSED,
    CONNECTIONS_IDLE,  # a gauge
    CONNECTIONS_STALE,  # kept ones that were dead when they were needed
    UPSTREAM_BYTES,  # received from upstreams
    TOKENS,  # events that said something
    MALFORMED_EVENTS,
) = range(len(COUNTERS))

HISTOGRAMS = ("handoff", "first_byte", "message_interval", "stream_duration", "queue_wait")
(
    HISTOGRAM_HANDOFF,  # accept to OPEN
    HISTOGRAM_FIRST_BYTE,  # accept to the first byte taken by the kernel
    HISTOGRAM_MESSAGE_INTERVAL,  # between two completed sends of one stream
    HISTOGRAM_STREAM_DURATION,  # accept to the slot's end
    HISTOGRAM_QUEUE_WAIT,  # llm_queued to llm_pending
) = range(len(HISTOGRAMS))
HISTOGRAM_BUCKETS = 40  # bucket k counts durations of k significant bits in microseconds: below 2**k us
