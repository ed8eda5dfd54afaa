"""The daemon's HTTP front under test: spoken to byte by byte, and what it holds afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.behaviour.daemon_process import Daemon
from tests.behaviour.relay_helpers import toml_of
from tests.upstream import Upstream
from tests.upstream.certificate import make_certificate

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

TEST_MODEL = "test-model"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TIMEOUT_S = 20.0
SETTLE_S = 10.0


def tokens_of(count: int, first: int = 0) -> str:
    """The text of an answer of `test-model`."""
    return "".join(f"token_{number} " for number in range(first, first + count))


def post(
    path: str, body: bytes | Mapping[str, object], headers: Mapping[str, str] | None = None, version: str = "1.1"
) -> bytes:
    """A whole request."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Host": "daemon", "Content-Type": "application/json", "Content-Length": str(len(raw)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/{version}\r\n{lines}\r\n".encode() + raw


def get(path: str, headers: str = "", version: str = "1.1", method: str = "GET") -> bytes:
    """A request without a body."""
    return f"{method} {path} HTTP/{version}\r\nHost: daemon\r\n{headers}\r\n".encode()


def asking(stream: bool = True, **fields: object) -> dict[str, object]:
    """The body of a completion by `test-model`."""
    return {"model": TEST_MODEL, "prompt": "Hello", "stream": stream, **fields}


@dataclass
class Reply:
    """One response, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool  # its framing says that it ended where it should
    is_closing: bool  # the connection ended with it
    framing: str

    @property
    def json(self) -> Any:  # noqa: ANN401  (any JSON)
        """The body."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of OpenAI's envelope."""
        assert self.headers["content-type"] == "application/json", self
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, self
        assert error["message"]
        return error


@dataclass
class Wire:
    """A client's connection, read response by response. What is no HTTP/1.1 is an AssertionError."""

    socket: socket.socket
    is_http_10: bool = False
    _buffer: bytes = b""
    _is_over: bool = False
    was_reset: bool = False

    def __enter__(self) -> Wire:  # noqa: PYI034  (Python 3.10 has no Self)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it."""
        self.socket.sendall(data)

    def reply(self, *, to_head: bool = False) -> Reply:
        """The next response."""
        while b"\r\n\r\n" not in self._buffer:
            assert self._more(), f"no response, but {self._buffer[:200]!r}"
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) [^\r\n]*", first)
        assert found, first
        status = int(found[1])
        assert all(re.fullmatch(r"[!-9;-~]+: ?[^\r\n\0]*", line) for line in lines), lines
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert len(headers) == len(lines), f"a header came twice: {lines}"
        # Handshakes of WebSockets that are none are refused by the library, in plain text.
        if status >= 200 and not headers.get("content-type", "").startswith("text/plain"):
            assert headers.get("x-request-id"), f"an answer without the request's id: {lines}"
        body, is_whole, framing = self._body(status, headers, to_head=to_head)
        is_closing = headers.get("connection", "").lower() == "close"
        return Reply(status, headers, body, is_whole, is_closing, framing)

    def _body(self, status: int, headers: Mapping[str, str], *, to_head: bool) -> tuple[bytes, bool, str]:
        assert not {"content-length", "transfer-encoding"} <= set(headers), headers
        if to_head or status in {204, 304} or status < 200:
            return b"", True, "none"
        if headers.get("transfer-encoding") == "chunked":
            return (*self._chunks(), "chunked")
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(self._buffer) < length and self._more():
                pass
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            return body, len(body) == length, "length"
        while self._more():
            pass
        body, self._buffer = self._buffer, b""
        return body, not self.was_reset, "close"

    def _chunks(self) -> tuple[bytes, bool]:
        body = b""
        while True:
            while b"\r\n" not in self._buffer:
                if not self._more():
                    return body, False
            line, _, rest = self._buffer.partition(b"\r\n")
            size = int(line, 16)
            while len(rest) < size + 2:
                self._buffer = line + b"\r\n" + rest
                if not self._more():
                    return body, False
                rest = self._buffer.partition(b"\r\n")[2]
            assert rest[size : size + 2] == b"\r\n", rest[:80]
            body, self._buffer = body + rest[:size], rest[size + 2 :]
            if size == 0:
                return body, True

    def _more(self) -> bool:
        if self._is_over:
            return False
        try:
            piece = self.socket.recv(65_536)
        except (ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError, BrokenPipeError):
            self.was_reset = True
            piece = b""
        self._is_over = not piece
        self._buffer += piece
        return not self._is_over

    def until(self, mark: bytes) -> bytes:
        """What has come when this has come, or when the connection has ended."""
        while mark not in self._buffer and self._more():
            pass
        return self._buffer

    def rest(self) -> bytes:
        """Everything until the connection's end."""
        while self._more():
            pass
        return self._buffer


