"""A daemon that relays, the upstream that it asks, and what both have seen. Names of keys stand in `relay_config`."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from backends.sse import content_event
from tests.behaviour.daemon_process import DONE, HEAD, Answer, Daemon, read_all
from tests.upstream import Framing, Gate, Plan, Upstream, openai_stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from tests.upstream import Request

TRANSPORTS = ("tcp", "unix", "tls", "h2", "h2c")
PLAIN = ("tcp", "unix")
KEY = "sk-test-0123456789abcdef"
MODEL = "some-model"
CANCEL_S_MAX = 5.0  # of a machine that is busy with other things; what was measured is printed
LEDGER = "ledger.jsonl"
_ERROR = re.compile(r"event: error\ndata: (\{.*\})\n\n\Z")
_numbers = itertools.count()


def toml_of(value: object) -> str:
    """A value as TOML has it."""
    if isinstance(value, dict):
        members = cast("dict[str, object]", value).items()
        return "{" + ", ".join(f"{json.dumps(name)} = {toml_of(inner)}" for name, inner in members) + "}"
    return json.dumps(value)


def relay_config(*upstreams: Mapping[str, object], other: str = "", **options: object) -> str:
    """The configuration of a daemon that relays these upstreams by default."""
    lines = ["[server]", 'backend = "openai"', "[backend.openai]"]
    lines += [f"{name} = {toml_of(value)}" for name, value in options.items()]
    for table in upstreams:
        lines.append("[[backend.openai.upstreams]]")
        lines += [f"{name} = {toml_of(value)}" for name, value in table.items()]
    return "\n".join([*lines, other, ""])


def by(transport: str, upstream: Upstream, name: str = "", **options: object) -> dict[str, object]:
    """The table of one way to the upstream."""
    found: dict[str, object] = {"name": name or transport}
    if transport in {"tls", "h2"}:
        found |= {"api_base": upstream.tls_base, "ca_file": upstream.ca_file}
    elif transport == "unix":
        found |= {"api_socket": upstream.unix_path}
    else:
        found |= {"api_base": upstream.base}
    if transport in {"h2", "h2c"}:
        found["http2_enabled"] = True
    return {**found, **options}


def by_all(upstream: Upstream, suffix: str = "", **options: object) -> list[dict[str, object]]:
    """Tables of every way to it, with these options and this end of their names."""
    return [by(transport, upstream, transport + suffix, **options) for transport in TRANSPORTS]


def ended(reason: str) -> str:
    """The name of a metric."""
    return f'streaming_daemon_streams_ended_total{{reason="{reason}"}}'


def content_of(tokens: Sequence[str]) -> bytes:
    """What a client of the content format gets for these tokens, without an end."""
    return b"".join(content_event(token) for token in tokens if token)


def without_comments(body: bytes) -> bytes:
    """A body without keep-alives."""
    return body.replace(b": keep-alive\n\n", b"")


def error_at_end(answer: Answer) -> dict[str, Any]:
    """The error that a stream ends with; there is just one, and no [DONE]."""
    assert answer.status == 200
    assert not answer.reset
    text = answer.body.decode()
    match = _ERROR.search(text)
    assert match, f"no error event at the end of {text[-300:]!r}"
    assert text.count("event: error") == 1
    assert "[DONE]" not in text
    error: dict[str, Any] = json.loads(match[1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def envelope(answer: Answer) -> dict[str, Any]:
    """The error of OpenAI's form that stands in place of a stream."""
    assert answer.headers["content-type"].startswith("application/json")
    assert int(answer.headers["content-length"]) == len(answer.body)
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def assert_complete(answer: Answer, tokens: Sequence[str]) -> None:
    """A whole stream of the content format, byte for byte."""
    assert not answer.reset
    assert answer.raw == HEAD + content_of(tokens) + DONE


