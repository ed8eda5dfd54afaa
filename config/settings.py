"""Every limit in the system, with its unit and its reason: frozen structs whose bounds msgspec checks.

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
"""A user's or a group's number. The largest of 32 bits is none: the kernel says it for a peer that it cannot name."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """The listener, who may use it, and which kernel interface and backend serve it."""

    socket_path: Annotated[
        str, Meta(min_length=1, max_length=107, description="Unix socket that Apache hands clients to")
    ] = "/var/run/streaming-daemon.sock"
    socket_mode: Annotated[int, Meta(ge=0, le=0o777, description="permissions of the socket, octal")] = 0o660
    socket_type: Annotated[Literal["seqpacket", "stream"], Meta(description="what the Apache module speaks")] = (
        "seqpacket"
    )
    socket_owner: Annotated[str, Meta(description="user who owns the socket; empty leaves it as it is")] = ""
    socket_group: Annotated[str, Meta(description="group of the socket; empty leaves it as it is")] = ""
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000, description="streams open at once; more get a 503")] = (
        10_000
    )
    backlog: Annotated[int, Meta(ge=1, le=65_535, description="handoffs the kernel queues while none is accepted")] = (
        4096
    )
    kernel: Annotated[Literal["auto", "io_uring", "epoll"], Meta(description="kernel interface; auto probes")] = "auto"
    backend: Annotated[str, Meta(min_length=1, max_length=64, description="backend of a handoff that names none")] = (
        "mock"
    )
    allowed_uids: Annotated[
        tuple[Identity, ...], Meta(max_length=64, description="users who may hand over; empty allows all")
    ] = ()
    allowed_gids: Annotated[
        tuple[Identity, ...], Meta(max_length=64, description="groups who may hand over; empty allows all")
    ] = ()
    data_dir: Annotated[str, Meta(description="the only directory that paths in a handoff may lie in")] = (
        "/run/handoff-data"
    )


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Every wait's end."""

    handoff_timeout_ms: Annotated[
        int, reloadable("a peer that connects must have spoken by then", ge=10, le=600_000)
    ] = 5000
    queue_timeout_ms: Annotated[int, reloadable("wait for a free worker, then 503; 0 = none", ge=0, le=3_600_000)] = (
        30_000
    )
    first_byte_timeout_ms: Annotated[
        int, reloadable("wait for a backend's first byte, then 504; 0 = none", ge=0, le=3_600_000)
    ] = 60_000
    silence_timeout_ms: Annotated[
        int, reloadable("silence of a backend between two pieces; 0 = none", ge=0, le=3_600_000)
    ] = 120_000
    stream_timeout_ms: Annotated[int, reloadable("a whole stream; 0 = none", ge=0, le=86_400_000)] = 3_600_000
    write_timeout_ms: Annotated[int, reloadable("a client that does not read is cut", ge=1, le=300_000)] = 30_000
    linger_timeout_ms: Annotated[int, reloadable("time for a refused client to read its answer", ge=0, le=60_000)] = (
        2000
    )
    shutdown_timeout_s: Annotated[int, reloadable("time for live streams to finish at shutdown", ge=1, le=3600)] = 120


class Streaming(msgspec.Struct, frozen=True, kw_only=True):
    """How streams are sent."""

    message_delay_ms: Annotated[int, reloadable("between two messages of the mock backend", ge=0, le=60_000)] = 50
    keep_alive_ms: Annotated[
        int, reloadable("silence after which a keep-alive comment is sent; 0 = off", ge=0, le=3_600_000)
    ] = 10_000
    half_close: Annotated[Literal["gone", "keep"], Meta(description="what a client's FIN means")] = "gone"
    linger_bytes_max: Annotated[int, Meta(ge=0, le=1 << 30, description="unread input discarded before closing")] = (
        1 << 20
    )


