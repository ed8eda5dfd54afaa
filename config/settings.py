"""Every limit in the system, with its unit and its reason: frozen structs with bounds checked by msgspec.

Attribute names are the configuration's keys; the section is the struct. `docs/settings.md` and the example file are
generated from this module and those of the sections, config/http.py, config/openai.py, config/mel.py and
config/test_model.py, by scripts/generate_reference.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from config.declaring import reloadable
from config.http import Http
from config.mel import MelBackend
from config.openai import OpenAIBackend
from config.test_model import TestModelBackend

Identity = Annotated[int, Meta(ge=0, le=(1 << 32) - 2)]
"""A user or group id. The largest 32-bit number is excluded: the kernel uses it for a peer it cannot name."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """The listener, who may use it, and the kernel interface and backend that serve it."""

    socket_path: Annotated[
        str, Meta(min_length=1, max_length=107, description="Unix socket on which Apache hands over clients")
    ] = "/var/run/streaming-daemon.sock"
    socket_mode: Annotated[int, Meta(ge=0, le=0o777, description="permissions of the socket, octal")] = 0o660
    socket_type: Annotated[Literal["seqpacket", "stream"], Meta(description="must match the Apache module")] = (
        "seqpacket"
    )
    socket_owner: Annotated[str, Meta(description="owner of the socket; empty leaves it unchanged")] = ""
    socket_group: Annotated[str, Meta(description="group of the socket; empty leaves it unchanged")] = ""
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000, description="open streams; more get a 503")] = 10_000
    backlog: Annotated[int, Meta(ge=1, le=65_535, description="handoffs the kernel queues until they are accepted")] = (
        4096
    )
    kernel: Annotated[Literal["auto", "io_uring", "epoll"], Meta(description="kernel interface; auto probes")] = "auto"
    backend: Annotated[str, Meta(min_length=1, max_length=64, description="default backend of a handoff")] = "mock"
    allowed_uids: Annotated[
        tuple[Identity, ...], Meta(max_length=64, description="users that may hand over connections; empty allows all")
    ] = ()
    allowed_gids: Annotated[
        tuple[Identity, ...], Meta(max_length=64, description="groups that may hand over connections; empty allows all")
    ] = ()
    data_dir: Annotated[str, Meta(description="the only directory in which a handoff may name files")] = (
        "/run/handoff-data"
    )


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits."""

    handoff_timeout_ms: Annotated[
        int, reloadable("time for a connected peer to send its handoff", ge=10, le=600_000)
    ] = 5000
    queue_timeout_ms: Annotated[
        int, reloadable("limit on waiting for a worker, then 503; 0 = no limit", ge=0, le=3_600_000)
    ] = 30_000
    first_byte_timeout_ms: Annotated[
        int, reloadable("limit on waiting for a backend's first byte, then 504; 0 = no limit", ge=0, le=3_600_000)
    ] = 60_000
    silence_timeout_ms: Annotated[
        int, reloadable("limit on a backend's silence between two chunks; 0 = no limit", ge=0, le=3_600_000)
    ] = 120_000
    stream_timeout_ms: Annotated[int, reloadable("limit on a stream's duration; 0 = no limit", ge=0, le=86_400_000)] = (
        3_600_000
    )
    write_timeout_ms: Annotated[
        int, reloadable("a client that does not read for this long is disconnected", ge=1, le=300_000)
    ] = 30_000
    linger_timeout_ms: Annotated[int, reloadable("time for a refused client to read its response", ge=0, le=60_000)] = (
        2000
    )
    shutdown_timeout_s: Annotated[int, reloadable("time for live streams to finish at shutdown", ge=1, le=3600)] = 120


class Streaming(msgspec.Struct, frozen=True, kw_only=True):
    """How streams are sent."""

    message_delay_ms: Annotated[int, reloadable("between two messages of the mock backend", ge=0, le=60_000)] = 50
    keep_alive_ms: Annotated[
        int, reloadable("silence before a keep-alive comment is sent; 0 = off", ge=0, le=3_600_000)
    ] = 10_000
    half_close: Annotated[Literal["gone", "keep"], Meta(description="how to treat a client's FIN")] = "gone"
    linger_bytes_max: Annotated[
        int, Meta(ge=0, le=1 << 30, description="unread input discarded before a connection is closed")
    ] = 1 << 20


