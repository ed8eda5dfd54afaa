"""Text: our features reach the model as the specification has them, and its words come back window by window."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.interface import BackendError, Fields, OptionError, Request
from backends.mel.backend import Mel
from backends.mel.engine import EngineError
from backends.mel.formats import TEXT_BYTES_MAX, TextWriter
from backends.mel.reference import features
from backends.mel.spec import WINDOW_FRAMES, WINDOW_SECONDS
from backends.mel.transcriber import Segment, Transcriber, Transcript, segments_of, text_of
from daemon.__main__ import main
from tests.backends.mel.signals import speech
from tests.backends.mel.whisper_model import LANGUAGES, TEXT_TOKENS, make_model

if TYPE_CHECKING:
    from collections.abc import Iterator

ctranslate2: Any = importlib.import_module("ctranslate2")
soundfile: Any = importlib.import_module("soundfile")
ROOT = Path(__file__).resolve().parents[3]
RANDOM = np.random.default_rng(5)
# Two windows and 7 s, each other than the ones before it.
SOUND = (np.tile(speech(), 34)[: 67 * 16_000] * np.repeat([0.1, 0.9, 0.4], [480_000, 480_000, 112_000])).astype("f4")
PCM = ((SOUND + RANDOM.normal(0, 0.01, len(SOUND))) * 20_000).astype(np.int16)
SECONDS = len(PCM) / 16_000
TEXTS = {"transcribe": True, "language": "de", "beam_size": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def mel(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mel]:
    folder = tmp_path_factory.mktemp("data")
    soundfile.write(folder / "a.wav", PCM, 16_000)
    made = Mel({"data_dir": str(folder), "transcribe_model": model})
    yield made
    made.close()


def directly(model: str, language: str = "de", beam_size: int = 2) -> list[list[int]]:
    """What the model says of the specification's features, window by window, as numbers of tokens."""
    whisper = ctranslate2.models.Whisper(model, "cpu")
    frames = features(PCM, 80, "whisper").astype(np.float32)
    said: list[list[int]] = []
    for first in range(0, len(frames), WINDOW_FRAMES):
        window = ctranslate2.StorageView.from_array(np.ascontiguousarray(frames[first : first + WINDOW_FRAMES].T)[None])
        prompt = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>"]
        said.append(whisper.generate(window, [prompt], beam_size=beam_size)[0].sequences_ids[0])
    assert len({tuple(ids) for ids in said}) == 3, "the windows sound alike to the model"
    return said


def words_of(said: list[list[int]]) -> str:
    """The texts of the model's vocabulary say their own numbers."""
    return "".join(f" ä{number}" for ids in said for number in ids if number < TEXT_TOKENS)


