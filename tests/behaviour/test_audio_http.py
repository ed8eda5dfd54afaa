"""Features of audio that is still arriving: POST /audio/stream by curl, /audio/ws by the package websockets."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import re
import socket
import struct
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from backends.mel.formats import BLOCK, END, FRAMES
from backends.mel.reference import features
from tests.backends.mel.signals import speech
from tests.backends.mel.whisper_model import make_model
from tests.behaviour.daemon_process import DONE, LATE_S_MAX, Daemon
from tests.upstream.certificate import make_certificate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

soundfile: Any = importlib.import_module("soundfile")
SOUND = np.tile(speech(), 5)
PCM = (SOUND * 32_767).astype("<i2")
EXPECTED = features(PCM, 80, "none")
T = TypeVar("T")
KEY = "alices-long-key"
CONFIGURATION = """
[server]
data_dir = "{folder}"
[http]
listen = "127.0.0.1:0"
[backend.mel]
enabled = true
audio_bytes_max = 500000000
transcribe_model = "{folder}/model"
"""


@pytest.fixture(scope="module")
def daemon(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("audio")
    make_model(folder / "model")
    soundfile.write(folder / "a.wav", PCM, 16_000)
    soundfile.write(folder / "stereo.wav", np.stack([SOUND, SOUND[::-1]], axis=1), 48_000, subtype="FLOAT")
    PCM.tofile(folder / "a.pcm")
    running = Daemon(folder, kernel, configuration=CONFIGURATION.format(folder=folder)).start()
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "Traceback" not in running.log, running.log[-4000:]


def address_of(daemon: Daemon) -> str:
    found = re.search(r"http=\"?https?://([0-9.:]+)", daemon.log)
    assert found, daemon.log
    return found[1]


def curl(daemon: Daemon, query: str, *arguments: str, scheme: str = "http") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a POST."""
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--include", "--max-time", "60", *arguments]
    url = f"{scheme}://{address_of(daemon)}/audio/stream{query}"
    done = subprocess.run([*command, url], check=True, capture_output=True, cwd=daemon.directory)
    head, _, rest = done.stdout.partition(b"\r\n\r\n")
    while b" 100 " in head.split(b"\r\n")[0]:
        head, _, rest = rest.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return (
        int(first.split()[1]),
        {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines},
        rest,
    )


def frames_of_events(body: bytes) -> npt.NDArray[np.float32]:
    assert body.endswith(b"\n\n" + DONE), body[-300:]
    said = [json.loads(event[6:]) for event in body.removesuffix(DONE).split(b"\n\n")[:-1]]
    return np.concatenate(
        [np.frombuffer(base64.b64decode(one["frames"]), "<f4").reshape(-1, one["bins"]) for one in said]
    )


def frames_of_blocks(blocks: list[bytes]) -> npt.NDArray[np.float32]:
    """Each a whole block, the last one the true end."""
    parts: list[npt.NDArray[np.float32]] = []
    for block in blocks[:-1]:
        _, _, kind, bins, first, count = BLOCK.unpack_from(block)
        assert (kind, first) == (FRAMES, sum(map(len, parts)))
        parts.append(np.frombuffer(block, "<f4", offset=BLOCK.size).reshape(count, bins))
    assert BLOCK.unpack(blocks[-1])[2] == END
    return np.concatenate(parts)


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    return error


# ---- POST


