"""What goes wrong while mel features stream: slow and broken uploads, engines that fail, very long audio.

Files go through the daemon as a process, uploads through the real planes in this one, by the door of the HTTP front.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from backends.mel.formats import BLOCK, END, ERROR, FRAMES
from backends.mel.reference import features
from config.mel import MelBackend
from config.settings import BackendSettings, Performance, Timeouts
from daemon.plane import state as st
from tests.backends.mel.signals import speech
from tests.behaviour.daemon_process import DONE, HEAD, Daemon
from tests.daemon.control import upload_planes
from tests.daemon.control.upload_planes import Planes, everything, send_all

if TYPE_CHECKING:
    from collections.abc import Iterator

soundfile: Any = importlib.import_module("soundfile")
SOUND = speech()
PCM = (SOUND * 32_767).astype("<i2")
EXPECTED = features(PCM, 80, "none")
MINUTE = np.tile(PCM, 30)
BINARY = b'{"options":{"format":"binary","dtype":"float16"}}'
SETTINGS = msgspec.structs.replace(
    upload_planes.SETTINGS,
    performance=Performance(body_buffer_count=8),
    backend=BackendSettings(mel=MelBackend(enabled=True, audio_bytes_max=0, audio_seconds_max=0)),
)
IMPATIENT = Timeouts(first_byte_timeout_ms=1500, silence_timeout_ms=1500, linger_timeout_ms=500)
GROWTH_BYTES_MAX = 16 << 20


@pytest.fixture(scope="module")
def shared(kernel: str) -> Iterator[Planes]:
    made = Planes(kernel, SETTINGS)
    yield made
    made.close()


@pytest.fixture
def planes(shared: Planes) -> Planes:
    wait_until_free(shared)
    shared.reasons.clear()
    return shared


@pytest.fixture
def impatient(planes: Planes) -> Iterator[Planes]:
    """The same with short deadlines."""
    planes.reload(msgspec.structs.replace(planes.settings, timeouts=IMPATIENT))
    yield planes
    planes.reload(planes.settings)


@pytest.fixture(scope="module")
def mel(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("mel")
    soundfile.write(folder / "a.wav", PCM, 16_000)
    own = "".join(
        f'[backend.{name.lower()}]\nclass = "tests.behaviour.mel_failing:{name}"\ndata_dir = "{folder}"\n'
        for name in ("FailsAtOnce", "Fails", "Moves")
    )
    configuration = (
        f'[server]\ndata_dir = "{folder}"\n[backend.mel]\nenabled = true\naudio_bytes_max = 0\nchunk_frames_max = 20\n'
    )
    running = Daemon(folder, kernel, configuration=configuration + own).start()
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "Traceback" not in running.log, running.log[-4000:]


def wait_until_free(planes: Planes) -> None:
    deadline_s = time.monotonic() + 60
    while planes.admission.active_count > 0:
        assert time.monotonic() < deadline_s, "a stream has not ended"
        time.sleep(0.005)


def wav(data: bytes, said_bytes: int | None = None) -> bytes:
    """A WAV of 16-bit mono at 16 kHz whose head says so many bytes of audio."""
    size = len(data) if said_bytes is None else said_bytes
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    return b"RIFF" + struct.pack("<I", size + 36) + b"WAVE" + layout + b"data" + struct.pack("<I", size) + data


def frames_of(events: bytes) -> npt.NDArray[np.float32]:
    said = [json.loads(event[6:]) for event in events.split(b"\n\n") if event.startswith(b'data: {"first"')]
    return np.concatenate([np.frombuffer(base64.b64decode(one["frames"]), "<f4").reshape(-1, 80) for one in said])


def blocks_of(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, first frame and content of each block; the last one must be whole."""
    view, start = memoryview(data), 0
    while start < len(view):
        _, number_type, kind, bins, first, count = BLOCK.unpack_from(view, start)
        end = start + BLOCK.size + (count * bins * (2 if number_type else 4) if kind == FRAMES else count)
        assert end <= len(view), "a block was cut"
        yield kind, first, bytes(view[start + BLOCK.size : end])
        start = end


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


# ---- uploads that stall, break off, or are none