def run(mel: Mel, options: dict[str, Any], body: list[bytes] | None = None) -> list[dict[str, Any]]:
    said: dict[str, Any] = {"options": options} if body else {"audio_path": "a.wav", "options": options}
    made = Request(Fields(), json.dumps(said).encode())
    made.body = iter(body or [])
    form = mel.form(made)
    assert (form.format, form.content_type) == ("content", "text/event-stream")
    *events, done, rest = b"".join(mel.chunks(made)).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def test_the_words_are_those_that_the_model_says_of_the_specifications_features(mel: Mel, model: str) -> None:
    *deltas, done = run(mel, TEXTS)
    said = directly(model)
    assert "".join(delta["delta"] for delta in deltas) == words_of(said)
    assert done == {
        "type": "transcript.text.done",
        "text": words_of(said).strip(),
        "language": "de",
        "usage": {"type": "duration", "seconds": 67},
    }
    assert {delta["type"] for delta in deltas} == {"transcript.text.delta"}
    times = [time_s for delta in deltas for time_s in (delta["start"], delta["end"])]
    assert times == sorted(times)
    assert times[-1] <= SECONDS
    assert {int(delta["start"] // WINDOW_SECONDS) for delta in deltas} == {0, 1, 2}
    # The times are the model's: its tokens count 20 ms each, from its window's beginning.
    first_time = next(number for number in said[1] if number > TEXT_TOKENS) - 50_364
    assert next(delta["start"] for delta in deltas if delta["start"] >= 30) == pytest.approx(30 + first_time * 0.02)


def test_an_upload_says_the_same_in_any_pieces(mel: Mel) -> None:
    data = PCM.tobytes()
    assert run(mel, {**TEXTS, "sample_format": "s16le"}, [data[:777], data[777:500_000], data[500_000:]]) == run(
        mel, TEXTS
    )


def test_a_windows_words_leave_when_it_closes(mel: Mel) -> None:
    taken = [0]

    def body() -> Iterator[bytes]:
        for start in range(0, len(PCM), 8000):
            taken[0] = start + 8000
            yield PCM[start : start + 8000].tobytes()

    made = Request(Fields(), json.dumps({"options": TEXTS}).encode())
    made.body = body()
    pieces = mel.chunks(made)
    assert json.loads(next(pieces)[6:])["start"] < WINDOW_SECONDS
    assert taken[0] == WINDOW_SECONDS * 16_000


def test_a_language_that_is_not_said_is_heard(mel: Mel) -> None:
    *_, done = run(mel, {"transcribe": True})
    assert done["language"] in LANGUAGES


@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        ({"transcribe": 1}, 400, "options.transcribe"),
        ({"language": "de"}, 400, "it goes with `transcribe`"),
        ({"transcribe": True, "language": "xx"}, 400, "the model knows en, de, fr"),
        ({"transcribe": True, "language": 7}, 400, "options.language"),
        ({"transcribe": True, "language": "much too long"}, 400, "options.language"),
        ({"transcribe": True, "beam_size": 6}, 400, "an integer from 1 to 5"),
        ({"transcribe": True, "beam_size": 0}, 400, "options.beam_size"),
        ({"transcribe": True, "bins": 80}, 400, "options.bins"),
        ({"transcribe": True, "normalisation": "whisper"}, 400, "options.normalisation"),
        ({"transcribe": True, "format": "binary"}, 400, "options.format"),
    ],
)
def test_wrong_requests_are_named(mel: Mel, options: dict[str, Any], status: int, word: str) -> None:
    with pytest.raises(BackendError, match=re.escape(word)) as raised:
        mel.form(Request(Fields(), json.dumps({"audio_path": "a.wav", "options": options}).encode()))
    assert raised.value.status == status


def test_without_a_model_it_is_a_501() -> None:
    with pytest.raises(BackendError, match=r"backend\.mel\.transcribe_model") as raised:
        Mel({}).form(Request(Fields(), b'{"audio_path":"a.wav","options":{"transcribe":true}}'))
    assert raised.value.status == 501


def test_models_that_cannot_be_used_are_errors_at_start(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match=r"transcribe_model: .* has no model\.bin, config\.json, vocabulary\.json"):
        Mel({"transcribe_model": str(tmp_path)})
    with pytest.raises(OptionError, match="has no"):
        Mel.check({"transcribe_model": str(tmp_path)})
    for name in ("model.bin", "config.json", "vocabulary.json"):
        (tmp_path / name).write_bytes((Path(model) / name).read_bytes()[:1000])
    with pytest.raises(OptionError, match="cannot be used"):
        Mel({"transcribe_model": str(tmp_path)})
    with pytest.raises(OptionError, match="takes features of 96 bins"):
        Mel({"transcribe_model": str(make_model(tmp_path, bins=96))})
    with pytest.raises(OptionError, match="transcribe_language = 'xx'"):
        Mel({"transcribe_model": model, "transcribe_language": "xx"})
    with pytest.raises(OptionError, match="transcribe_beam_size is more than"):
        Mel({"transcribe_beam_size": 5, "transcribe_beam_size_max": 4})
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(OptionError, match=r"pip install 'streaming-daemon\[transcribe\]'"):
        Mel({"transcribe_model": model})


