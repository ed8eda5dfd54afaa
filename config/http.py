"""The settings of [http]: the front that serves HTTP itself, and OpenAI's API."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """Listening addresses, access, and limits of a request."""

    listen: Annotated[
        str, Meta(max_length=260, description="address and port, as 127.0.0.1:8000 or [::1]:8000; empty = off")
    ] = ""
    api_keys_file: Annotated[
        str, Meta(description="file of keys, one per line, each `NAME: KEY` or `KEY`; empty = no key is required")
    ] = ""
    allow_anonymous: Annotated[
        bool, Meta(description="allow serving without keys on an address that is not loopback")
    ] = False
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description='origins whose pages may send requests, or ["*"]; empty = none'),
    ] = ()
    tls_certificate_file: Annotated[str, Meta(description="certificate chain, PEM; with a key the front is HTTPS")] = ""
    tls_key_file: Annotated[str, Meta(description="its private key, PEM")] = ""
    connections_max: Annotated[
        int, Meta(ge=1, le=100_000, description="open connections of the front, excluding streams; more get a 503")
    ] = 1024
    backlog: Annotated[int, Meta(ge=1, le=65_535, description="connections the kernel queues")] = 1024
    head_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 20, description="size of a request head; more gets a 431")] = (
        16_384
    )
    body_bytes_max: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="size of a request's JSON body; more gets a 413")
    ] = 4_194_304
    answer_bytes_max: Annotated[
        int,
        Meta(ge=1024, le=1 << 30, description="size of the stream behind a non-streaming response; more gets a 502"),
    ] = 67_108_864
    head_timeout_ms: Annotated[int, Meta(ge=10, le=600_000, description="time for a request's head to arrive")] = 10_000
    body_timeout_ms: Annotated[int, Meta(ge=10, le=3_600_000, description="time for its JSON body to arrive")] = 30_000
    idle_timeout_ms: Annotated[int, Meta(ge=10, le=3_600_000, description="how long an idle connection is kept")] = (
        60_000
    )
