"""The settings of [backend.openai], and of each table of [[backend.openai.upstreams]].

Settings common to both are declared once, first. In an upstream None means that the section's value applies; a file
expresses it by omitting the key. backends/openai/options.py interprets base URLs and key files.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from config.declaring import RELOADABLE, reloadable, reloadable_text

API_BASE_DEFAULT = "https://api.openai.com/v1"
UPSTREAMS_MAX = 256
UPSTREAM_NAME = "^[a-z0-9_.-]{1,64}$"

# ---- common to a section and an upstream

ApiKey = Annotated[str, reloadable_text("sent as a bearer token; empty = none", max_length=4096)]
ApiKeyFile = Annotated[str, reloadable("file with the key, in place of api_key; must not be readable by others")]
NeedsKey = Annotated[bool, reloadable("require a key for an https upstream on another host")]
ApiBase = Annotated[
    str, reloadable_text("base URL; /v1 is appended if its path has no version", min_length=1, max_length=2048)
]
ApiSocket = Annotated[
    str, reloadable_text("Unix socket to connect to instead of the base's host and port; empty = none", max_length=107)
]
Http2Enabled = Annotated[
    bool, reloadable("use HTTP/2: negotiated in TLS, otherwise with prior knowledge; false = HTTP/1.1")
]
InsecureSsl = Annotated[bool, reloadable("do not verify certificates: an attacker on the path can read the key")]
CaFile = Annotated[str, reloadable("certificates to trust instead of the system's; empty = the system's")]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Models = Annotated[
    tuple[ModelName, ...],
    reloadable_text('models it serves; empty = any; "ALIAS=MODEL" accepts ALIAS and requests MODEL', max_length=1024),
]
Headers = Annotated[dict[str, str], reloadable_text("headers added to each request", max_length=64)]
System = Annotated[str, reloadable("system message for a conversation without one; empty = none")]
MaxTokens = Annotated[int, reloadable("default for a request; 0 = not sent", ge=0, le=1 << 31)]
Temperature = Annotated[float, reloadable("default for a request; below 0 = not sent", ge=-1, le=2)]
TopP = Annotated[float, reloadable("default for a request; below 0 = not sent", ge=-1, le=1)]
AsksUsage = Annotated[
    bool, reloadable("request token counts (stream_options.include_usage), which some old servers reject")
]
ConnectTimeout = Annotated[
    int, reloadable("limit for connecting, including TLS; then the next upstream is tried", ge=1, le=600_000)
]
HeadTimeout = Annotated[
    int,
    reloadable("limit from the request to the response head", ge=1, le=3_600_000),
]
FirstTokenTimeout = Annotated[int, reloadable("limit from the head to the first token", ge=1, le=3_600_000)]
SilenceTimeout = Annotated[int, reloadable("limit between two tokens", ge=1, le=3_600_000)]
OnDisconnect = Annotated[
    Literal["cancel", "drain"],
    Meta(
        description="when the client disconnects: stop the upstream at once, or read on for the usage",
        extra=RELOADABLE,
    ),
]
DrainTimeout = Annotated[int, reloadable("limit for reading on, with on_disconnect = drain", ge=1, le=3600)]
IdleConnectionsMax = Annotated[int, reloadable("idle connections kept for reuse", ge=0, le=65_536)]
IdleTimeout = Annotated[int, reloadable("how long an idle connection is kept", ge=1, le=3600)]
StreamsMax = Annotated[
    int, reloadable("concurrent streams; more go to the next upstream, or get a 503; 0 = no limit", ge=0, le=1_000_000)
]
BreakerFailures = Annotated[
    int, reloadable("consecutive failures that open the circuit breaker; 0 = never", ge=0, le=1000)
]
BreakerOpen = Annotated[int, reloadable("how long the breaker stays open", ge=1, le=3600)]
BreakerSuccesses = Annotated[int, reloadable("consecutive successes that close it again", ge=1, le=1000)]
BreakerProbes = Annotated[int, reloadable("concurrent trial streams while it is half open", ge=1, le=1000)]


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A server that streams are relayed from. Omitted keys have the values of [backend.openai]."""

    name: Annotated[
        str,
        Meta(pattern=UPSTREAM_NAME, description="in metrics, logs and the ledger; unique", extra=RELOADABLE),
    ]
    priority: Annotated[int, reloadable("upstreams with the lowest number are tried first", ge=0, le=1000)] = 0
    weight: Annotated[int, reloadable("share of the streams among upstreams of equal priority", ge=1, le=1000)] = 1
    api_base: ApiBase | None = None
    api_socket: ApiSocket | None = None
    api_key: ApiKey | None = None
    api_key_file: ApiKeyFile | None = None
    needs_key: NeedsKey | None = None
    models: Models | None = None
    http2_enabled: Http2Enabled | None = None
    insecure_ssl: InsecureSsl | None = None
    ca_file: CaFile | None = None
    headers: Headers | None = None
    system: System | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    asks_usage: AsksUsage | None = None
    streams_max: StreamsMax | None = None
    connect_timeout_ms: ConnectTimeout | None = None
    head_timeout_ms: HeadTimeout | None = None
    first_token_timeout_ms: FirstTokenTimeout | None = None
    silence_timeout_ms: SilenceTimeout | None = None
    on_disconnect: OnDisconnect | None = None
    drain_timeout_s: DrainTimeout | None = None
    idle_connections_max: IdleConnectionsMax | None = None
    idle_timeout_s: IdleTimeout | None = None
    breaker_failures: BreakerFailures | None = None
    breaker_open_s: BreakerOpen | None = None
    breaker_successes: BreakerSuccesses | None = None
    breaker_probes: BreakerProbes | None = None