class ThreadPool(msgspec.Struct, frozen=True, kw_only=True):
    """Workers for backends that block."""

    thread_pool: Annotated[bool, Meta(description="run every backend on pool threads")] = False
    pool_size: Annotated[int, Meta(ge=1, le=64, description="worker threads")] = 8
    queue_count_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="streams waiting for a worker; more get a 503")
    ] = 1024


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of memory allocated at start, and kernel features that can be disabled."""

    sqpoll: Annotated[bool, Meta(description="let a kernel thread poll for submissions")] = False
    submission_entries: Annotated[int, Meta(ge=64, le=32_768, description="submission queue, a power of two")] = 4096
    output_block_bytes: Annotated[
        int, Meta(ge=8192, le=1 << 20, description="limit on unsent bytes per stream, a power of two")
    ] = 16_384
    handoff_buffer_count: Annotated[int, Meta(ge=1, le=1024, description="handoff messages processed at once")] = 64
    body_buffer_bytes: Annotated[int, Meta(ge=4096, le=1 << 24, description="buffer size of an upload")] = 65_536
    body_buffer_count: Annotated[int, Meta(ge=1, le=4096, description="concurrent uploads; more get a 503")] = 64
    zero_copy_bytes_min: Annotated[
        int, Meta(ge=0, le=1 << 30, description="send ranges of at least this size without copying; 0 = never")
    ] = 0
    no_sqarray: Annotated[bool, Meta(description="use IORING_SETUP_NO_SQARRAY if the kernel supports it")] = True


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for peers, users and backends."""

    handoff_bytes_max: Annotated[
        int, Meta(ge=1024, le=1 << 20, description="size of a handoff's JSON; more gets a 413")
    ] = 131_072
    response_head_bytes_max: Annotated[
        int, Meta(ge=512, le=3072, description="size of the response head with a handoff's own headers")
    ] = 3072
    streams_per_user: Annotated[int, reloadable("open streams per user_id; 0 = no limit", ge=0, le=1_000_000)] = 0
    requests_per_minute_per_user: Annotated[
        int, reloadable("streams started per minute and user_id; 0 = no limit", ge=0, le=1_000_000)
    ] = 0
    credit_bytes: Annotated[int, Meta(ge=4096, le=1 << 30, description="unsent bytes of a backend per stream")] = (
        262_144
    )
    slot_reserve: Annotated[int, Meta(ge=16, le=65_536, description="slots beyond max_connections, for refusals")] = (
        1024
    )


class Monitoring(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics, health and the benchmark summary."""

    metrics_port: Annotated[int, Meta(ge=0, le=65_535, description="port of /metrics, /health and /ready; 0 = off")] = 0
    metrics_address: Annotated[str, Meta(min_length=1, description="address of that port")] = "127.0.0.1"
    benchmark: Annotated[bool, Meta(description="print a summary at exit")] = False


class Logging(msgspec.Struct, frozen=True, kw_only=True):
    """Logging to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], reloadable("lowest severity that is logged")] = (
        "info"
    )
    format: Annotated[Literal["text", "json"], reloadable("format of a line")] = "text"


class MockBackend(msgspec.Struct, frozen=True, kw_only=True):
    """The mock: a script of 18 messages, or a load generator."""

    latency_ms: Annotated[int, Meta(ge=0, le=600_000, description="delay before the first byte")] = 0
    tokens: Annotated[
        int, Meta(ge=0, le=1 << 40, description="tokens to generate instead of the script; 0 = the script")
    ] = 0
    tokens_per_second: Annotated[
        int, Meta(ge=0, le=100_000_000, description="tokens per second; 0 = as fast as the socket accepts")
    ] = 0
    format: Annotated[Literal["content", "openai"], Meta(description="format of a token's event")] = "content"


class BackendSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Sections of backends. Built-in backends have typed fields; a user's own are in `others`, by name."""

    mock: MockBackend = MockBackend()
    openai: OpenAIBackend = OpenAIBackend()
    mel: MelBackend = MelBackend()
    test_model: TestModelBackend = TestModelBackend()
    others: dict[str, dict[str, Any]] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings."""

    server: Server = Server()
    timeouts: Timeouts = Timeouts()
    streaming: Streaming = Streaming()
    thread_pool: ThreadPool = ThreadPool()
    performance: Performance = Performance()
    limits: Limits = Limits()
    monitoring: Monitoring = Monitoring()
    logging: Logging = Logging()
    http: Http = Http()
    backend: BackendSettings = BackendSettings()

    @property
    def uses_openai(self) -> bool:
        """Whether the backend `openai` is created: it is the default, or a server to relay from is configured."""
        return self.server.backend == "openai" or self.backend.openai.is_configured

    @property
    def uses_mel(self) -> bool:
        """Whether the backend `mel` is created: it needs libraries and memory that others do not."""
        return self.server.backend == "mel" or self.backend.mel.enabled

    @property
    def uses_test_model(self) -> bool:
        """Whether the backend `test_model` is created; with `auto` only if the HTTP front has no other backend."""
        enabled = self.backend.test_model.enabled
        alone = enabled == "auto" and self.http.listen != "" and not self.uses_openai
        return self.server.backend == "test_model" or enabled == "on" or alone
