"""What used to end or stall the whole daemon when one client sent it: now it ends that client's connection alone."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING

import pytest

from daemon.control.http.uvicorn.whole import BODY_WAIT_S
from tests.behaviour.daemon_process import LATE_S_MAX, ROOT, Daemon
from tests.behaviour.http_helpers import (
    COMPLETIONS,
    Front,
    Wire,
    asking,
    get,
    http_config,
    post,
    serving,
    tls,
    tokens_of,
    url_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD_TIMEOUT_MS = 2000
CONTINUATION, TEXT, BINARY, CLOSE, PING = 0, 1, 2, 8, 9
KEY = "alices-long-key"
UPLOAD = {"Authorization": f"Bearer {KEY}", "Content-Type": "audio/pcm"}
AUTHORIZATION = f"Authorization: Bearer {KEY}\r\n"
CONTAINED = "streaming_daemon_contained_exceptions_total"


@pytest.fixture(name="front", scope="module", params=["plain", "keys and TLS"])
def _front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("attacks")
    http: dict[str, object] = {"head_timeout_ms": HEAD_TIMEOUT_MS}
    other = "[backend.mel]\nenabled = true"
    if request.param != "plain":
        keys = directory / "keys"
        keys.touch(mode=0o600)
        keys.write_text(f"alice: {KEY}\n")
        http |= {**tls(), "api_keys_file": str(keys)}
        other = ""
    with serving("epoll", directory, http_config(http, other)) as front:
        yield front


def is_well(front: Front) -> None:
    """It still answers, and nothing that was sent needed to be contained."""
    headers = {"Authorization": f"Bearer {KEY}"}
    assert front.post(COMPLETIONS, asking(stream=False, max_tokens=2), headers).json["choices"][0]["text"] == (
        tokens_of(2)
    )
    kinds = ("connection", "task", "callback", "other")
    assert [front.daemon.metric(f'{CONTAINED}{{kind="{kind}"}}') for kind in kinds] == [0, 0, 0, 0]


# ---- WebSockets


def handshake(path: str, headers: str = "") -> bytes:
    """A request for a WebSocket."""
    asked = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    return get(path, f"{asked}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}")


def frame(opcode: int, data: bytes = b"", *, is_final: bool = True) -> bytes:
    """A client's frame, which is masked (by zeros)."""
    assert len(data) < 1 << 16
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
    return bytes([opcode | is_final << 7]) + size + bytes(4) + data


def ends_with_close(wire: Wire, code: int) -> None:
    """The connection ends, and the last that comes is a Close with this code."""
    rest = wire.rest()
    assert b"\x88" in rest, rest
    assert struct.unpack_from("!H", rest, rest.rindex(b"\x88") + 2) == (code,), rest


BEHIND_THE_HANDSHAKE = {
    "text": frame(TEXT, b'{"a":'),
    "binary": frame(BINARY, bytes(3000)),
    "a ping": frame(PING, b"ping"),
    "an empty Close": frame(CLOSE),
    "a Close": frame(CLOSE, struct.pack("!H", 1000)),
    "a Close of one byte": frame(CLOSE, b"\0"),
    "two Closes": frame(CLOSE) * 2,
    "text and a Close": frame(TEXT, b"{}") + frame(CLOSE),
    "text that is not UTF-8 and a Close": frame(TEXT, b"\xff") + frame(CLOSE),
    "a continuation": frame(CONTINUATION, b"a"),
    "half a message and a Close": frame(TEXT, b"a", is_final=False) + frame(CLOSE),
    "half a frame": frame(TEXT, b"abcdef")[:-3],
    "a frame without a mask": b"\x81\x02hi",
    "an unknown opcode": frame(3),
    "a frame that is too long": b"\x82\xff" + struct.pack("!Q", 1 << 62) + bytes(4),
    "rubbish": b"\xff" * 200,
    "a request": get("/health"),
}