@dataclass
class Front:
    """A daemon whose HTTP front listens."""

    daemon: Daemon
    url: str
    upstream: Upstream | None = None
    _settled: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def port(self) -> int:
        """Where."""
        return int(self.url.rpartition(":")[2])

    @property
    def base(self) -> str:
        """As clients of OpenAI's API are given it."""
        return f"{self.url}/v1"

    def connect(self, *, receive_buffer_bytes: int = 0) -> Wire:
        """A plain connection; over TLS where the front is."""
        client = socket.socket()
        if receive_buffer_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        client.settimeout(TIMEOUT_S)
        try:
            client.connect(("127.0.0.1", self.port))
        except OSError:
            client.close()
            raise
        if self.url.startswith("https"):
            context = ssl.create_default_context(cafile=str(make_certificate().certificate_file))
            client = context.wrap_socket(client, server_hostname="localhost")
        return Wire(client)

    def ask(self, data: bytes, *, to_head: bool = False) -> Reply:
        """One request on a connection of its own."""
        with self.connect() as wire:
            wire.send(data)
            return wire.reply(to_head=to_head)

    def post(self, path: str, body: bytes | Mapping[str, object], headers: Mapping[str, str] | None = None) -> Reply:
        """The same, with this body."""
        return self.ask(post(path, body, headers))

    def is_well(self) -> None:
        """It still answers, and streams."""
        assert self.post(COMPLETIONS, asking(stream=False, max_tokens=2)).json["choices"][0]["text"] == tokens_of(2)
        streamed = self.post(COMPLETIONS, asking(max_tokens=2))
        assert streamed.is_whole
        assert streamed.body.endswith(b"data: [DONE]\n\n")

    @contextlib.contextmanager
    def leaves_nothing(self, seconds_max: float = SETTLE_S, *, kept: int = 0) -> Generator[None]:
        """After what happens inside no stream and no socket is left that was not there before.

        `kept` connections to upstreams may be: they are for the next requests. Worker threads, which begin when first
        needed, have two descriptors each that are no sockets.
        """
        self.daemon.wait_idle()
        before = self.daemon.socket_count() + kept
        yield
        self.daemon.wait_idle(seconds_max)
        self.wait_for_descriptors(before, seconds_max)

    def wait_for_descriptors(self, count_max: int, seconds_max: float = SETTLE_S) -> None:
        """Wait until no more than so many are open."""
        deadline_s = time.monotonic() + seconds_max
        while (seen := self.daemon.socket_count()) > count_max:
            assert time.monotonic() < deadline_s, f"{seen} sockets are open, {count_max} were"
            time.sleep(0.02)


def http_config(http: Mapping[str, object] | None = None, other: str = "", *, backend: str = "test_model") -> str:
    """A configuration of a daemon whose HTTP front listens."""
    lines = ["[server]", f'backend = "{backend}"', "[http]", 'listen = "127.0.0.1:0"']
    lines += [f"{name} = {toml_of(value)}" for name, value in (http or {}).items()]
    return "\n".join([*lines, other, ""])


def tls() -> dict[str, object]:
    """Settings of [http] for HTTPS with the certificate of the tests."""
    made = make_certificate()
    return {"tls_certificate_file": str(made.certificate_file), "tls_key_file": str(made.key_file)}


def relayed(upstream: Upstream, models: Mapping[str, str]) -> str:
    """The rest of a configuration that has `test-model` and relays these models, each by the upstream of its name."""
    lines = ['[backend.test_model]\nenabled = "on"', "[backend.openai]", "breaker_failures = 0"]
    for model, name in models.items():
        lines += ["[[backend.openai.upstreams]]", f'name = "{name}"', f'api_base = "{upstream.base}"']
        lines.append(f'models = ["{model}"]')
    return "\n".join(lines)


def url_of(daemon: Daemon) -> str:
    """Where its log says that it listens."""
    found = re.search(r'"http":\s*"([^"]+)"', daemon.log) or re.search(r"http=(\S+)", daemon.log)
    assert found, daemon.log
    return found[1]


@contextlib.contextmanager
def serving(kernel: str, directory: Path, configuration: str, *arguments: str) -> Generator[Front]:
    """A daemon with this configuration. It must end well, without a traceback."""
    daemon = Daemon(directory, kernel, list(arguments), configuration)
    try:
        daemon.start()
        yield Front(daemon, url_of(daemon))
        assert daemon.stop() == 0, daemon.log[-4000:]
        assert "Traceback" not in daemon.log, daemon.log[-4000:]
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