@dataclass
class Relay:
    """A daemon that relays, and its upstream."""

    daemon: Daemon
    upstream: Upstream
    usual: str = ""  # the table that a test means which names none
    _begun: list[socket.socket] = field(default_factory=list["socket.socket"])

    def open(
        self, *plans: Plan, by: str = "", tcp: bool = False, model: str = "", **fields: object
    ) -> tuple[socket.socket, str]:
        """Begin a stream that gets these plans, by this table: the client's end, and the name that marks its requests.

        That is the model where one is given, otherwise an id of its own: models are labels, and few.
        """
        name = model or f"stream-{next(_numbers)}"
        if plans:
            self.upstream.answer(name, *plans)
        request: dict[str, object] = {"model": model or MODEL, "request_id": name, "prompt": "Hello", **fields}
        if by or self.usual:
            request["upstream"] = by or self.usual
        client = self.daemon.open(request, tcp=tcp)
        self._begun.append(client)
        return client, name

    def ask(self, *plans: Plan, by: str = "", timeout_s: float = 30, **fields: Any) -> Answer:  # noqa: ANN401  (what `open` takes)
        """Begin a stream and read it to its end."""
        client, _ = self.open(*plans, by=by, **fields)
        with client:
            return read_all(client, timeout_s)

    def ask_all(self, plan: Plan, names: Sequence[str], **fields: Any) -> dict[str, Answer]:  # noqa: ANN401
        """The same by each of these tables at once, for what takes its time."""
        begun = {name: self.open(plan, by=name, **fields)[0] for name in names}
        return {name: read_all(client) for name, client in begun.items()}

    def close_clients(self) -> None:
        """Those that a test has left open."""
        for client in self._begun:
            client.close()
        self._begun.clear()

    def rows(self, request_id: str) -> list[dict[str, Any]]:
        """The ledger's rows of one request."""
        file = self.daemon.directory / LEDGER
        # What is being written now may be seen in part: the kernel copies page by page.
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [row for row in map(json.loads, lines) if row["request_id"] == request_id]

    def row(self, request_id: str, timeout_s: float = 30) -> dict[str, Any]:
        """The one row of a request, once it is written."""
        deadline = time.monotonic() + timeout_s
        while not (rows := self.rows(request_id)):
            assert time.monotonic() < deadline, f"no row for {request_id}\n{self.daemon.log[-2000:]}"
            time.sleep(0.01)
        assert len(rows) == 1
        return rows[0]

    @contextlib.contextmanager
    def ends(self, reason: str, count: int = 1) -> Generator[None]:
        """What happens inside ends so many streams for this reason, and none for another."""
        before = self._settled_ends()
        yield
        deadline = time.monotonic() + 30
        expected = before[ended(reason)] + count
        while (after := self._settled_ends())[ended(reason)] != expected:
            seen = after[ended(reason)]
            assert time.monotonic() < deadline, f"{reason}: {seen}, not {expected}\n{self.daemon.log[-3000:]}"
            time.sleep(0.02)
        changed = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
        assert changed == {ended(reason): count}

    def _settled_ends(self) -> dict[str, float]:
        """The counts once all are in: no stream is open, or, where a test keeps some open, they stand still.

        The end of a stream may be told a little later than its client sees it.
        """
        before = dict[str, float]()
        while True:
            metrics = self.daemon.metrics()
            ends = {
                name: value for name, value in metrics.items() if name.startswith("streaming_daemon_streams_ended_")
            }
            if metrics["streaming_daemon_connections_active"] == 0 or ends == before:
                return ends
            before = ends
            time.sleep(0.05)


@contextlib.contextmanager
def relaying(
    kernel: str,
    directory: Path,
    tables: Callable[[Upstream], list[dict[str, object]]],
    other: str = "",
    **options: object,
) -> Generator[Relay]:
    """A daemon with these upstreams, and the server that they lead to. It must end well, without a traceback."""
    with Upstream() as upstream:
        options.setdefault("ledger_file", str(directory / LEDGER))
        found = tables(upstream)
        daemon = Daemon(directory, kernel, configuration=relay_config(*found, other=other, **options))
        relay = Relay(daemon, upstream, "tcp" if any(table["name"] == "tcp" for table in found) else "")
        try:
            daemon.start()
            yield relay
            assert daemon.stop() == 0, daemon.log[-4000:]
            assert "Traceback" not in daemon.log, daemon.log[-4000:]
            assert KEY not in daemon.log
        finally:
            relay.close_clients()
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


def held(tokens: Sequence[str], gate: Gate, count: int, **options: Any) -> Plan:  # noqa: ANN401  (a Plan's)
    """A whole answer that stops after the role and `count` tokens until the gate opens."""
    events = openai_stream(tokens)
    return Plan([*events[: count + 1], gate, *events[count + 1 :]], **options)


def refusal(status: int, message: str = "planned", body: bytes | None = None, **headers: str) -> Plan:
    """An answer that is no stream: OpenAI's envelope, unless a body is given."""
    error = {"message": message, "type": "planned_type", "param": None, "code": "planned_code"}
    return Plan(
        [json.dumps({"error": error}).encode() if body is None else body],
        status=status,
        content_type="application/json",
        headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()),
        framing=Framing.LENGTH,
    )


def stalled_bytes(request: Request) -> int:
    """How much the upstream could send when it can send no more."""
    quiet = sent = -1
    deadline_s = time.monotonic() + 30
    while quiet < 3:
        assert time.monotonic() < deadline_s, f"after {sent} bytes still more is taken"
        time.sleep(0.05)
        quiet, sent = (quiet + 1, sent) if request.sent_bytes == sent else (0, request.sent_bytes)
    assert request.ended_s is None
    return sent