@pytest.mark.parametrize("name", BEHIND_THE_HANDSHAKE)
def test_what_comes_in_one_packet_with_a_handshake(front: Front, name: str) -> None:
    attack = BEHIND_THE_HANDSHAKE[name]
    with front.leaves_nothing():
        for path in ("/audio/ws", "/nothing", "/"):
            for headers in ("", AUTHORIZATION):
                with front.connect() as wire:
                    wire.send(handshake(path, headers) + attack)
                    assert wire.reply().status == (101 if path == "/audio/ws" else 403)
                with front.connect() as wire:  # who does not wait for the answer
                    wire.send(handshake(path, headers) + attack)
    is_well(front)


def test_a_message_that_comes_with_the_handshake_is_read(front: Front) -> None:
    with front.connect() as wire:
        wire.send(handshake("/audio/ws", AUTHORIZATION) + frame(TEXT, b"[]") + frame(CLOSE, struct.pack("!H", 1000)))
        assert wire.reply().status == 101
        ends_with_close(wire, 1000)
    with front.connect() as wire:
        wire.send(handshake("/audio/ws", AUTHORIZATION) + frame(CONTINUATION, b"a"))
        assert wire.reply().status == 101
        ends_with_close(wire, 1002)
    is_well(front)


@pytest.mark.parametrize("behind", [b"", frame(CLOSE), frame(TEXT, b"\xff"), b"\xff" * 30], ids=range(4))
def test_text_that_is_not_utf_8_closes_the_connection(front: Front, behind: bytes) -> None:
    with front.leaves_nothing():
        for text in (frame(TEXT, b"\xff"), frame(TEXT, b"\xe2\x82", is_final=False) + frame(CONTINUATION, b"")):
            with front.connect() as wire:
                wire.send(handshake("/audio/ws"))
                assert wire.reply().status == 101
                wire.send(text + behind)
                assert b"\x88" in wire.until(b"\x88")
    is_well(front)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/audio/ws?" + "a" * 8200, ""),
        ("/audio/ws", f"X-Long: {'a' * 8200}\r\n"),
        ("/audio/ws", "".join(f"X-{number}: a\r\n" for number in range(130))),
        ("/audio/ws", "X-Latin: \xe4\r\nSec-WebSocket-Key: twice\r\n"),
    ],
    ids=["target", "field", "fields", "key"],
)
def test_a_handshake_that_cannot_be_read_is_answered_and_closed(front: Front, path: str, headers: str) -> None:
    with front.leaves_nothing(), front.connect() as wire:
        started_s = time.monotonic()
        wire.send(handshake(path, headers) + frame(TEXT, b"a"))
        assert wire.reply().status in {400, 414, 431}
        assert wire.rest() == b""
        assert time.monotonic() - started_s < HEAD_TIMEOUT_MS / 1000 + LATE_S_MAX
    is_well(front)


# ---- requests behind others


def test_an_upload_behind_another_request_is_no_longer_than_what_is_passed_on(front: Front) -> None:
    """More than 4,096 unread bytes of an upload do not fit in what the data plane is told."""
    first = post(COMPLETIONS, asking(stream=False, max_tokens=1), {"Authorization": f"Bearer {KEY}"})
    upload = post("/audio/stream?sample_format=s16le&sample_rate=16000", bytes(50_000), UPLOAD)
    for cut in (len(first) - 1, len(first) - 40, len(first)):
        for length in (3000, 5000, 20_000, 40_000, len(upload)):
            with front.leaves_nothing(), front.connect() as wire:
                wire.send(first[:cut])
                time.sleep(BODY_WAIT_S * 2 if cut < len(first) and length == 20_000 else 0)
                wire.send(first[cut:] + upload[:length])
                assert wire.reply().json["choices"][0]["text"] == tokens_of(1)
                wire.send(upload[length:])
                reply = wire.reply()
                assert reply.status == (200 if front.url.startswith("http:") else 501), reply
                assert reply.status == 501 or b"event: error" not in reply.body, reply
    is_well(front)


