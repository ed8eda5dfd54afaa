"""The settings of [backend.openai], and of each table of [[backend.openai.upstreams]].

What both have is declared once, above them. In an upstream None means that the section's value counts; a file cannot
say it otherwise than by leaving the key out. How a base URL or a key file is understood is said in
backends/openai/options.py, which reads them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from config.declaring import RELOADABLE, reloadable, reloadable_text

API_BASE_DEFAULT = "https://api.openai.com/v1"
UPSTREAMS_MAX = 256
UPSTREAM_NAME = "^[a-z0-9_.-]{1,64}$"

# ---- what a section and an upstream both have

ApiKey = Annotated[str, reloadable_text("sent as a bearer token; empty = none", max_length=4096)]
ApiKeyFile = Annotated[
    str, reloadable("file with the key, so that it need not stand here; others must not be able to read it")
]
NeedsKey = Annotated[bool, reloadable("an https upstream that is not on this host needs a key, or it is an error")]
ApiBase = Annotated[
    str, reloadable_text("base URL; /v1 is added where its path names no version", min_length=1, max_length=2048)
]
ApiSocket = Annotated[
    str, reloadable_text("Unix socket to connect to in place of the base's host and port; empty = none", max_length=107)
]
Http2Enabled = Annotated[
    bool, reloadable("speak HTTP/2: agreed on in TLS, otherwise by prior knowledge; false = HTTP/1.1")
]
InsecureSsl = Annotated[bool, reloadable("do not verify certificates: anyone on the way can read the key")]
CaFile = Annotated[str, reloadable("certificates to trust in place of the system's; empty = the system's")]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Models = Annotated[
    tuple[ModelName, ...],
    reloadable_text('models it serves; empty = any; "ASKED=SENT" has it asked for by another name', max_length=1024),
]
Headers = Annotated[dict[str, str], reloadable_text("headers added to each request", max_length=64)]
System = Annotated[str, reloadable("system message of a conversation that has none; empty = none")]
MaxTokens = Annotated[int, reloadable("of a request that sets none; 0 = not sent", ge=0, le=1 << 31)]
Temperature = Annotated[float, reloadable("of a request that sets none; below 0 = not sent", ge=-1, le=2)]
TopP = Annotated[float, reloadable("of a request that sets none; below 0 = not sent", ge=-1, le=1)]
AsksUsage = Annotated[
    bool, reloadable("ask for token counts (stream_options.include_usage), which some old servers refuse")
]
ConnectTimeout = Annotated[int, reloadable("to connect, TLS included, then the next upstream", ge=1, le=600_000)]
HeadTimeout = Annotated[
    int,
    reloadable("from the request to the response's head", ge=1, le=3_600_000),
]
FirstTokenTimeout = Annotated[int, reloadable("from the head to the first token", ge=1, le=3_600_000)]
SilenceTimeout = Annotated[int, reloadable("silence between two tokens", ge=1, le=3_600_000)]
OnDisconnect = Annotated[
    Literal["cancel", "drain"],
    Meta(
        description="when the client has left: stop the upstream at once, or read on to learn the usage",
        extra=RELOADABLE,
    ),
]
DrainTimeout = Annotated[int, reloadable("how long to read on at most, with on_disconnect = drain", ge=1, le=3600)]
IdleConnectionsMax = Annotated[int, reloadable("connections kept for later requests", ge=0, le=65_536)]
IdleTimeout = Annotated[int, reloadable("how long such a connection is kept", ge=1, le=3600)]
StreamsMax = Annotated[
    int, reloadable("streams at once; more go to the next upstream, or get a 503; 0 = no limit", ge=0, le=1_000_000)
]
BreakerFailures = Annotated[
    int, reloadable("failures in a row after which no more streams go there; 0 = never", ge=0, le=1000)
]
BreakerOpen = Annotated[int, reloadable("for how long, before it is tried again", ge=1, le=3600)]
BreakerSuccesses = Annotated[int, reloadable("answers in a row that then end the trial", ge=1, le=1000)]
BreakerProbes = Annotated[int, reloadable("streams at once that may try it meanwhile", ge=1, le=1000)]


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """One server that streams are relayed from. What a table leaves out is as in [backend.openai]."""

    name: Annotated[
        str,
        Meta(pattern=UPSTREAM_NAME, description="in metrics, logs and the ledger; unique", extra=RELOADABLE),
    ]
    priority: Annotated[int, reloadable("the lowest number is asked first", ge=0, le=1000)] = 0
    weight: Annotated[int, reloadable("share of the streams, among those of one priority", ge=1, le=1000)] = 1
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
    """Relays OpenAI-compatible servers. In use as the default backend, or where a key, base, socket or upstream is set.

    Without any of them nothing of it is imported. What is marked reloadable is so only where it was in use at start.
    """

    api_base: ApiBase = API_BASE_DEFAULT
    api_socket: ApiSocket = ""
    api_key: ApiKey = ""
    api_key_file: ApiKeyFile = ""
    needs_key: NeedsKey = True
    model: Annotated[str, reloadable_text("of a request that names none", min_length=1, max_length=256)] = "gpt-4o-mini"
    models: Models = ()
    format: Annotated[
        Literal["content", "openai"],
        Meta(
            description='events as {"content":...}, or as the upstream writes them; a request may choose',
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
    attempts_max: Annotated[
        int, reloadable("upstreams asked for one stream at most, before its first token", ge=1, le=16)
    ] = 3
    retry_percent: Annotated[int, reloadable("repeated requests, in percent of all streams", ge=0, le=100)] = 20
    retry_reserve: Annotated[int, reloadable("repeated requests a minute beside that", ge=0, le=100_000)] = 10
    backoff_ms: Annotated[
        int,
        reloadable("wait before an upstream is asked again, doubled each time and drawn at random", ge=0, le=60_000),
    ] = 100
    backoff_max_ms: Annotated[int, reloadable("the longest such wait", ge=0, le=600_000)] = 2000
    retry_after_max_s: Annotated[
        int, reloadable("wait that an upstream may ask for (Retry-After); a longer one is passed on", ge=0, le=3600)
    ] = 5
    breaker_failures: BreakerFailures = 3
    breaker_open_s: BreakerOpen = 30
    breaker_successes: BreakerSuccesses = 2
    breaker_probes: BreakerProbes = 1
    ledger_file: Annotated[str, Meta(description="one line of JSON for each stream; empty = none")] = ""
    ledger_bytes_max: Annotated[
        int, Meta(ge=0, le=1 << 40, description="size at which a new file is begun; 0 = never")
    ] = 1 << 26
    ledger_count_max: Annotated[int, Meta(ge=1, le=1000, description="older files that are kept")] = 5
    upstreams: Annotated[
        tuple[Upstream, ...],
        Meta(
            max_length=UPSTREAMS_MAX,
            description="several servers; empty = the section is the only one, `default`",
            extra=RELOADABLE,
        ),
    ] = ()

    @property
    def is_configured(self) -> bool:
        """Whether anything says where to relay from, so that a handoff may name this backend."""
        return bool(
            self.api_key or self.api_key_file or self.api_socket or self.upstreams or self.api_base != API_BASE_DEFAULT
        )
