"""`streaming-daemon mel`: its arrays are the specification's features of what a file holds, and its faults are told."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.mel import reference
from backends.mel.spec import NORMALISATIONS, SAMPLE_RATE_HZ
from daemon.__main__ import main
from tests.backends.mel import signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.mel.spec import Normalisation

ROOT = Path(__file__).resolve().parents[3]

soundfile: Any = importlib.import_module("soundfile")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Two seconds, 16 bits."""
    file = tmp_path / "speech.wav"
    soundfile.write(file, signals.speech(), SAMPLE_RATE_HZ, subtype="PCM_16")
    return file


def _samples(file: Path) -> signals.Sound:
    samples: signals.Sound = soundfile.read(file, dtype="float32")[0]
    return samples


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("bin_count", [80, 128])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_the_array_is_that_of_the_specification(speech: Path, normalisation: Normalisation, bin_count: int) -> None:
    output = speech.with_name("out.npy")
    assert (
        main(["mel", str(speech), "-o", str(output), "--bins", str(bin_count), "--normalisation", normalisation]) == 0
    )
    frames = np.load(output)
    assert frames.dtype == np.float32
    expected = reference.features(_samples(speech), bin_count, normalisation)
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-5)
    assert _names(speech.parent) == ["out.npy", "speech.wav"]