def test_a_model_of_128_bins_is_given_128(tmp_path: Path) -> None:
    transcriber = Transcriber(str(make_model(tmp_path, bins=128)))
    assert transcriber.bins == 128
    frames = features(PCM[: 16_000 * 30], 128, "whisper").astype(np.float32)
    assert list(transcriber.transcript("en", 1, lambda: False).windows(frames, 30))


def test_no_more_windows_at_once_than_are_allowed(model: str) -> None:
    """While one stream has the model others wait, and one whose client leaves meanwhile does not wait on."""
    transcriber: Any = Transcriber(model, uses_max=1)
    frames = features(PCM[: 16_000 * 30], 80, "whisper").astype(np.float32)
    over, heard = threading.Event(), list[list[Segment]]()

    def listen(one: Transcript) -> None:
        heard.append(list(one.windows(frames, 30)))

    with transcriber._uses:
        others = [transcriber.transcript("en", 1, over.is_set), transcriber.transcript("en", 1, lambda: False)]
        threads = [threading.Thread(target=listen, args=(one,)) for one in others]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert heard == []
        over.set()
        threads[0].join(10)
        assert heard == [[]]
    threads[1].join(10)
    assert len(heard[1]) > 0


def test_a_model_that_fails_ends_the_stream_without_its_words(model: str, caplog: pytest.LogCaptureFixture) -> None:
    transcriber = Transcriber(model)
    frames = features(PCM[: 16_000 * 30], 80, "whisper").astype(np.float32)
    transcriber.close()  # its weights are gone
    with pytest.raises(EngineError, match="the Whisper model failed"):
        list(transcriber.transcript("en", 1, lambda: False).windows(frames, 30))
    assert "the Whisper model failed:" in caplog.text


def test_segments_end_at_times_or_with_the_audio() -> None:
    tokens = ["<|0.40|>", "Ġa", "Ġb", "<|2.00|>", "<|2.50|>", "Ġc", "<|29.00|>", "<|29.00|>", "Ġd"]
    assert list(segments_of(tokens, 30, 57.5)) == [
        Segment(" a b", 30.4, 32),
        Segment(" c", 32.5, 57.5),
        Segment(" d", 57.5, 57.5),
    ]
    assert list(segments_of([], 0, 30)) == []
    assert list(segments_of(["<|en|>", "Ġa"], 0, 30)) == [Segment(" a", 0, 30)]


def test_bytes_of_tokens_are_put_together_before_they_are_read() -> None:
    assert text_of(["ĠÃ", "¤"]) == " ä"
    assert text_of(["Ã"]) == "\ufffd"


def test_the_whole_text_is_bounded_and_says_where_it_is_not_whole() -> None:
    writer = TextWriter()
    for _ in range(3):
        writer.delta(Segment("x" * (TEXT_BYTES_MAX // 2), 0, 1))
    done = json.loads(writer.end(1.5, "").split(b"\n\n")[0][6:])
    assert len(done["text"]) == TEXT_BYTES_MAX
    assert done["truncated"] is True
    assert done["usage"]["seconds"] == 2


def test_the_command_prints_what_is_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, PCM, 16_000)
    assert main(["mel", str(file), "--transcribe", model, "--language", "de", "--beam-size", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "".join(line.partition("]")[2] for line in lines) == words_of(directly(model))
    assert all(re.match(r"\[\d+\.\d\d --> \d+\.\d\d\] ", line) for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    for wrong in (["--transcribe", str(tmp_path)], ["--transcribe", model, "--language", "xx"]):
        assert main(["mel", str(file), *wrong]) == 2
    for wrong in (["--beam-size", "17"], ["--transcribe", model, "-o", "x.npy"]):
        assert main(["mel", str(file), *wrong]) == 2


def test_it_is_not_imported_where_it_is_not_used() -> None:
    code = "import sys; from backends.mel.backend import Mel; Mel({}); sys.exit('ctranslate2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ})