class ThreadPool(msgspec.Struct, frozen=True, kw_only=True):
    """Workers for backends that block."""

    thread_pool: Annotated[bool, Meta(description="run every backend on pool threads")] = False
    pool_size: Annotated[int, Meta(ge=1, le=64, description="worker threads")] = 8
    queue_count_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="streams that wait for a worker; more get a 503")
    ] = 1024


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of what is allocated at start, and kernel features that can be switched off."""

    sqpoll: Annotated[bool, Meta(description="the kernel polls for submissions on a thread of its own")] = False
    submission_entries: Annotated[int, Meta(ge=64, le=32_768, description="submission queue, a power of two")] = 4096
    output_block_bytes: Annotated[
        int, Meta(ge=8192, le=1 << 20, description="unsent bytes held per stream at most, a power of two")
    ] = 16_384
    handoff_buffer_count: Annotated[
        int, Meta(ge=1, le=1024, description="handoff messages being looked at, at once")
    ] = 64
    body_buffer_bytes: Annotated[int, Meta(ge=4096, le=1 << 24, description="buffer of an upload")] = 65_536
    body_buffer_count: Annotated[int, Meta(ge=1, le=4096, description="uploads at once; more get a 503")] = 64
    zero_copy_bytes_min: Annotated[
        int, Meta(ge=0, le=1 << 30, description="send ranges of this size without copying; 0 = never")
    ] = 0
    no_sqarray: Annotated[bool, Meta(description="use IORING_SETUP_NO_SQARRAY where the kernel has it")] = True


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer, a user or a backend may ask for."""

    handoff_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 20, description="JSON of one handoff; more gets a 413")] = (
        131_072
    )
    response_head_bytes_max: Annotated[
        int, Meta(ge=512, le=3072, description="response head with a handoff's own headers")
    ] = 3072
    streams_per_user: Annotated[int, reloadable("streams one user_id may hold; 0 = no limit", ge=0, le=1_000_000)] = 0
    requests_per_minute_per_user: Annotated[
        int, reloadable("streams one user_id may start a minute; 0 = no limit", ge=0, le=1_000_000)
    ] = 0
    credit_bytes: Annotated[
        int, Meta(ge=4096, le=1 << 30, description="bytes a backend may have unsent per stream")
    ] = 262_144
    slot_reserve: Annotated[
        int, Meta(ge=16, le=65_536, description="slots above max_connections, to answer refusals")
    ] = 1024


class Monitoring(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics, health and the benchmark summary."""

    metrics_port: Annotated[int, Meta(ge=0, le=65_535, description="/metrics, /health and /ready; 0 = off")] = 0
    metrics_address: Annotated[str, Meta(min_length=1, description="address they listen on")] = "127.0.0.1"
    benchmark: Annotated[bool, Meta(description="print a summary at exit")] = False


class Logging(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], reloadable("least severity that is logged")] = "info"
    format: Annotated[Literal["text", "json"], reloadable("form of a line")] = "text"


class MockBackend(msgspec.Struct, frozen=True, kw_only=True):
    """The mock: a script of 18 messages, or a load-test generator."""

    latency_ms: Annotated[int, Meta(ge=0, le=600_000, description="silence before the first byte")] = 0
    tokens: Annotated[
        int, Meta(ge=0, le=1 << 40, description="tokens to generate instead of the script; 0 = the script")
    ] = 0
    tokens_per_second: Annotated[
        int, Meta(ge=0, le=100_000_000, description="their rate; 0 = as fast as the socket takes")
    ] = 0
    format: Annotated[Literal["content", "openai"], Meta(description="form of a token's event")] = "content"


class BackendSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Sections of backends. A backend of the project has a typed field; a user's own is in `others`, by name."""

    mock: MockBackend = MockBackend()
    openai: OpenAIBackend = OpenAIBackend()
    mel: MelBackend = MelBackend()
    test_model: TestModelBackend = TestModelBackend()
    others: dict[str, dict[str, Any]] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be configured."""

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
        """Whether the backend `openai` is made: it is the default, or something is set that it could relay from."""
        return self.server.backend == "openai" or self.backend.openai.is_configured

    @property
    def uses_mel(self) -> bool:
        """Whether the backend `mel` is made: it needs libraries and memory that others do not."""
        return self.server.backend == "mel" or self.backend.mel.enabled

    @property
    def uses_test_model(self) -> bool:
        """Whether the backend `test_model` is made: by itself only where the HTTP front has nothing else to ask."""
        enabled = self.backend.test_model.enabled
        alone = enabled == "auto" and self.http.listen != "" and not self.uses_openai
        return self.server.backend == "test_model" or enabled == "on" or alone