WAYS = {
    "wav": ["-H", "Content-Type: audio/wav", "--data-binary", "@a.wav"],
    "raw": ["-H", "Content-Type: audio/pcm", "--data-binary", "@a.pcm"],
    "chunked": ["-X", "POST", "-H", "Content-Type: audio/wav", "-H", "Transfer-Encoding: chunked", "-T", "a.wav"],
    "expecting": ["-H", "Expect: 100-continue", "-H", "Content-Type: audio/wav", "--data-binary", "@a.wav"],
    "untyped": ["--data-binary", "@a.wav"],
    "1.0": ["--http1.0", "-H", "Content-Type: audio/wav", "--data-binary", "@a.wav"],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("normalisation", ["none", "whisper"])
def test_an_upload_gives_the_specifications_features(daemon: Daemon, way: str, normalisation: Any) -> None:  # noqa: ANN401
    status, headers, body = curl(daemon, f"?normalisation={normalisation}", *WAYS[way])
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert headers["x-request-id"]
    assert np.abs(frames_of_events(body) - features(PCM, 80, normalisation)).max() < 2e-6


def test_parameters_are_the_query(daemon: Daemon) -> None:
    status, headers, body = curl(
        daemon, "?format=binary&bins=128&sample_format=s16le&sample_rate=16000&channels=1", "--data-binary", "@a.pcm"
    )
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    expected = features(PCM, 128, "none")
    assert BLOCK.unpack(body[-BLOCK.size :])[2:] == (END, 128, len(expected), 0)
    status, headers, body = curl(daemon, "?format=ndjson", "--data-binary", "@stereo.wav")
    assert headers["content-type"] == "application/x-ndjson"
    assert json.loads(body.splitlines()[-1]) == {"end": True, "count": 1 + len(SOUND) // 3 // 160}


def test_text_of_an_upload(daemon: Daemon) -> None:
    status, headers, body = curl(daemon, "?transcribe=true&language=de&beam_size=1", "--data-binary", "@a.wav")
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    # A slow machine may need longer than the first keep-alive, a comment.
    *deltas, done, end, _ = [block for block in body.split(b"\n\n") if not block.startswith(b":")]
    assert end == b"data: [DONE]"
    text = "".join(json.loads(delta[6:])["delta"] for delta in deltas)
    assert text
    assert json.loads(done[6:])["text"] == text.strip()


@pytest.mark.parametrize(
    ("query", "arguments", "status", "word", "param"),
    [
        ("?bins=81", ["-d", "x"], 400, "parameter `bins`: known are 80, 128", "bins"),
        ("?bins=80&bins=80", ["-d", "x"], 400, "parameter `bins`: it is there twice", "bins"),
        ("?speed=2", ["-d", "x"], 400, "parameter `speed`: it is not known; known are beam_size, bins", "speed"),
        ("?sp%C3%A9%0Ad=2", ["-d", "x"], 400, "parameter `sp??d`: it is not known", "sp??d"),
        (f"?{'x' * 500}=2", ["-d", "x"], 400, f"parameter `{'x' * 64}`: it is not known", "x" * 64),
        ("?channels=100", ["-d", "x"], 400, "parameter `channels`: an integer from 1 to", "channels"),
        ("?sample_format=mp3", ["-d", "x"], 415, "parameter `sample_format`: known are", "sample_format"),
        ("?transcribe=yes", ["-d", "x"], 400, "parameter `transcribe`", "transcribe"),
        ("?language=de", ["-d", "x"], 400, "parameter `language`: it goes with `transcribe`", "language"),
        ("?transcribe=true&bins=80", ["-d", "x"], 400, "parameter `bins`: with `transcribe`", "bins"),
        ("?transcribe=true&language=xx", ["-d", "x"], 400, "parameter `language`: the model knows", "language"),
        ("", ["-X", "POST"], 400, "there is no audio", None),
        ("", ["-H", "Content-Type: audio/mpeg", "-d", "x"], 415, "WAV, s16le and f32le", "content-type"),
        ("", ["-H", "Content-Encoding: gzip", "-d", "x"], 415, "Content-Encoding", "content-encoding"),
        ("", ["-H", "Origin: https://a.example", "-d", "x"], 415, "Content-Type: audio/wav", "content-type"),
        ("", ["-H", "Content-Length: 600000000", "-H", "Expect: 100-continue", "-d", "x"], 413, "500000000", None),
    ],
)
def test_what_is_refused_says_why_and_names_the_field(
    daemon: Daemon, query: str, arguments: list[str], status: int, word: str, param: str | None
) -> None:
    got, headers, body = curl(daemon, query, *arguments)
    assert (got, headers["content-type"]) == (status, "application/json")
    error = error_of(body)
    assert word in error["message"]
    assert error["param"] == param


def test_frames_leave_while_audio_arrives_and_a_client_that_leaves_frees_all(daemon: Daemon) -> None:
    host, port = address_of(daemon).split(":")
    head = b"POST /audio/stream HTTP/1.1\r\nHost: a\r\nContent-Type: audio/pcm\r\nContent-Length: 99999998\r\n\r\n"
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(head + PCM[:16_000].tobytes())
            got = b""
            while b'"first":0' not in got:
                piece = client.recv(65_536)
                assert piece, got
                got += piece
    daemon.wait_idle()


# ---- WebSocket


def with_socket(daemon: Daemon, use: Callable[[ClientConnection], Awaitable[T]], **options: Any) -> T:  # noqa: ANN401
    async def run() -> T:
        async with connect(f"ws://{address_of(daemon)}/audio/ws", compression=None, max_size=1 << 22, **options) as one:
            return await use(one)

    return asyncio.run(asyncio.wait_for(run(), 60))


async def everything(client: ClientConnection) -> list[Any]:
    """All messages until the close."""
    messages: list[Any] = []
    with suppress(ConnectionClosed):
        while True:
            messages.append(await client.recv())
    return messages


@pytest.mark.parametrize("form", ["s16le", "f32le", "wav", "auto"])
def test_a_socket_gives_the_specifications_features(daemon: Daemon, form: str) -> None:
    data = PCM.tobytes()
    if form in {"wav", "auto"}:
        data = (daemon.directory / "a.wav").read_bytes()
    elif form == "f32le":
        data = (PCM / 32_768).astype("<f4").tobytes()

    async def use(client: ClientConnection) -> list[Any]:
        await client.send(json.dumps({"format": form, "sample_rate": 16_000, "channels": 1, "bins": 80}))
        got = asyncio.ensure_future(everything(client))
        for start in range(0, len(data), 9999):
            await client.send(data[start : start + 9999])
        await client.send('{"type":"end"}')
        return await got

    assert np.abs(frames_of_blocks(with_socket(daemon, use)) - EXPECTED).max() < 2e-6


def test_frames_leave_a_socket_while_audio_arrives(daemon: Daemon) -> None:
    async def use(client: ClientConnection) -> None:
        await client.send("{}")
        await client.send(PCM[:16_000].tobytes())
        first = await client.recv(decode=False)
        assert BLOCK.unpack_from(first)[2] == FRAMES

    with_socket(daemon, use)
    daemon.wait_idle()


@pytest.mark.parametrize(
    ("messages", "word", "param"),
    [
        (["no JSON"], "the first message", None),
        ([b"audio"], "the first message", None),
        (['{"bins":81}'], "parameter `bins`", "bins"),
        (['{"format":"mp3"}'], "parameter `format`: known are auto, wav", "format"),
        (['{"sample_format":"mp3"}'], "parameter `sample_format`: known are auto, wav", "sample_format"),
        (['{"format":"wav","speed":2}'], "parameter `speed`: it is not known", "speed"),
        (['{"transcribe":true}'], "POST /audio/stream", "transcribe"),
        (["{}", '{"type":"pause"}'], '{"type":"end"}', None),
        (["{}", '{"type":"end"}'], "there is no audio", None),
        (["{}", b"fLaC" + bytes(1000)], "known are WAV, s16le and f32le", None),
        (['{"format":"wav"}', b"RIFF" + struct.pack("<I", 99), '{"type":"end"}'], "head", None),
    ],
)
def test_a_socket_says_what_is_wrong_and_closes(
    daemon: Daemon, messages: list[Any], word: str, param: str | None
) -> None:
    async def use(client: ClientConnection) -> tuple[list[Any], int | None]:
        for message in messages:
            with suppress(ConnectionClosed):
                await client.send(message)
        return await everything(client), client.close_code

    got, closed_with = with_socket(daemon, use)
    assert closed_with == 1008
    error = error_of(got[-1])
    assert word in error["message"]
    assert error["param"] == param


def test_a_wav_that_is_cut_is_an_error_after_its_frames(daemon: Daemon) -> None:
    async def use(client: ClientConnection) -> list[Any]:
        await client.send('{"format":"wav"}')
        await client.send((daemon.directory / "a.wav").read_bytes()[:-1000])
        await client.send('{"type":"end"}')
        return await everything(client)

    *blocks, error = with_socket(daemon, use)
    assert {BLOCK.unpack_from(block)[2] for block in blocks} == {FRAMES}
    assert "the upload ends 1000 bytes before its WAV head says" in error_of(error)["message"]


def test_a_socket_that_is_not_read_stops_the_audio_and_loses_nothing(daemon: Daemon) -> None:
    rounds = 200
    data = PCM.tobytes()

    async def use(client: ClientConnection) -> list[Any]:
        await client.send('{"dtype":"float32"}')
        sent = [0]

        async def send() -> None:
            for _ in range(rounds):
                await client.send(data)
                sent[0] += 1
            await client.send('{"type":"end"}')

        sending = asyncio.ensure_future(send())
        before, stopped_at = daemon.resident_bytes(), -1
        while sent[0] != stopped_at:
            stopped_at = sent[0]
            await asyncio.sleep(0.5)
        assert stopped_at < rounds, "everything went into buffers"
        assert daemon.resident_bytes() - before < 32 << 20
        got = await everything(client)
        await sending
        return got

    frames = frames_of_blocks(with_socket(daemon, use))
    assert len(frames) == 1 + rounds * len(PCM) // 160


def test_pages_of_other_sites_are_refused(daemon: Daemon) -> None:
    async def use(client: ClientConnection) -> list[Any]:
        with suppress(ConnectionClosed):
            await client.send("{}")
            await client.send('{"type":"end"}')
        return await everything(client)

    (error,) = with_socket(daemon, use, origin="https://elsewhere.example")
    assert error_of(error)["code"] == "origin_refused"
    (error,) = with_socket(daemon, use, origin=f"http://{address_of(daemon)}")
    assert "there is no audio" in error_of(error)["message"]


# ---- TLS, and the daemon's end


def test_uploads_and_sockets_under_tls(kernel: str, tmp_path: Path) -> None:
    made = make_certificate()
    text = f'tls_certificate_file = "{made.certificate_file}"\ntls_key_file = "{made.key_file}"\n'
    text = f'[http]\nlisten = "127.0.0.1:0"\n{text}[backend.mel]\nenabled = true\n'
    daemon = Daemon(tmp_path, kernel, configuration=text).start()
    try:
        (tmp_path / "a.pcm").write_bytes(PCM.tobytes())
        secure = ("--cacert", str(made.certificate_file))
        for more in ((), ("-H", "Transfer-Encoding: chunked")):
            status, _, body = curl(daemon, "", *secure, *more, "--data-binary", "@a.pcm", scheme="https")
            assert status == 200
            assert np.abs(frames_of_events(body) - EXPECTED).max() < 2e-6
        assert curl(daemon, "?bins=81", *secure, "-d", "x", scheme="https")[0] == 400
    finally:
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_a_socket_goes_on_while_the_daemon_drains(kernel: str, tmp_path: Path) -> None:
    text = '[http]\nlisten = "127.0.0.1:0"\n[backend.mel]\nenabled = true\n'
    daemon = Daemon(tmp_path, kernel, configuration=text).start()
    half = len(PCM) // 2
    assert daemon.process is not None
    process = daemon.process

    async def use(client: ClientConnection) -> list[Any]:
        await client.send("{}")
        await client.send(PCM[:half].tobytes())
        first = await client.recv()
        process.terminate()
        while daemon.socket_path.exists():  # noqa: ASYNC110  (a process knows no event)
            await asyncio.sleep(0.02)
        await client.send(PCM[half:].tobytes())
        await client.send('{"type":"end"}')
        return [first, *await everything(client)]

    assert np.abs(frames_of_blocks(with_socket(daemon, use)) - EXPECTED).max() < 2e-6
    assert process.wait(30) == 0
    assert "Traceback" not in daemon.log


# ---- keys, and a daemon without mel


def test_keys_are_asked_for_in_every_way(kernel: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice: {KEY}\n")
    keys.chmod(0o600)
    text = f'[http]\nlisten = "127.0.0.1:0"\napi_keys_file = "{keys}"\n[backend.mel]\nenabled = true\n'
    daemon = Daemon(tmp_path, kernel, configuration=text).start()

    def asked(first: dict[str, Any], **options: Any) -> list[Any]:  # noqa: ANN401
        async def ask(client: ClientConnection) -> list[Any]:
            for message in (json.dumps(first), PCM.tobytes(), '{"type":"end"}'):
                with suppress(ConnectionClosed):
                    await client.send(message)
            return await everything(client)

        return with_socket(daemon, ask, **options)

    try:
        (tmp_path / "a.pcm").write_bytes(PCM.tobytes())
        assert curl(daemon, "", "--data-binary", "@a.pcm")[0] == 401
        assert curl(daemon, "", "-H", f"Authorization: Bearer {KEY}", "--data-binary", "@a.pcm")[0] == 200
        for first in ({}, {"key": "wrong"}):
            (error,) = asked(first)
            assert error_of(error)["type"] == "authentication_error"
        given = asked({"key": KEY})
        assert np.abs(frames_of_blocks(given) - EXPECTED).max() < 2e-6
        headers = {"Authorization": f"Bearer {KEY}"}
        given = asked({}, additional_headers=headers)
        assert np.abs(frames_of_blocks(given) - EXPECTED).max() < 2e-6
        # As the page does: a browser can send no header, but names of protocols, of which one must be accepted.
        bearer = "bearer." + base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
        given = asked({}, subprotocols=["streaming-daemon", bearer])
        assert np.abs(frames_of_blocks(given) - EXPECTED).max() < 2e-6
    finally:
        assert daemon.stop() == 0
    assert KEY not in daemon.log


def test_without_mel_it_is_a_501(kernel: str, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, kernel, ["--http", "127.0.0.1:0"]).start()
    try:
        status, _, body = curl(daemon, "", "-d", "x")
        assert (status, error_of(body)["code"]) == (501, "mel_disabled")
        (error,) = with_socket(daemon, everything)
        assert error_of(error)["code"] == "mel_disabled"
    finally:
        assert daemon.stop() == 0


def test_a_socket_that_says_nothing_is_closed_in_time(daemon: Daemon) -> None:
    async def use(client: ClientConnection) -> list[Any]:
        return await everything(client)

    began_s = time.monotonic()
    (error,) = with_socket(daemon, use)
    assert error_of(error)["message"] == "no parameters came in 10 s"
    assert 9.9 < time.monotonic() - began_s < 10 + LATE_S_MAX
