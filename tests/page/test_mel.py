"""The mel tab: what is drawn of a file and of the microphone, and what is said when nothing can be."""

from __future__ import annotations

import importlib
import wave
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from backends.mel.spec import HOP_SAMPLES, SAMPLE_RATE_HZ, hz_to_mel
from tests.page.conftest import KEY
from tests.page.reader import NOTHING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.page.reader import Reader

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


def posted(reader: Reader) -> list[dict[str, str]]:
    """The parameters of each POST of audio; what went through a WebSocket has none."""
    addresses: list[str] = reader.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    found = [urlsplit(address) for address in addresses]
    return [dict(parse_qsl(each.query)) for each in found if each.path == "/audio/stream"]


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
def test_a_file_is_drawn(mel: Reader, tmp_path: Path, bins: str) -> None:
    mel.find("mel-bins").send_keys(bins)
    path = write_tone(tmp_path / "tone.wav", 4.0)
    assert mel.send_file(path) == "done", mel.mel_said
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
    assert mel.mel_said == f"Complete: {frames} frames of tone.wav."
    label = mel.find("spectrogram").get_attribute("aria-label") or ""
    assert label.startswith(f"Spectrogram of tone.wav: {frames} frames, 4.01 s of audio, the first after ")
    assert "times as fast as real time" in label
    [asked] = posted(mel)
    assert (asked["bins"], asked["sample_format"]) == (bins, "wav"), "a WAV is sent as it is"
    sent, received = mel.find("mel-bytes").text.split(" / ")
    assert sent == f"{path.stat().st_size / 1024:.0f} KiB"
    assert float(received.split()[0]) == pytest.approx((frames * int(bins) * 2) / 1024, rel=0.02)


def test_a_long_file_is_drawn_whole(mel: Reader, tmp_path: Path) -> None:
    assert mel.send_file(write_tone(tmp_path / "long.wav", 60.0, rate_hz=44_100, channels=2)) == "done", mel.mel_said
    wait_for_picture(mel)
    assert posted(mel) == []
    assert mel.find("mel-frames").text == "6,001"
    picture = brightness(mel)
    half = picture.shape[1] // 2
    assert picture[:, : half - 20].mean() < 15
    assert picture[:, half + 20 :].max() > 180


@pytest.mark.parametrize("normalisation", ["running", "whisper"])
def test_other_normalisations_are_drawn(mel: Reader, tmp_path: Path, normalisation: str) -> None:
    mel.find("mel-normalisation").send_keys(normalisation)
    assert mel.send_file(write_tone(tmp_path / "tone.wav", 3.0)) == "done", mel.mel_said
    assert posted(mel)[0]["normalisation"] == normalisation
    assert mel.find("mel-frames").text == ("301" if normalisation == "running" else "3,000")
    wait_for_picture(mel)
    assert brightness(mel).max() > 180


def test_the_microphone_is_drawn_until_it_is_stopped(mel: Reader) -> None:
    mel.press("mel-microphone")
    mel.wait(lambda: mel.find("mel-frames").text not in {NOTHING, "0"} and int(mel.find("mel-frames").text) > 150)
    assert mel.mel_said == "Listening to the microphone."
    mel.press("mel-stop")
    mel.wait(lambda: mel.mel_state == "done")
    wait_for_picture(mel)
    assert brightness(mel).max() > 150, "Chromium's own microphone beeps"
    assert posted(mel) == []
    assert mel.find("mel-factor-name").text == "Behind the microphone"
    assert mel.find("mel-microphone").is_enabled()


@pytest.mark.parametrize("seconds", [2.0, 30.0], ids=["body", "socket"])
def test_the_key_is_sent_with_a_file(guarded: Reader, tmp_path: Path, seconds: float) -> None:
    guarded.press("tab-mel")
    assert guarded.send_file(write_tone(tmp_path / "tone.wav", seconds)) == "done", guarded.mel_said
    assert [KEY in str(each) for each in posted(guarded)] == ([False] if seconds == 2 else [])


@pytest.mark.parametrize("way", ["body", "socket", "microphone"])
def test_a_key_is_asked_for_before_audio_is_sent(locked_out: Reader, tmp_path: Path, way: str) -> None:
    locked_out.type(Keys.ESCAPE)
    locked_out.press("tab-mel")
    if way == "microphone":
        locked_out.press("mel-microphone")
    else:
        locked_out.choose_file(write_tone(tmp_path / "tone.wav", 2.0 if way == "body" else 30.0))
    locked_out.give_key(KEY)
    if way == "microphone":
        locked_out.wait(lambda: locked_out.find("mel-frames").text not in {NOTHING, "0"})
        locked_out.press("mel-stop")
    locked_out.wait(lambda: locked_out.mel_state in {"done", "failed"})
    assert locked_out.mel_state == "done", locked_out.mel_said


def test_without_a_key_there_are_no_features(locked_out: Reader, tmp_path: Path) -> None:
    locked_out.type(Keys.ESCAPE)
    locked_out.press("tab-mel")
    locked_out.choose_file(write_tone(tmp_path / "tone.wav", 30.0))
    locked_out.wait(lambda: locked_out.find("key-dialog").is_displayed())
    locked_out.type(Keys.ESCAPE)
    locked_out.wait(lambda: locked_out.mel_state == "failed")
    assert locked_out.mel_said.startswith("401: Missing or invalid Authorization header")


def test_another_format_is_decoded_by_the_browser(mel: Reader, tmp_path: Path) -> None:
    soundfile = importlib.import_module("soundfile")  # it has no types
    path = tmp_path / "tone.flac"
    sound = np.sin(2 * np.pi * TONE_HZ * np.arange(32_000) / 32_000)
    soundfile.write(str(path), sound, 32_000)
    assert mel.send_file(path) == "done", mel.mel_said
    assert posted(mel)[0]["sample_format"] == "f32le"
    assert mel.find("mel-frames").text == "101"


def test_what_is_no_audio_is_said_to_be_none(mel: Reader, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is no audio.")
    assert mel.send_file(path) == "failed"
    assert "notes.txt is no WAV, and this browser cannot decode it" in mel.mel_said
    assert posted(mel) == []


@pytest.mark.parametrize("seconds", [1.0, 120.0], ids=["body", "socket"])
def test_a_damaged_wav_gets_the_servers_words(mel: Reader, tmp_path: Path, seconds: float) -> None:
    path = write_tone(tmp_path / "cut.wav", seconds)
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x31\x00"  # GSM 6.10
    path.write_bytes(data)
    mel.expect_in_console("status of 415")
    assert mel.send_file(path) == "failed"
    assert mel.mel_said.removeprefix("415: ").startswith("a WAV with samples of format 49")


@pytest.mark.parametrize("way", ["button", "escape"])
def test_a_file_can_be_stopped(mel: Reader, tmp_path: Path, way: str) -> None:
    mel.choose_file(write_tone(tmp_path / "long.wav", 600.0))
    mel.wait(lambda: mel.find("mel-stop").is_displayed())
    if way == "button":
        mel.press("mel-stop")
    else:
        mel.find("mel-stop").send_keys(Keys.ESCAPE)
    mel.wait(lambda: mel.mel_state == "stopped")
    assert mel.mel_said.startswith("Stopped after ")
    assert not mel.find("mel-stop").is_displayed()
    assert mel.send_file(write_tone(tmp_path / "next.wav", 1.0)) == "done", "the next one works"


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
    mel.wait(lambda: mel.mel_state == "done")
    assert mel.mel_said == "Complete: 21 frames of dropped.wav."
