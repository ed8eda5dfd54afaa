"""The client of mel features: it streams what it is given, finds what is wrong in an answer, and marks its targets."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.mel import reference
from scripts import make_audio, mel_client
from tests.behaviour.daemon_process import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

soundfile: Any = importlib.import_module("soundfile")

ROOT = Path(__file__).resolve().parents[2]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def _event(first: int, frames: npt.NDArray[Any]) -> bytes:
    said = {"first": first, "count": len(frames), "bins": frames.shape[1], "dtype": frames.dtype.name}
    return b"data: " + json.dumps({**said, "frames": base64.b64encode(frames.tobytes()).decode()}).encode() + b"\n\n"


def _features(path: Path, wanted: dict[str, Any]) -> npt.NDArray[Any]:
    samples = soundfile.read(path, dtype="float32")[0]
    return reference.features(samples, wanted["bins"], wanted["normalisation"]).astype(wanted["dtype"])


class StandIn:
    """Answers every handoff on its socket, and spoils the answer as it is told."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.data_dir.mkdir()
        self.socket_path = folder / "daemon.sock"
        self.spoil: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = lambda frames: frames
        self.instead: bytes | None = None
        self.end = DONE
        self.handoffs: list[dict[str, Any]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.socket_path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def run(self, file: str | Path, *options: str) -> int:
        places = ["--socket", str(self.socket_path), "--data-dir", str(self.data_dir)]
        return mel_client.main([str(file), *places, "--rounds", "2", *options])

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection:
                data, (descriptor,), _, _ = socket.recv_fds(connection, 65_536, 1)
            threading.Thread(target=self._answer, args=(json.loads(data), descriptor)).start()

    def _answer(self, handoff: dict[str, Any], descriptor: int) -> None:
        self.handoffs.append(handoff)
        with socket.socket(fileno=descriptor) as client:
            if self.instead is not None:
                client.sendall(self.instead)
                return
            frames = self.spoil(_features(self.data_dir / handoff["audio_path"], handoff["options"]))
            client.sendall(HEAD + b": keep-alive\n\n")
            for first in range(0, len(frames), 100):
                client.sendall(_event(first, frames[first : first + 100]))
            client.sendall(self.end)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path)
    yield made
    made.close()


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    file = tmp_path / "chords.wav"
    assert make_audio.main(["chords", "--seconds", "2", "--output", str(file)]) == 0
    return file


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("normalisation", ["none", "running"])
def test_streams_are_checked_and_timed(
    stand_in: StandIn, sound: Path, normalisation: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.run(sound, "--streams", "3", "--bins", "128", "--normalisation", normalisation, "--dtype", dtype)
    captured = capsys.readouterr()
    assert "6 streams of 2.00 s, 3 at a time: 201 frames each" in captured.out, captured.err
    assert captured.out.count("| chunk p") == 3
    assert len(stand_in.handoffs) == 6
    assert stand_in.handoffs[0]["options"] == {
        "format": "sse", "bins": 128, "normalisation": normalisation, "dtype": dtype,
    }  # fmt: skip
    assert not list(stand_in.data_dir.iterdir()), "a copy was left behind"


def test_a_file_that_lies_there_already_is_not_copied(stand_in: StandIn, sound: Path) -> None:
    sound.rename(stand_in.data_dir / "there.wav")
    stand_in.run(stand_in.data_dir / "there.wav")
    assert {handoff["audio_path"] for handoff in stand_in.handoffs} == {"there.wav"}
    assert [file.name for file in stand_in.data_dir.iterdir()] == ["there.wav"]


def _wrong_value(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wrong = frames.copy()
    wrong[7, np.argmax(frames[7])] += 0.001
    return wrong


def _one_less(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return frames[:-1]


def _wide(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return frames.astype(np.float64)


def _narrow(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return frames[:, :79]


def _nan(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wrong = frames.copy()
    wrong[-1, -1] = np.nan
    return wrong


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_wrong_value, "differs from the specification's by 1.0e-03"),
        (_nan, "no finite number"),
        (_one_less, "200 frames came; the specification has 201"),
        (_wide, "frame 0 was due"),
        (_narrow, "frame 0 was due"),
    ],
)
def test_wrong_frames_are_found(
    stand_in: StandIn, sound: Path, spoil: Callable[[Any], Any], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.spoil = spoil
    assert stand_in.run(sound) == 1
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "instead", "fault"),
    [
        (b"", None, "without [DONE]"),
        (b'event: error\ndata: {"message":"damaged"}\n\n', None, "damaged"),
        (DONE, b"", "closed without a response"),
        (DONE, b"HTTP/1.1 404 Not Found\r\n\r\n{}", "404 Not Found: {}"),
        (DONE, HEAD + DONE, "0 frames came"),
    ],
)
def test_streams_that_are_not_whole_are_found(
    stand_in: StandIn, sound: Path, end: bytes, instead: bytes | None, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.end, stand_in.instead = end, instead
    assert stand_in.run(sound) == 1
    assert fault in capsys.readouterr().err


def test_standard_input_may_have_a_head_that_counts_nothing(
    stand_in: StandIn, sound: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = bytearray(sound.read_bytes())
    struct.pack_into("<I", piped, 4, 0xFFFF_FFFF)
    struct.pack_into("<I", piped, 40, 0xFFFF_FFFF)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    stand_in.run("-")
    captured = capsys.readouterr()
    assert "of 2.00 s, 1 at a time: 201 frames each" in captured.out, captured.err
    assert not list(stand_in.data_dir.iterdir())


def test_a_recording_is_waited_for(stand_in: StandIn, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = sound.read_bytes()
    sound.write_bytes(recorded[:20_000])

    def record() -> None:
        with sound.open("ab") as file:
            for first in range(20_000, len(recorded), 10_000):
                time.sleep(0.05)
                file.write(recorded[first : first + 10_000])
                file.flush()

    recorder = threading.Thread(target=record)
    recorder.start()
    stand_in.run(sound, "--follow", "0.5")
    recorder.join()
    captured = capsys.readouterr()
    assert "of 2.00 s" in captured.out, captured.err


def test_what_cannot_begin_is_told(
    stand_in: StandIn, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stand_in.run(tmp_path / "none.wav") == 2
    assert "none.wav: No such file" in capsys.readouterr().err
    assert stand_in.run(sound, "--data-dir", str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    assert stand_in.run(sound, "--socket", str(tmp_path / "none.sock")) == 2
    assert "cannot hand over" in capsys.readouterr().err
    sound.write_text("no audio")
    assert stand_in.run(sound) == 2
    assert "Format not recognised" in capsys.readouterr().err


def _listener(started_ms: float, events_ms: list[float], ended_ms: float) -> mel_client.Listener:
    made = mel_client.Listener(socket.socket(), int(started_ms * 1e6))
    made.client.close()
    made.times_ns, made.ended_ns = [int(time_ms * 1e6) for time_ms in events_ms], int(ended_ms * 1e6)
    return made


def test_figures_are_what_was_measured() -> None:
    rounds = [[_listener(0, [5, 6, 8], 9), _listener(1, [11], 21)], [_listener(100, [], 101)]]
    figures = mel_client.measure(rounds, 10.0)
    assert figures.first == [5, 10]
    assert figures.chunks == [5, 1, 2, 10]
    assert figures.totals == [9, 20, 1]
    assert figures.real_time_factors == [pytest.approx(2 * 10_000 / 21), pytest.approx(10_000)]


@pytest.mark.parametrize(
    ("events_ms", "ended_ms", "missed"),
    [
        ([9.0], 99.0, []),
        ([51.0], 60.0, ["first chunk, worst", "chunk p50", "chunk p95", "chunk p99"]),
        ([1.0, 2.0, 3.0, 28.0], 29.0, ["chunk p95"]),
        ([1.0], 101.0, ["total, worst"]),
        ([1.0], 1_001.0, ["total, worst", "times real time, worst"]),
    ],
)
def test_a_target_that_is_missed_is_marked(events_ms: list[float], ended_ms: float, missed: list[str]) -> None:
    lines, reached = mel_client.report(mel_client.measure([[_listener(0, events_ms, ended_ms)]], 10.0), 10.0)
    assert [line.split("|")[1].strip() for line in lines if "MISSED" in line] == missed
    assert reached == (not missed)


@pytest.mark.parametrize("wrong", [["--streams", "0"], ["--rounds", "0"], ["--follow", "0"]])
def test_wrong_options_are_usage_errors(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        mel_client.main(["a.wav", *wrong])
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://a:1", "http://127.0.0.1", "http://127.0.0.1:1"])
def test_a_front_that_is_not_there_is_no_beginning(
    stand_in: StandIn, sound: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stand_in.run(sound, "--http", url) == 2
    assert url in capsys.readouterr().err


def test_a_real_front_streams_uploads(tmp_path: Path, sound: Path) -> None:
    configuration = '[http]\nlisten = "127.0.0.1:0"\n[backend.mel]\nenabled = true\n'
    daemon = Daemon(tmp_path, "epoll", configuration=configuration).start()
    try:
        found = re.search(r'http="?(http://[0-9.:]+)', daemon.log)
        assert found, daemon.log
        command = [sys.executable, "-m", "scripts.mel_client", str(sound), "--http", found[1]]
        command += ["--streams", "4", "--rounds", "2", "--seconds", "0.1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert "streams of 2.00 s, 4 at a time: 201 frames each" in done.stdout, done.stderr + daemon.log
        assert "| seconds of audio a second, for 0.1 s |" in done.stdout
        assert done.returncode == int("MISSED" in done.stdout)
    finally:
        assert daemon.stop() == 0


def test_a_real_daemon_streams_what_the_specification_says(tmp_path: Path, sound: Path) -> None:
    data_dir = tmp_path / "audio"
    data_dir.mkdir()
    configuration = f'[server]\ndata_dir = "{data_dir}"\n[backend.mel]\nenabled = true\n'
    daemon = Daemon(tmp_path, "epoll", configuration=configuration).start()
    try:
        command = [sys.executable, "-m", "scripts.mel_client", str(sound), "--socket", str(daemon.socket_path)]
        command += ["--data-dir", str(data_dir), "--streams", "4", "--rounds", "2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert "8 streams of 2.00 s, 4 at a time: 201 frames each" in done.stdout, done.stderr + daemon.log
        assert done.returncode == int("MISSED" in done.stdout)
    finally:
        daemon.stop()
