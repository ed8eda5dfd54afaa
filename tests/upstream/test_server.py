"""The upstream does what its plans say, as plain sockets, curl and an HTTP/2 client of another's making see it."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.behaviour.daemon_process import ROOT
from tests.ports import unused_port
from tests.upstream import (
    Accept,
    After,
    Fault,
    Framing,
    Gate,
    Plan,
    Request,
    Upstream,
    Wait,
    ask_usage,
    full_backlog,
    openai_stream,
)
from tests.upstream.patterns import PATTERNS, names, plan_named
from tests.upstream.plan import render

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = openai_stream(["one", "two"], usage=ask_usage(3, 2))
BODY = b"".join(EVENTS)


@pytest.fixture(name="upstream", scope="module")
def _upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def request_for(model: str) -> bytes:
    body = json.dumps({"model": model}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def connect(upstream: Upstream) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", upstream.tcp_port))
    client.settimeout(5)
    return client


def read_to_end(client: socket.socket) -> tuple[bytes, bool]:
    """What came, and whether a reset ended it."""
    pieces: list[bytes] = []
    try:
        while piece := client.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        return b"".join(pieces), True
    return b"".join(pieces), False


def read_until(client: socket.socket, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        piece = client.recv(1)
        assert piece, f"the end came after {found!r}"
        found += piece
    return found


def answer_to(upstream: Upstream, model: str, plan: Plan) -> tuple[bytes, bool]:
    """All bytes of one answer on a connection of its own, and whether a reset ended it."""
    upstream.answer(model, plan)
    with connect(upstream) as client:
        client.sendall(request_for(model))
        return read_to_end(client)


def curl(upstream: Upstream, url: str, model: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            *("curl", "-sS", "-N", "--max-time", "10", "--cacert", upstream.ca_file, *arguments),
            *("-d", json.dumps({"model": model}), f"{url}/chat/completions"),
        ],
        check=False,
        capture_output=True,
    )


# ---- plans, without a socket


def rendered(plan: Plan) -> list[Any]:
    return list(render(plan, Request(0, 0, "POST", "/", (), "HTTP/1.1", 0.0)))


def test_chunks_are_framed_and_their_size_lines_can_be_wrong() -> None:
    plan = Plan([b"abc", Wait(1), b"defg"], content_type="", size_lines={1: b"zz\r\n"})
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert rendered(plan) == [head, b"3\r\nabc\r\n", Wait(1), b"zz\r\ndefg\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("extra", [-2, 0, 5])
def test_a_length_can_be_wrong(extra: int) -> None:
    head, *body = rendered(Plan([b"abc", b"de"], framing=Framing.LENGTH, length_extra=extra))
    assert b"Content-Length: %d\r\n" % (5 + extra) in head
    assert body == [b"abc", b"de"]


@pytest.mark.parametrize("at", range(6))
def test_a_fault_comes_at_the_byte_that_is_named(at: int) -> None:
    steps = rendered(Plan([b"abc", b"de"], framing=Framing.CLOSE, fault=Fault.RESET, fault_at=at))
    assert b"".join(steps[1:-1]) == b"abcde"[:at]
    assert steps[-1] is Fault.RESET


def test_a_fault_at_the_end_leaves_the_last_chunk_out() -> None:
    assert rendered(Plan([b"a"], fault=Fault.CUT))[1:] == [b"1\r\na\r\n", Fault.CUT]


def test_a_fault_in_the_head_cuts_it_there() -> None:
    assert rendered(Plan(fault=Fault.STALL, fault_in_head=True, fault_at=8)) == [b"HTTP/1.1", Fault.STALL]


def test_a_fault_beyond_the_body_is_a_mistake_of_the_test() -> None:
    with pytest.raises(AssertionError, match="before its fault"):
        rendered(Plan([b"abc"], framing=Framing.CLOSE, fault=Fault.CUT, fault_at=4))


def test_pieces_and_what_is_sent_at_once_have_sizes() -> None:
    plan = Plan([b"abcde"], piece_bytes=2, interval_s=0.1, framing=Framing.CLOSE)
    assert rendered(plan)[1:] == [b"ab", Wait(0.1), b"cd", Wait(0.1), b"e"]
    assert all(len(step) == 1 for step in rendered(Plan(EVENTS, wire_bytes=1)))


def test_a_stream_is_made_as_servers_make_it() -> None:
    objects = [json.loads(event[6:]) for event in EVENTS[:-1]]
    assert [one["choices"][0]["delta"] for one in objects[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": "two"},
        {},
    ]
    assert objects[-2]["choices"][0]["finish_reason"] == "stop"
    assert objects[-1]["choices"] == []
    assert objects[-1]["usage"]["total_tokens"] == 5
    assert EVENTS[-1] == b"data: [DONE]\n\n"
    assert len(openai_stream([], finish=None, done=False, role=False)) == 0


def test_patterns_have_names() -> None:
    assert all(plan_named(name) is plan for name, plan in PATTERNS.items())
    assert plan_named("abort:3").body == openai_stream(["chunk 0 ", "chunk 1 ", "chunk 2 "], finish=None, done=False)
    assert plan_named("abort:x").body == plan_named("abort:5").body
    assert plan_named("429:7").headers == (("Retry-After", "7"),)
    assert "status:ARGUMENT" in names()


# ---- HTTP/1.1


def test_curl_reads_a_whole_answer_by_every_transport(upstream: Upstream) -> None:
    upstream.answer("curl", Plan(EVENTS))
    for url, *arguments in (
        [upstream.base],
        [upstream.base, "--http2-prior-knowledge"],
        ["http://localhost/v1", "--unix-socket", upstream.unix_path],
        [upstream.tls_base, "--http1.1"],
        [upstream.tls_base, "--http2"],
    ):
        done = curl(upstream, url, "curl", *arguments, "-w", "%{http_version}")
        version = "2" if "--http2" in " ".join(arguments) else "1.1"
        assert (done.stdout, done.returncode) == (BODY + version.encode(), 0), done.stderr
    kinds = {upstream.connections()[seen.connection].kind for seen in upstream.requests("curl")}
    assert kinds == {"tcp", "unix", "tls"}
    assert [seen.protocol for seen in upstream.requests("curl")] == [
        *("HTTP/1.1", "HTTP/2", "HTTP/1.1", "HTTP/1.1", "HTTP/2"),
    ]


def test_a_request_is_recorded(upstream: Upstream) -> None:
    before_s = time.monotonic()
    curl(upstream, upstream.base, "recorded", "-H", "Authorization: Bearer KEY", "-H", "X-Twice: 1", "-H", "X-Twice: 2")
    (request,) = upstream.requests("recorded")
    assert request.json == {"model": "recorded"}
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.header("authorization") == "Bearer KEY"
    assert request.values("x-twice") == ["1", "2"]
    assert request.header("X-None") is None
    assert before_s < request.at_s < time.monotonic()


def test_plans_are_taken_in_order_and_the_last_one_stays(upstream: Upstream) -> None:
    upstream.answer("order", plan_named("status:500"), plan_named("429:7"), Plan(EVENTS))
    codes = [curl(upstream, upstream.base, "order", "-o", "/dev/null", "-w", "%{http_code}").stdout for _ in range(4)]
    assert codes == [b"500", b"429", b"200", b"200"]


def test_a_request_is_known_by_its_id_before_its_model(upstream: Upstream) -> None:
    upstream.answer("known", Plan([b"by model"]))
    upstream.answer("id-1", Plan([b"by id"]))
    assert curl(upstream, upstream.base, "known", "-H", "X-Request-Id: id-1").stdout == b"by id"
    assert curl(upstream, upstream.base, "known").stdout == b"by model"
    assert len(upstream.requests("id-1")) == 1
    assert len(upstream.requests("known")) == 2


def test_a_header_names_a_pattern(upstream: Upstream) -> None:
    done = curl(upstream, upstream.base, "pattern", "-H", "X-Test-Pattern: 429:7", "-D", "-")
    assert b"Retry-After: 7\r\n" in done.stdout


def test_the_body_may_depend_on_the_request(upstream: Upstream) -> None:
    upstream.answer("depends", Plan(lambda request: [request.path.encode()]))
    assert curl(upstream, upstream.base, "depends").stdout == b"/v1/chat/completions"


def test_interim_responses_come_before_the_head(upstream: Upstream) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    raw, _ = answer_to(upstream, "interim", Plan(EVENTS, interim=interim, framing=Framing.CLOSE))
    assert raw.startswith(interim + b"HTTP/1.1 200 OK\r\n")
    assert raw.endswith(b"\r\n\r\n" + BODY)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.CUT])
def test_faults_reach_the_client(upstream: Upstream, fault: Fault) -> None:
    plan = Plan(EVENTS, framing=Framing.CLOSE, fault=fault, fault_at=100)
    raw, is_reset = answer_to(upstream, f"fault {fault.value}", plan)
    assert raw.partition(b"\r\n\r\n")[2] == BODY[:100]
    assert is_reset == (fault is Fault.RESET)


def test_a_head_can_be_anything(upstream: Upstream) -> None:
    settings = b"\0\0\0\x04\0\0\0\0\0"
    raw, _ = answer_to(upstream, "frames", Plan(head=settings, framing=Framing.CLOSE))
    assert raw == settings


@pytest.mark.parametrize("plan", [Plan(fault=Fault.STALL, fault_in_head=True, fault_at=0), Plan(fault=Fault.STALL)])
def test_a_stall_lasts_until_the_client_leaves(upstream: Upstream, plan: Plan) -> None:
    model = f"stall {plan.fault_in_head}"
    upstream.answer(model, plan)
    with connect(upstream) as client:
        client.sendall(request_for(model))
        (request,) = upstream.wait_for_requests(1, model)
        if not plan.fault_in_head:
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert request.left_s is None
        left_s = time.monotonic()
    assert 0 <= upstream.wait_gone(request) - left_s < 0.25


def test_a_gate_holds_an_answer(upstream: Upstream) -> None:
    gate = Gate()
    upstream.answer("gate", Plan([EVENTS[0], gate, *EVENTS[1:]], framing=Framing.CLOSE))
    with connect(upstream) as client:
        client.sendall(request_for("gate"))
        read_until(client, EVENTS[0])
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        gate.open()
        client.settimeout(5)
        assert read_to_end(client)[0] == b"".join(EVENTS[1:])


def test_a_client_that_does_not_read_stops_the_answer(upstream: Upstream) -> None:
    upstream.answer("pressure", Plan([b"x" * 65_536] * 1000))
    with connect(upstream) as client:
        client.sendall(request_for("pressure"))
        (request,) = upstream.wait_for_requests(1, "pressure")
        upstream.wait_sent(request, 100_000)
        sent = -1
        while sent != request.sent_bytes:
            sent = request.sent_bytes
            time.sleep(0.1)
        assert sent < 20 << 20


def test_a_connection_is_kept_or_closed_as_planned(upstream: Upstream) -> None:
    upstream.answer("after", Plan(EVENTS), Plan(EVENTS, after=After.CLOSE))
    before = len(upstream.connections())
    with connect(upstream) as client:
        for _ in range(2):
            client.sendall(request_for("after"))
            read_until(client, b"0\r\n\r\n")
        assert client.recv(1) == b""
    first, second = upstream.requests("after")
    assert first.connection == second.connection
    assert len(upstream.connections()) == before + 1


@pytest.mark.parametrize("after", [After.CLOSE_ON_REQUEST, After.RESET_ON_REQUEST])
def test_a_kept_connection_can_be_closed_by_the_next_request(upstream: Upstream, after: After) -> None:
    model = after.value
    upstream.answer(model, Plan(EVENTS, after=after))
    before = upstream.journal.dropped_count
    with connect(upstream) as client:
        client.sendall(request_for(model))
        read_until(client, b"0\r\n\r\n")
        client.sendall(request_for(model))
        raw, is_reset = read_to_end(client)
    assert raw == b""
    assert is_reset or after is After.CLOSE_ON_REQUEST
    assert len(upstream.requests(model)) == 1
    assert upstream.journal.dropped_count == before + 1


def test_idle_connections_are_closed_when_asked(upstream: Upstream) -> None:
    upstream.answer("idle", Plan(EVENTS))
    with connect(upstream) as client:
        client.sendall(request_for("idle"))
        read_until(client, b"0\r\n\r\n")
        upstream.close_idle()
        assert client.recv(1) == b""


@pytest.mark.parametrize("accept", [Accept.CLOSE, Accept.RESET, Accept.SILENT])
def test_connections_can_be_refused_without_an_answer(accept: Accept) -> None:
    with Upstream() as upstream:
        upstream.accept = accept
        with connect(upstream) as client:
            if accept is Accept.SILENT:
                client.sendall(request_for("x"))
                client.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    client.recv(1)
            else:
                assert read_to_end(client) == (b"", accept is Accept.RESET)
        assert upstream.connections() == []
        upstream.journal.wait(lambda: upstream.connections(used=False)[0].closed_s is not None, "its end", 5)


def test_a_connect_to_a_full_backlog_hangs_and_to_an_unused_port_does_not() -> None:
    with full_backlog() as port, socket.socket() as client:
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.connect(("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", unused_port()))


# ---- HTTP/2, with the h2 client side


class Http2Client:
    """As little as is needed: one connection, read until something is so."""

    def __init__(self, upstream: Upstream, *, tls: bool, window_bytes: int = 65_535) -> None:
        raw = socket.create_connection(("127.0.0.1", upstream.tls_port if tls else upstream.tcp_port))
        raw.settimeout(5)
        self.socket: socket.socket = raw
        if tls:
            context = ssl.create_default_context(cafile=upstream.ca_file)
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(raw, server_hostname="localhost")
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.connection.initiate_connection()
        self.connection.update_settings({4: window_bytes})
        self.bodies: dict[int, bytes] = {}
        self.events: list[h2.events.Event] = []
        self.acknowledges = True

    def ask(self, model: str) -> int:
        number = self.connection.get_next_available_stream_id()
        path = "/v1/chat/completions"
        pairs = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.connection.send_headers(number, pairs)
        self.connection.send_data(number, json.dumps({"model": model}).encode(), end_stream=True)
        self.bodies[number] = b""
        self.flush()
        return number

    def flush(self) -> None:
        self.socket.sendall(self.connection.data_to_send())

    def read(self) -> bool:
        """One receive; False at the connection's end."""
        data = self.socket.recv(65536)
        for event in self.connection.receive_data(data) if data else []:
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                assert event.stream_id is not None
                self.bodies[event.stream_id] += event.data or b""
                if self.acknowledges:
                    self.connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        self.flush()
        return bool(data)

    def read_until(self, kind: type[h2.events.Event], number: int) -> Any:  # noqa: ANN401  (one of many kinds)
        while True:
            for event in self.events:
                if isinstance(event, kind) and getattr(event, "stream_id", number) == number:
                    return event
            assert self.read(), f"the connection ended without {kind.__name__}"