class OpenAIBackend(msgspec.Struct, frozen=True, kw_only=True):
    """Relays OpenAI-compatible servers. Enabled as the default backend, or when a key, base, socket or upstream is set.

    Otherwise nothing of it is imported. Reloadable settings are so only if it was enabled at start.
    """

    api_base: ApiBase = API_BASE_DEFAULT
    api_socket: ApiSocket = ""
    api_key: ApiKey = ""
    api_key_file: ApiKeyFile = ""
    needs_key: NeedsKey = True
    model: Annotated[str, reloadable_text("default model of a request", min_length=1, max_length=256)] = "gpt-4o-mini"
    models: Models = ()
    format: Annotated[
        Literal["content", "openai"],
        Meta(
            description='default format: events as {"content":...}, or as sent by the upstream',
            extra=RELOADABLE,
        ),
    ] = "content"
    http2_enabled: Http2Enabled = False
    insecure_ssl: InsecureSsl = False
    ca_file: CaFile = ""
    headers: Headers = {}
    system: System = ""
    max_tokens: MaxTokens = 0
    temperature: Temperature = -1.0
    top_p: TopP = -1.0
    asks_usage: AsksUsage = True
    streams_max: StreamsMax = 0
    connect_timeout_ms: ConnectTimeout = 5000
    head_timeout_ms: HeadTimeout = 60_000
    first_token_timeout_ms: FirstTokenTimeout = 60_000
    silence_timeout_ms: SilenceTimeout = 60_000
    on_disconnect: OnDisconnect = "cancel"
    drain_timeout_s: DrainTimeout = 10
    idle_connections_max: IdleConnectionsMax = 256
    idle_timeout_s: IdleTimeout = 60
    attempts_max: Annotated[int, reloadable("attempts per stream, before its first token", ge=1, le=16)] = 3
    retry_percent: Annotated[int, reloadable("retries, in percent of all streams", ge=0, le=100)] = 20
    retry_reserve: Annotated[int, reloadable("additional retries per minute", ge=0, le=100_000)] = 10
    backoff_ms: Annotated[
        int,
        reloadable("delay before an upstream is retried, doubled each time, with random jitter", ge=0, le=60_000),
    ] = 100
    backoff_max_ms: Annotated[int, reloadable("longest delay before a retry", ge=0, le=600_000)] = 2000
    retry_after_max_s: Annotated[
        int, reloadable("longest Retry-After that is waited for; a longer one is passed on", ge=0, le=3600)
    ] = 5
    breaker_failures: BreakerFailures = 3
    breaker_open_s: BreakerOpen = 30
    breaker_successes: BreakerSuccesses = 2
    breaker_probes: BreakerProbes = 1
    ledger_file: Annotated[str, Meta(description="file with one line of JSON per stream; empty = none")] = ""
    ledger_bytes_max: Annotated[
        int, Meta(ge=0, le=1 << 40, description="size at which the file is rotated; 0 = never")
    ] = 1 << 26
    ledger_count_max: Annotated[int, Meta(ge=1, le=1000, description="rotated files kept")] = 5
    upstreams: Annotated[
        tuple[Upstream, ...],
        Meta(
            max_length=UPSTREAMS_MAX,
            description="the servers; empty = the section itself is the only one, `default`",
            extra=RELOADABLE,
        ),
    ] = ()

    @property
    def is_configured(self) -> bool:
        """Whether any server to relay from is configured, so that a handoff may name this backend."""
        return bool(
            self.api_key or self.api_key_file or self.api_socket or self.upstreams or self.api_base != API_BASE_DEFAULT
        )