def test_an_upload_that_stalls_before_its_first_frame_is_a_408(impatient: Planes) -> None:
    with impatient.upload(32_000, chunked=False, backend="mel") as client:
        client.sendall(bytes(100))
        answer = everything(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(body)["error"]["message"] == "the upload did not continue in time"
    assert impatient.ended(1) == [st.FIRST_BYTE_TIMEOUT]


@pytest.mark.parametrize("said", [b"", BINARY])
def test_an_upload_that_stalls_in_mid_stream_is_ended_and_says_why(impatient: Planes, said: bytes) -> None:
    with impatient.upload(1 << 20, chunked=False, backend="mel", said=said) as client:
        client.sendall(PCM[:8000].tobytes())
        answer = everything(client)
    assert impatient.ended(1) == [st.SILENCE_TIMEOUT]
    body = answer.removeprefix(upload_planes.HEAD)
    if said:
        assert [kind for kind, _, _ in blocks_of(body)].count(END) == 0
        return
    _, _, last = body.rpartition(b"event: error\ndata: ")
    assert "the upload fell silent" in last.decode()
    assert DONE not in answer
    assert np.abs(frames_of(body) - EXPECTED[: len(frames_of(body))]).max() < 2e-6


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "there is no audio"),
        (wav(b""), "no samples"),
        (wav(PCM.tobytes())[:30], "head"),
        (b"fLaC" + bytes(1000), "s16le"),
    ],
)
def test_what_is_no_audio_is_a_status(planes: Planes, body: bytes, word: str) -> None:
    with planes.upload(len(body), body, chunked=False, backend="mel") as client:
        answer = everything(client)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 415 ")), answer
    assert word in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    planes.ended(1)


@pytest.mark.parametrize("form", ["sse", "ndjson", "binary"])
def test_a_wav_that_ends_before_its_head_says_has_no_true_end(planes: Planes, form: str) -> None:
    body = wav(PCM.tobytes(), PCM.nbytes + 1000)
    said = json.dumps({"options": {"format": form}}).encode()
    with planes.upload(len(body), chunked=False, backend="mel", said=said) as client:
        sender = send_all(client, body)
        answer = everything(client).removeprefix(upload_planes.HEAD)
        sender.join()
    assert planes.ended(1) == [st.BODY_TRUNCATED]
    why = "the upload ends 1000 bytes before its WAV head says"
    if form == "sse":
        assert answer.rpartition(b"event: error\ndata: ")[1]
        assert why in answer.decode()
        assert DONE not in answer
    elif form == "ndjson":
        assert json.loads(answer.splitlines()[-1]) == {"error": {"status": 400, "message": why}}
    else:
        *blocks, (kind, _, text) = blocks_of(answer)
        assert (kind, text.decode()) == (ERROR, f"400 {why}")
        assert {kind for kind, _, _ in blocks} == {FRAMES}


