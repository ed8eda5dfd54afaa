"""Generated audio is what it is called, the same for the same seed, and says what it lacks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from scripts import make_audio

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["tones", "sweep", "white", "pink", "silence", "impulse", "chords"]
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def _read(file: Path, rate_hz: int = 16_000) -> npt.NDArray[np.float64]:
    with wave.open(str(file)) as opened:
        assert opened.getparams()[:3] == (1, 2, rate_hz)
        return np.frombuffer(opened.readframes(opened.getnframes()), "<i2") / 32_767


def _made(tmp_path: Path, kind: str, *options: str) -> npt.NDArray[np.float64]:
    file = tmp_path / "made.wav"
    assert make_audio.main([kind, "--output", str(file), "--seconds", "2", *options]) == 0
    return _read(file)


def _power_between(sound: npt.NDArray[np.float64], low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    hertz = np.fft.rfftfreq(len(sound), 1 / 16_000)
    return float(power[(hertz >= low_hz) & (hertz < high_hz)].sum() / power.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(tmp_path: Path, kind: str) -> None:
    first, again, other = (_made(tmp_path, kind, "--seed", seed) for seed in ("1", "1", "2"))
    assert len(first) == 32_000
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (kind == "silence")
    assert np.abs(first).max() == pytest.approx(0 if kind == "silence" else 0.5, abs=1e-4)


def test_white_noise_has_power_by_hertz_and_pink_by_octave(tmp_path: Path) -> None:
    noise, pink = (_made(tmp_path, kind) for kind in ("white", "pink"))
    assert _power_between(noise, 4_000, 8_000) == pytest.approx(2 * _power_between(noise, 2_000, 4_000), rel=0.1)
    assert _power_between(pink, 4_000, 8_000) == pytest.approx(_power_between(pink, 2_000, 4_000), rel=0.1)


def test_a_sweep_gives_each_octave_the_same_time(tmp_path: Path) -> None:
    sound = _made(tmp_path, "sweep")
    octaves = np.log2(0.49 * 16_000 / 20)
    first = sound[: round(len(sound) * np.log2(100 / 20) / octaves)]
    assert _power_between(first, 0, 110) > 0.98
    assert _power_between(sound[len(sound) // 2 :], 380, 8_000) > 0.98


def test_an_impulse_is_one_sample(tmp_path: Path) -> None:
    assert np.count_nonzero(_made(tmp_path, "impulse")) == 1


def test_the_shortest_file_is_one_sample(tmp_path: Path) -> None:
    for kind in KINDS:
        file = tmp_path / f"{kind}.wav"
        assert make_audio.main([kind, "--output", str(file), "--seconds", "1e-9"]) == 0
        assert len(_read(file)) == 1


@needs_espeak
def test_speech_is_spoken_at_the_rate_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "speech.wav"
    for rate_hz in (16_000, 22_050):
        options = ["--seconds", "12", "--rate", str(rate_hz), "--text", "Hello, daemon."]
        assert make_audio.main(["speech", "--output", str(file), *options]) == 0
        sound = _read(file, rate_hz)
        assert len(sound) == 12 * rate_hz
        assert np.abs(sound[-3 * rate_hz :]).max() > 0.2, "said again until the end"
        assert abs(sound[:40]).max() < 0.1, "begins with a head or a click"


def test_speech_without_espeak_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_audio.main(["speech", "--output", str(tmp_path / "speech.wav")]) == 1
    assert "sudo apt-get install espeak-ng" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_leaves_out_what_cannot_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_audio.main(["all", "--output", str(tmp_path / "audio"), "--seconds", "0.5"]) == 0
    assert sorted(file.stem for file in (tmp_path / "audio").iterdir()) == sorted(KINDS)
    assert "speech: left out: espeak-ng is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--seconds", "0"], ["--seconds", "nan"], ["--rate", "10"], ["--level", "2"], ["--seed", "-1"]]
)
def test_wrong_options_are_usage_errors(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_audio.main(["tones", *wrong])
    assert wrong[0] in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_audio.main(["silence", "--seconds", "1", "--output", str(tmp_path)]) == 1
    assert f"{tmp_path}: Is a directory" in capsys.readouterr().err


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.make_audio", "chords", "--output", str(tmp_path / "new" / "c.wav")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "c.wav: 10.00 s at 16000 Hz" in done.stdout
