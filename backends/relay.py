"""What a relayed stream is: a backend says which upstream to ask and what, and is told what became of it.

`Backend.open` returns a `Relay`. The daemon carries its attempts out: in the data plane where the upstream speaks plain
HTTP/1.1, otherwise on a thread with libcurl. Everything here is called on the main thread and must not block. Nothing
here knows the daemon.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

RelayFormat = Literal["content", "openai"]


@dataclass(frozen=True, eq=False)
class Origin:
    """One server that is asked, and how. Compared by identity; made when the configuration is read."""

    name: str  # in metrics, logs and the ledger
    scheme: Literal["http", "https"]
    host: str  # name or address, without brackets
    port: int
    socket_path: str = ""  # a Unix socket in place of host and port; `host` still goes into the Host header
    http2: bool = False  # by ALPN over TLS, by prior knowledge without
    insecure_ssl: bool = False  # do not verify certificates
    ca_file: str = ""  # certificates to trust in place of the system's
    connect_timeout_ms: int = 5000
    head_timeout_ms: int = 60_000  # from the request to the response's head
    first_token_timeout_ms: int = 60_000  # from the head to the first token
    silence_timeout_ms: int = 60_000  # between two tokens
    drain_timeout_ms: int = 0  # how long to read on when the client has left; 0 = cancel at once
    idle_connections_max: int = 256
    idle_timeout_ms: int = 60_000

    @property
    def is_plain(self) -> bool:
        """Whether the data plane can talk to it by itself."""
        return self.scheme == "http" and not self.http2

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


class Attempt(NamedTuple):
    """One try: `POST path` to an origin. Headers are without Host and Content-Length; their values are ASCII."""

    origin: Origin
    path: str  # with its leading slash and the base's own path, such as /v1/chat/completions
    headers: tuple[tuple[str, str], ...]
    body: bytes
    model: str = ""  # asked for; a label of bounded variety
    delay_ms: int = 0  # to wait before it begins


class FailureKind(enum.Enum):
    """Why an attempt, or the stream that came of it, failed. The values are labels of metrics."""

    CONNECT = "connect_failed"  # no address, refused, unreachable
    CONNECT_TIMEOUT = "connect_timeout"
    CERTIFICATE = "certificate"  # the server's, not verified
    RESET = "reset"  # closed or reset before a whole head had come
    HEAD_TIMEOUT = "head_timeout"
    HEAD_MALFORMED = "head_malformed"
    HEAD_TOO_LARGE = "head_too_large"
    HTTP_VERSION = "http_version"  # HTTP/2 where HTTP/1.1 was spoken, or the reverse
    STATUS = "status"  # an answer that is no 2xx: `status`, `headers`, `body`
    REDIRECT = "redirect"
    NOT_A_STREAM = "not_a_stream"  # 2xx, but no text/event-stream
    COMPRESSED = "compressed"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105  (no secret)
    SILENCE_TIMEOUT = "silence_timeout"
    CUT = "cut"  # the body ended before the stream's own end
    ERROR_EVENT = "error_event"  # an error object in the stream: `body` is the event's data
    MALFORMED = "malformed"  # no event could be understood, or the chunked framing is wrong
    EVENT_TOO_LARGE = "event_too_large"
    NO_RESOURCES = "no_resources"  # of ours: descriptors, memory


class Failure(NamedTuple):
    """What went wrong. `is_streaming`: the client has had some of the answer, so nobody else can be asked."""

    kind: FailureKind
    status: int = 0
    headers: Mapping[str, str] = {}  # of the response, names in lower case
    body: bytes = b""  # at most 64 KiB of it
    detail: str = ""  # for the log and the client: no secret, no address
    is_streaming: bool = False


class RelayError(Exception):
    """Nobody can serve the stream, or it cannot go on: what its client is told.

    With a `body` the client gets that, as it is, under `status` and `content_type`, where nothing has been sent yet.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int = 0,
        body: bytes = b"",
        content_type: str = "application/json",
    ) -> None:
        """`status` is 400 to 599; `code` is a stable word for programs."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.body = body
        self.content_type = content_type


class Outcome(NamedTuple):
    """How a relayed stream ended."""

    reason: str  # one of the plane's reasons, such as complete, client_gone, silence_timeout
    is_complete: bool
    bytes_sent: int
    duration_s: float  # from the handoff's accept to the stream's end
    first_token_s: float | None  # from the accept to the first token that came; None when none did
    last_token_s: float | None
    token_count: int  # events that said something
    prompt_tokens: int | None  # None where the upstream did not say
    completion_tokens: int | None
    malformed_events: int
    cancel_s: float | None = None  # from the client's leaving to the upstream's connection closed, where it is known
    stale_retries: int = 0  # kept connections that turned out to be dead, replaced without a word
    # What the client was told, where an answer in one piece was made of the stream; None: what the stream itself said.
    status: int | None = None  # of HTTP; 0: it left before there was one
    error: str = ""  # as `code: message`


class Relay:
    """One stream's story with its upstreams. Made by a backend for one request."""

    format: RelayFormat = "content"
    passes_usage: bool = False  # the client asked for the usage event
    request_id: str = ""

    def first(self) -> Attempt:
        """Whom to ask. Raises RelayError when nobody can be asked."""
        raise NotImplementedError

    def failed(self, failure: Failure) -> Attempt:
        """Whom to ask next. Raises RelayError with what the client is told; always where `failure.is_streaming`."""
        raise NotImplementedError

    def answered(self, model: str) -> None:
        """The first token came; `model` is the one the upstream names, or empty."""

    def ended(self, outcome: Outcome) -> None:
        """The stream is over, however it ended: called exactly once, also when no attempt was made after `first`."""

    def cancelled(self, seconds: float) -> None:
        """After `ended`: the client had left, and to cut the upstream's answer short took so long.

        Where the outcome has it as `cancel_s`, this is not called.
        """