# ---- fields


@pytest.mark.parametrize(
    "lines",
    [
        "Host: daemon\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n",
        "Host: daemon\r\nAuthorization: Bearer alices-long-key\r\nauthorization: Bearer alices-long-key\r\n",
        "Host:\r\n",
        "Host: \r\n",
        "Host: a b\r\n",
        "Host: user@daemon\r\n",
        "Host: daemon:port\r\n",
        "Host: [::1\r\n",
        "Host: d\xe4mon\r\n",
    ],
    ids=range(9),
)
def test_fields_that_could_be_read_in_two_ways_are_refused(front: Front, lines: str) -> None:
    body = b'{"stream":true}'
    for path in (COMPLETIONS, "/health"):
        head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        with front.connect() as wire:
            wire.send(head.encode("latin-1") + body + get("/health"))
            reply = wire.reply()
            assert (reply.status, reply.is_closing) == (400, True)
            assert reply.error["message"].startswith("header `")
            assert wire.rest() == b""
    with front.connect() as wire:
        asked = handshake("/audio/ws").replace(b"Host: daemon\r\n", lines.encode("latin-1"))
        wire.send(asked)
        assert wire.reply().status == 400
    is_well(front)


def test_bytes_that_are_not_utf_8_fail_nothing(front: Front) -> None:
    names = ("X-Request-Id", "Authorization", "Content-Type", "Origin", "Accept", "Cookie", "Traceparent", "X-\xff")
    asked = [get("/health", f"{name}: \xff\xfe\r\n").decode().encode("latin-1") for name in names]
    asked += [get(path).decode().encode("latin-1") for path in ("/\xff", "/?\xff", "/%ff", "/audio/ws?%ff=%ff")]
    raw = json.dumps(asking(max_tokens=1)).encode()
    for name in names[:-1]:
        head, _, body = post(COMPLETIONS, raw, {"Authorization": f"Bearer {KEY}"}).partition(b"\r\n\r\n")
        asked.append(head + f"\r\n{name}: \xff\r\n\r\n".encode("latin-1") + body)
        asked.append(handshake("/audio/ws", f"{name}: \xff\r\n").decode().encode("latin-1"))
    asked += [
        post(COMPLETIONS, body, {"Authorization": f"Bearer {KEY}"})
        for body in (b'{"prompt":"\xff"}', b'{"\xff":1}', b'{"unknown":"\xff"}', b"\xff", b'{"user":"\\ud800"}')
    ]
    with front.leaves_nothing():
        for request in asked:
            with front.connect() as wire:
                wire.send(request)
                assert wire.reply().status in {101, 200, 400, 401, 404, 415}, request
    for data in (b'{"prompt":"\xff"}', b'{"\xff":1}', b'{"unknown":"\xff"}', b"\xff"):
        assert front.daemon.ask(data).problem["status"] == 400
    is_well(front)


# ---- what is contained


def test_a_connection_whose_code_fails_ends_alone(tmp_path: Path) -> None:
    sabotage = [sys.executable, str(ROOT / "tests" / "daemon" / "sabotage.py"), "websocket"]
    daemon = Daemon(tmp_path, "epoll", configuration=http_config({}), wrapper=sabotage).start()
    try:
        front = Front(daemon, url_of(daemon))
        with front.leaves_nothing():
            os.kill(daemon.pid, signal.SIGUSR2)
            while "sabotaging" not in daemon.log:
                time.sleep(0.01)
            for _ in range(10):
                with front.connect() as wire:
                    wire.send(handshake("/audio/ws"))
                    assert wire.rest() == b""
            front.is_well()
        assert daemon.metric(f'{CONTAINED}{{kind="connection"}}') == 10
        assert daemon.metric("streaming_daemon_http_connections") == 0
        assert daemon.log.count("contained an exception in the code of one connection") == 1
        assert "RuntimeError: sabotaged" in daemon.log
        assert daemon.stop() == 0
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
