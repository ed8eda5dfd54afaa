"""The mel tab: what is drawn of a file and of the microphone, and what is said when nothing can be."""

from __future__ import annotations

import importlib
import wave
from typing import TYPE_CHECKING

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from backends.mel.spec import HOP_SAMPLES, SAMPLE_RATE_HZ, hz_to_mel
from tests.page.reader import NOTHING
from tests.page.stage import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.page.reader import Reader
    from tests.page.stage import Stage

pytestmark = pytest.mark.browser

TONE_HZ = 1000.0
# Of the picture, in CSS pixels: what its axes take (MARGIN in spectrogram.js).
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28


@pytest.fixture
def mel(reader: Reader) -> Reader:
    reader.press("tab-mel")
    return reader


def write_tone(path: Path, seconds: float, *, rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1) -> Path:
    """Silence, then a tone of 1 kHz from the middle on."""
    count = int(seconds * rate_hz)
    sound = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(count) / rate_hz)
    sound[: count // 2] = 0
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.repeat((sound * 32767).astype("<i2"), channels).tobytes())
    return path


def send(reader: Reader, path: Path) -> str:
    """The state it ended in."""
    reader.find("mel-file").send_keys(str(path))
    reader.wait(lambda: state(reader) in {"done", "failed", "stopped"})
    return state(reader)


def state(reader: Reader) -> str:
    return str(reader.find("mel-status").get_attribute("data-state"))


def said(reader: Reader) -> str:
    return reader.find("mel-status").text