def test_the_array_lies_beside_the_audio_unless_a_place_is_given(
    speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mel", str(speech)]) == 0
    assert np.load(speech.with_suffix(".npy")).shape == (201, 80)
    assert "201 frames of 80 bins from 2.00 s" in capsys.readouterr().out


def test_half_precision_is_asked_for(speech: Path) -> None:
    assert main(["mel", str(speech), "--dtype", "float16"]) == 0
    frames = np.load(speech.with_suffix(".npy"))
    assert frames.dtype == np.float16
    expected = reference.features(_samples(speech), 80, "none")
    np.testing.assert_allclose(frames.astype(np.float64), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("suffix", "subtype"), [("flac", "PCM_16"), ("ogg", "VORBIS"), ("wav", "FLOAT")])
def test_formats_are_read_as_libsndfile_reads_them(tmp_path: Path, suffix: str, subtype: str) -> None:
    file = tmp_path / f"music.{suffix}"
    soundfile.write(file, signals.music(), SAMPLE_RATE_HZ, subtype=subtype)
    assert main(["mel", str(file)]) == 0
    expected = reference.features(_samples(file), 80, "none")
    # Vorbis decodes to slightly other numbers in other pieces.
    loud = expected > expected.max() - 6
    np.testing.assert_allclose(np.load(file.with_suffix(".npy"))[loud], expected[loud], rtol=0, atol=1e-4)


def test_other_rates_and_channels_become_mono_at_16_khz(tmp_path: Path) -> None:
    """A tone in both channels and another only in the left, which is half as loud: both where they belong."""
    time_s = np.arange(3 * 44_100) / 44_100
    both, left = (0.4 * np.sin(2 * np.pi * hertz * time_s) for hertz in (500, 3_000))
    file = tmp_path / "tones.wav"
    soundfile.write(file, np.stack([both + left, both], axis=1), 44_100, subtype="FLOAT")
    assert main(["mel", str(file)]) == 0
    frames = np.load(file.with_suffix(".npy"))
    assert frames.shape == (301, 80)
    time_s = np.arange(3 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    wanted = 0.4 * np.sin(2 * np.pi * 500 * time_s) + 0.2 * np.sin(2 * np.pi * 3_000 * time_s)
    expected = reference.features(wanted.astype(np.float32), 80, "none")[20:-20]
    loud = expected > expected.max() - 3
    np.testing.assert_allclose(frames[20:-20][loud], expected[loud], rtol=0, atol=1e-3)


def test_a_picture_is_drawn(speech: Path) -> None:
    named = speech.rename(speech.with_name("sp[ee]ch $x_1$.wav"))
    output = speech.with_name("speech.PNG")
    assert main(["mel", str(named), "-o", str(output), "--normalisation", "running"]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    assert _names(speech.parent) == [named.name, output.name]


def test_a_long_picture_is_averaged_to_what_a_screen_shows(tmp_path: Path) -> None:
    file, output = tmp_path / "long.wav", tmp_path / "long.png"
    soundfile.write(file, np.tile(signals.sweep(), 30), SAMPLE_RATE_HZ, subtype="PCM_16")
    assert main(["mel", str(file), "-o", str(output)]) == 0
    assert 1_000 < output.stat().st_size < 2_000_000


def _not_audio(file: Path) -> None:
    file.write_text("no audio at all")


def _cut(file: Path) -> None:
    soundfile.write(file, signals.noise(), SAMPLE_RATE_HZ, format="FLAC")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file: Path) -> None:
    soundfile.write(file, np.zeros(0, np.float32), SAMPLE_RATE_HZ, format="WAV")


def _folder(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (None, "No such file"),
        (_not_audio, "Format not recognised"),
        (_cut, "lost sync"),
        (_empty, "no audio in it"),
        (_folder, "Is a directory"),
    ],
)
def test_a_file_at_fault_is_named_and_nothing_is_written(
    tmp_path: Path, make: Callable[[Path], None] | None, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given.wav"
    if make is not None:
        make(file)
    before = _names(tmp_path)
    assert main(["mel", str(file)]) == 1
    said = capsys.readouterr().err
    assert str(file) in said
    assert fault in said
    assert said.count("\n") == 1
    assert _names(tmp_path) == before


def test_what_was_there_stays_when_the_audio_is_at_fault(tmp_path: Path) -> None:
    file, output = tmp_path / "cut.flac", tmp_path / "out.npy"
    _cut(file)
    output.write_text("of yesterday")
    assert main(["mel", str(file), "-o", str(output)]) == 1
    assert output.read_text() == "of yesterday"


@pytest.mark.parametrize("output", ["nowhere/out.npy", "folder.npy"])
def test_a_place_that_cannot_be_written_is_named(speech: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    (speech.parent / "folder.npy").mkdir()
    before = _names(speech.parent)
    assert main(["mel", str(speech), "-o", str(speech.parent / output)]) == 1
    assert output in capsys.readouterr().err
    assert _names(speech.parent) == before


@pytest.mark.parametrize(
    "arguments",
    [[], ["{file}", "-o", "out.txt"], ["{file}", "--bins", "81"], ["{file}", "--normalisation", "loud"], ["/"]],
)
def test_a_wrong_command_line_is_a_usage_error(
    speech: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mel", *(argument.format(file=speech) for argument in arguments)]) == 2
    assert "usage: streaming-daemon mel" in capsys.readouterr().err


def test_the_audio_is_not_written_over(speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disguised = speech.rename(speech.with_suffix(".npy"))
    assert main(["mel", str(disguised)]) == 2
    assert "over the audio" in capsys.readouterr().err
    assert len(_samples(disguised)) == signals.SAMPLES


@pytest.mark.parametrize(
    ("missing", "output", "extra"),
    [
        ("soundfile", "o.npy", "mel"),
        ("soxr", "o.npy", "mel"),
        ("rich", "o.npy", "mel"),
        ("matplotlib", "o.png", "plot"),
    ],
)
def test_a_library_that_is_missing_is_told_with_its_cure(
    speech: Path,
    missing: str,
    output: str,
    extra: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["mel", str(speech), "-o", str(speech.with_name(output))]) == 2
    said = capsys.readouterr().err
    assert missing in said
    assert f"pip install 'streaming-daemon[{extra}]'" in said
    assert _names(speech.parent) == ["speech.wav"]


def _command(file: Path) -> list[str]:
    return [sys.executable, "-m", "daemon", "mel", str(file)]


def test_no_bar_is_shown_where_there_is_no_terminal(speech: Path) -> None:
    done = subprocess.run(_command(speech), cwd=ROOT, text=True, check=False, timeout=100, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{speech.with_suffix('.npy')}: 201 frames")


def test_a_bar_is_shown_on_a_terminal(speech: Path) -> None:
    controller, terminal = os.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        command = _command(speech)
        done = subprocess.run(
            command, cwd=ROOT, check=False, timeout=100, stdout=subprocess.PIPE, stderr=terminal, env=environment
        )
    finally:
        os.close(terminal)
    shown = b""
    try:
        while piece := os.read(controller, 65_536):
            shown += piece
    except OSError:  # how a terminal that all have closed says its end
        pass
    finally:
        os.close(controller)
    assert done.returncode == 0
    assert b"speech.wav" in shown
    assert b"100%" in shown


def test_a_head_that_a_recorder_left_open_is_read_to_the_end_of_the_file(tmp_path: Path) -> None:
    """ffmpeg and arecord write the greatest length when they write to a pipe."""
    file = tmp_path / "recorded.wav"
    with wave.open(str(file), "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(SAMPLE_RATE_HZ)
        written.writeframes((signals.speech() * 32_767).astype("<i2").tobytes())
    head = bytearray(file.read_bytes())
    head[4:8] = head[40:44] = b"\xff\xff\xff\xff"
    file.write_bytes(head)
    assert main(["mel", str(file)]) == 0
    assert np.load(file.with_suffix(".npy")).shape == (201, 80)


def test_the_daemon_says_that_the_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "streaming-daemon mel FILE" in " ".join(capsys.readouterr().out.split())


def test_a_daemon_starts_without_anything_of_it() -> None:
    program = "import sys; import daemon.service; from daemon.__main__ import main; main(['--check-config']); "
    program += "sys.exit(any(name.startswith('backends.mel') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