def test_a_client_that_leaves_in_mid_upload_frees_everything(planes: Planes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for chunked in (False, True):
        for _ in range(4):
            with planes.upload(None if chunked else 1 << 24, chunked=False, backend="mel") as client:
                client.sendall((b"10000\r\n" if chunked else b"") + MINUTE[:32_768].tobytes())
                assert client.recv(10)
    assert set(planes.ended(8)) <= {st.CLIENT_GONE, st.BODY_TRUNCATED}
    wait_until_free(planes)
    assert len(os.listdir("/proc/self/fd")) <= before + 8  # a worker's own, where it is the first that is needed
    body = PCM.tobytes()
    with planes.upload(len(body), chunked=False, backend="mel") as client:
        sender = send_all(client, body)
        answer = everything(client)
        sender.join()
    assert np.abs(frames_of(answer.removeprefix(upload_planes.HEAD)) - EXPECTED).max() < 2e-6


# ---- backpressure


def test_a_client_that_does_not_read_stops_its_upload_and_loses_nothing(planes: Planes) -> None:
    """An hour of audio against a client that sleeps: it stops in full sockets, then everything arrives."""
    rounds = 60
    body = MINUTE.tobytes()
    sent = [0]

    def send(client: socket.socket) -> None:
        for _ in range(rounds):
            for start in range(0, len(body), 65_536):
                client.sendall(body[start : start + 65_536])
                sent[0] += 65_536

    with planes.upload(rounds * len(body), chunked=False, backend="mel", said=BINARY) as client:
        sender = threading.Thread(target=send, args=(client,))
        sender.start()
        assert client.recv(len(upload_planes.HEAD), socket.MSG_WAITALL) == upload_planes.HEAD
        before, stopped_at = resident_bytes(), -1
        while sent[0] != stopped_at:
            stopped_at = sent[0]
            time.sleep(0.3)
        assert sender.is_alive()
        assert stopped_at < 4 << 20, "it is in no buffer of ours"
        assert resident_bytes() - before < GROWTH_BYTES_MAX
        *blocks, (kind, count, _) = blocks_of(everything(client))
        sender.join()
    assert (kind, count) == (END, 1 + rounds * len(MINUTE) // 160)
    assert planes.ended(1) == [st.COMPLETE]
    got = np.frombuffer(b"".join(content for _, _, content in blocks), "<f2").reshape(-1, 80)
    expected = features(MINUTE, 80, "none")[:-2].astype("<f2")
    period = len(MINUTE) // 160
    assert len(MINUTE) % 160 == 0
    # Away from its seams every repetition is the same, frame by frame.
    for repetition in (1, rounds // 2, rounds - 2):
        part = got[repetition * period + 3 : repetition * period + 3000]
        assert np.abs(part.astype(float) - expected[3:3000].astype(float)).max() < 8e-3


# Ten hours of an upload on one kernel, of a file on the other: both kernels and both sources, in half the time.
@pytest.mark.parametrize("kernel", ["epoll"], indirect=True, scope="module")
def test_ten_hours_of_upload_take_no_more_memory_than_a_minute(planes: Planes) -> None:
    rounds = 600
    body = MINUTE.tobytes()

    def send(client: socket.socket) -> None:
        for _ in range(rounds):
            client.sendall(body)

    with planes.upload(rounds * len(body), chunked=False, backend="mel", said=BINARY) as client:
        sender = threading.Thread(target=send, args=(client,))
        sender.start()
        received, sampled, tail = 0, [0] * 2, b""
        while piece := client.recv(1 << 20):
            received += len(piece)
            tail = (tail + piece)[-64:]
            if received > 20 << 20:  # everything that is made once has been made
                sampled = [sampled[0] or resident_bytes(), max(sampled[1], resident_bytes())]
        sender.join()
    frame_count = 1 + rounds * len(MINUTE) // 160
    assert rounds * len(MINUTE) / 16_000 >= 36_000
    assert BLOCK.unpack(tail[-16:])[2:] == (END, 80, frame_count, 0)
    assert sampled[1] - sampled[0] < GROWTH_BYTES_MAX, f"from {sampled[0]} to {sampled[1]} bytes"


@pytest.mark.parametrize("kernel", ["io_uring"], indirect=True, scope="module")
def test_ten_hours_of_a_file_take_no_more_memory_than_a_minute(mel: Daemon) -> None:
    seconds, file = 36_000, mel.directory / "long.wav"
    with file.open("wb") as written:
        written.write(wav(b"", seconds * 32_000))
        written.truncate(44 + seconds * 32_000)  # a hole: silence that takes no space
    said = {"backend": "mel", "audio_path": "long.wav", "options": {"format": "binary", "dtype": "float16"}}
    with mel.open(said) as client:
        received, sampled, tail = 0, [0] * 2, b""
        while piece := client.recv(1 << 20):
            received += len(piece)
            tail = (tail + piece)[-16:]
            if received > 20 << 20:
                sampled = [sampled[0] or mel.resident_bytes(), max(sampled[1], mel.resident_bytes())]
    assert BLOCK.unpack(tail)[2:] == (END, 80, 1 + seconds * 100, 0)
    assert sampled[1] - sampled[0] < GROWTH_BYTES_MAX, f"from {sampled[0]} to {sampled[1]} bytes"


# ---- engines that fail


def test_an_engine_that_fails_at_once_is_a_500(mel: Daemon) -> None:
    answer = mel.ask({"backend": "failsatonce", "audio_path": "a.wav"})
    assert answer.status == 500
    assert answer.problem["detail"] == "the device has gone"


@pytest.mark.parametrize("form", ["sse", "ndjson", "binary"])
def test_an_engine_that_fails_in_mid_stream_ends_it_and_says_so(mel: Daemon, form: str) -> None:
    soundfile.write(mel.directory / "minute.wav", MINUTE, 16_000)
    answer = mel.ask({"backend": "fails", "audio_path": "minute.wav", "options": {"format": form}})
    assert answer.status == 200
    if form == "sse":
        frames, _, error = answer.body.rpartition(b"event: error\ndata: ")
        assert "the device has gone" in error.decode()
        assert len(frames_of(frames)) > 0
    elif form == "ndjson":
        assert json.loads(answer.body.splitlines()[-1]) == {"error": {"status": 500, "message": "the device has gone"}}
    else:
        *blocks, (kind, _, text) = blocks_of(answer.body)
        assert (kind, text) == (ERROR, b"500 the device has gone")
        assert {kind for kind, _, _ in blocks} == {FRAMES}
    mel.wait_idle()


def test_a_gpu_that_fails_in_mid_stream_costs_no_frame(mel: Daemon) -> None:
    soundfile.write(mel.directory / "minute.wav", MINUTE[: 16_000 * 20], 16_000)
    answer = mel.ask({"backend": "moves", "audio_path": "minute.wav"})
    assert answer.head == HEAD
    assert answer.body.endswith(DONE)
    expected = features(MINUTE[: 16_000 * 20], 80, "none")
    assert np.abs(frames_of(answer.body) - expected).max() < 2e-6
    assert "fake GPU 0 failed (launch failed: the test wants it)" in mel.log