def brightness(reader: Reader) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The picture without its axes, [row from above, column], 0 to 255."""
    width, height, values = reader.run(
        """
        const canvas = document.getElementById("spectrogram");
        const ratio = devicePixelRatio;
        const [left, right, top, bottom] = [...arguments].map((value) => Math.round(value * ratio));
        const [width, height] = [canvas.width - left - right, canvas.height - top - bottom];
        const { data } = canvas.getContext("2d").getImageData(left, top, width, height);
        const values = [];
        for (let index = 0; index < data.length; index += 4) {
          values.push((data[index] + data[index + 1] + data[index + 2]) / 3);
        }
        return [width, height, values];
        """,
        LEFT,
        RIGHT,
        TOP,
        BOTTOM,
    )
    return np.array(values).reshape(height, width)


def wait_for_picture(reader: Reader) -> None:
    reader.run("return new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")


@pytest.mark.parametrize("bins", ["80", "128"])
def test_a_file_is_drawn(mel: Reader, stage: Stage, tmp_path: Path, bins: str) -> None:
    mel.find("mel-bins").send_keys(bins)
    path = write_tone(tmp_path / "tone.wav", 4.0)
    assert send(mel, path) == "done", said(mel)
    wait_for_picture(mel)
    picture = brightness(mel)
    left, right = np.split(picture[:, : picture.shape[1] // 2 * 2], 2, axis=1)
    assert left[:, : left.shape[1] * 9 // 10].mean() < 15, "silence is dark"
    tone = right[:, right.shape[1] // 4 : -right.shape[1] // 4].mean(axis=1)
    loudest = 1 - (int(tone.argmax()) + 0.5) / len(tone)
    assert loudest == pytest.approx(hz_to_mel(TONE_HZ) / hz_to_mel(8000.0), abs=0.03)
    frames = 1 + 4 * SAMPLE_RATE_HZ // HOP_SAMPLES
    assert mel.find("mel-frames").text == str(frames)
    assert mel.find("mel-factor").text.endswith("\N{MULTIPLICATION SIGN}")
    assert mel.find("mel-first").text.endswith("ms")
    assert said(mel) == f"Complete: {frames} frames of tone.wav."
    label = mel.find("spectrogram").get_attribute("aria-label") or ""
    assert label.startswith(f"Spectrogram of tone.wav: {frames} frames, 4.01 s of audio, the first after ")
    assert "times as fast as real time" in label
    [asked] = stage.audio_asked
    assert (asked["way"], asked["bins"], asked["sample_format"]) == ("body", int(bins), "wav")
    assert asked["bytes"] == path.stat().st_size, "a WAV is sent as it is"


def test_a_long_file_is_drawn_whole(mel: Reader, stage: Stage, tmp_path: Path) -> None:
    assert send(mel, write_tone(tmp_path / "long.wav", 60.0, rate_hz=44_100, channels=2)) == "done", said(mel)
    wait_for_picture(mel)
    assert stage.audio_asked[0]["way"] == "socket"
    assert mel.find("mel-frames").text == "6,001"
    picture = brightness(mel)
    half = picture.shape[1] // 2
    assert picture[:, : half - 20].mean() < 15
    assert picture[:, half + 20 :].max() > 180


@pytest.mark.parametrize("normalisation", ["running", "whisper"])
def test_other_normalisations_are_drawn(mel: Reader, stage: Stage, tmp_path: Path, normalisation: str) -> None:
    mel.find("mel-normalisation").send_keys(normalisation)
    assert send(mel, write_tone(tmp_path / "tone.wav", 3.0)) == "done", said(mel)
    assert stage.audio_asked[0]["normalisation"] == normalisation
    assert mel.find("mel-frames").text == ("301" if normalisation == "running" else "3,000")
    wait_for_picture(mel)
    assert brightness(mel).max() > 180


def test_the_microphone_is_drawn_until_it_is_stopped(mel: Reader, stage: Stage) -> None:
    mel.press("mel-microphone")
    mel.wait(lambda: mel.find("mel-frames").text not in {NOTHING, "0"} and int(mel.find("mel-frames").text) > 150)
    assert said(mel) == "Listening to the microphone."
    mel.press("mel-stop")
    mel.wait(lambda: state(mel) == "done")
    wait_for_picture(mel)
    assert brightness(mel).max() > 150, "Chromium's own microphone beeps"
    assert stage.audio_asked[0]["format"] == "s16le"
    assert stage.audio_asked[0]["sample_rate"] in {44_100, 48_000}
    assert mel.find("mel-factor-name").text == "Behind the microphone"
    assert mel.find("mel-microphone").is_enabled()


def test_a_key_is_sent_with_a_websocket_too(mel: Reader, stage: Stage, tmp_path: Path) -> None:
    stage.wants_key = True
    mel.expect_in_console("WebSocket")
    mel.expect_in_console("status of 401")
    mel.expect_in_console("status of 400")  # of the empty audio that asks why there was no WebSocket
    path = write_tone(tmp_path / "long.wav", 30.0)
    mel.find("mel-file").send_keys(str(path))
    mel.wait(lambda: mel.find("key-dialog").is_displayed())
    mel.find("key").send_keys(KEY, Keys.ENTER)
    mel.wait(lambda: state(mel) in {"done", "failed"})
    assert state(mel) == "done", said(mel)
    assert stage.audio_asked[-1]["way"] == "socket"
    assert KEY not in str(stage.audio_asked)


def test_another_format_is_decoded_by_the_browser(mel: Reader, stage: Stage, tmp_path: Path) -> None:
    soundfile = importlib.import_module("soundfile")  # it has no types
    path = tmp_path / "tone.flac"
    sound = np.sin(2 * np.pi * TONE_HZ * np.arange(32_000) / 32_000)
    soundfile.write(str(path), sound, 32_000)
    assert send(mel, path) == "done", said(mel)
    assert stage.audio_asked[0]["sample_format"] == "f32le"
    assert mel.find("mel-frames").text == "101"


def test_what_is_no_audio_is_said_to_be_none(mel: Reader, stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is no audio.")
    assert send(mel, path) == "failed"
    assert "notes.txt is no WAV, and this browser cannot decode it" in said(mel)
    assert stage.audio_asked == []


def test_a_damaged_wav_gets_the_servers_words(mel: Reader, tmp_path: Path) -> None:
    path = write_tone(tmp_path / "cut.wav", 1.0)
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x31\x00"  # GSM 6.10
    path.write_bytes(data)
    mel.expect_in_console("status of 415")
    assert send(mel, path) == "failed"
    assert said(mel).startswith("415: a WAV with samples of format 49")


def test_where_mel_is_off_the_page_says_how_to_have_it(mel: Reader, stage: Stage, tmp_path: Path) -> None:
    stage.has_mel = False
    mel.expect_in_console("status of 501")
    mel.expect_in_console("WebSocket")
    assert send(mel, write_tone(tmp_path / "tone.wav", 1.0)) == "failed"
    assert "501: the backend mel is not enabled here" in said(mel)
    assert "MEL_ENABLED=1" in said(mel)
    mel.press("mel-microphone")
    mel.wait(lambda: state(mel) == "failed")
    assert "501: the backend mel is not enabled here" in said(mel)


@pytest.mark.parametrize("way", ["button", "escape"])
def test_a_file_can_be_stopped(mel: Reader, tmp_path: Path, way: str) -> None:
    mel.find("mel-file").send_keys(str(write_tone(tmp_path / "long.wav", 600.0)))
    mel.wait(lambda: mel.find("mel-stop").is_displayed())
    if way == "button":
        mel.press("mel-stop")
    else:
        mel.find("mel-stop").send_keys(Keys.ESCAPE)
    mel.wait(lambda: state(mel) == "stopped")
    assert said(mel).startswith("Stopped after ")
    assert not mel.find("mel-stop").is_displayed()
    assert send(mel, write_tone(tmp_path / "next.wav", 1.0)) == "done", "the next one works"


def test_a_file_can_be_dropped(mel: Reader) -> None:
    mel.run(
        """
        const head = new DataView(new ArrayBuffer(44 + 6400));
        const text = (offset, letters) => [...letters].forEach((c, i) => head.setUint8(offset + i, c.charCodeAt(0)));
        text(0, "RIFF"); text(8, "WAVEfmt "); text(36, "data");
        head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
        head.setUint32(24, 16000, true); head.setUint32(28, 32000, true); head.setUint16(32, 2, true);
        head.setUint16(34, 16, true); head.setUint32(40, 6400, true);
        const data = new DataTransfer();
        data.items.add(new File([head], "dropped.wav"));
        const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
        document.getElementById("drop-zone").dispatchEvent(drop);
        """
    )
    mel.wait(lambda: state(mel) == "done")
    assert said(mel) == "Complete: 21 frames of dropped.wav."