@pytest.mark.parametrize("tls", [False, True])
def test_http2_answers_many_streams_of_one_connection(upstream: Upstream, tls: bool) -> None:
    upstream.answer("h2", Plan(EVENTS, piece_bytes=7))
    client = Http2Client(upstream, tls=tls)
    numbers = [client.ask("h2") for _ in range(5)]
    for number in numbers:
        client.read_until(h2.events.StreamEnded, number)
        assert client.bodies[number] == BODY
    client.socket.close()


def test_http2_waits_for_the_window(upstream: Upstream) -> None:
    upstream.answer("window", Plan([b"x" * 200_000]))
    client = Http2Client(upstream, tls=False, window_bytes=10_000)
    client.acknowledges = False
    number = client.ask("window")
    while len(client.bodies[number]) < 10_000:
        assert client.read()
    (request,) = upstream.requests("window")
    upstream.wait_sent(request, 10_000)
    assert request.sent_bytes == 10_000
    client.acknowledges = True
    client.connection.increment_flow_control_window(500_000, number)
    client.connection.increment_flow_control_window(500_000)
    client.flush()
    client.read_until(h2.events.StreamEnded, number)
    assert len(client.bodies[number]) == 200_000
    client.socket.close()


def test_http2_faults(upstream: Upstream) -> None:
    upstream.answer("h2 reset", Plan(EVENTS, fault=Fault.RESET, fault_at=50))
    upstream.answer("h2 stall", Plan(EVENTS, fault=Fault.STALL, fault_at=50))
    upstream.answer("h2 goaway", Plan(EVENTS, fault=Fault.GOAWAY, fault_at=50))
    client = Http2Client(upstream, tls=True)
    reset, stalled = client.ask("h2 reset"), client.ask("h2 stall")
    client.read_until(h2.events.StreamReset, reset)
    assert client.bodies[reset] == BODY[:50]
    while len(client.bodies[stalled]) < 50:
        assert client.read()
    (request,) = upstream.requests("h2 stall")
    assert request.left_s is None
    left_s = time.monotonic()
    client.connection.reset_stream(stalled)
    client.flush()
    assert 0 <= upstream.wait_gone(request) - left_s < 0.25
    number = client.ask("h2 goaway")
    assert client.read_until(h2.events.ConnectionTerminated, number).last_stream_id == number - 2
    assert not client.read()
    client.socket.close()


# ---- by hand


def test_it_can_be_started_by_hand() -> None:
    port = unused_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.upstream", "--tcp-port", str(port), "--pattern", "short"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert line.startswith(f"http://127.0.0.1:{port}/v1 https://localhost:")
    done = subprocess.run(["curl", "-sS", "-d", "{}", line.split()[0]], check=True, capture_output=True)
    assert done.stdout.endswith(b"data: [DONE]\n\n")
    assert b"HTTP/1.1 POST /v1" in process.stdout.readline()
    process.terminate()
    assert process.wait(10) == 0
    process.stdout.close()
