"""The page's modules that need no page: parsers, numbers, colours. They run in the browser, as they are served."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.mel.formats import BlockWriter
from backends.mel.spec import SAMPLE_RATE_HZ, hz_to_mel
from daemon.control.telemetry.metrics import cumulative_buckets
from tests.page.conftest import reading, url_of
from tests.page.reader import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

    from tests.behaviour.daemon_process import Daemon
    from tests.page.reader import Reader

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def modules(browser: Chrome, daemon: Daemon) -> Iterator[Reader]:
    """One page for all of them: they leave nothing in it."""
    with reading(browser, url_of(daemon)) as opened:
        yield opened


PARSE = """
(module, text, cuts) => {
  const events = [];
  const parser = new module.EventParser((type, data) => events.push([type, data]));
  let start = 0;
  for (const end of [...cuts, text.length]) { parser.push(text.slice(start, end)); start = end; }
  return events;
}
"""
STREAM = (
    "data: one\n\n: a comment\r\n\r\ndata:two\ndata: and\rdata:  three\r\n\r\nevent: error\r\ndata: {}\r\n\r\n"
    "event: ping\n\nid: 7\nretry: 10\ndata\n\ndata: not ended"
)
EVENTS = [["message", "one"], ["message", "two\nand\n three"], ["error", "{}"], ["message", ""]]


def test_events_in_one_piece_and_character_by_character(modules: Reader) -> None:
    assert modules.module("sse.js", PARSE, STREAM, []) == EVENTS
    assert modules.module("sse.js", PARSE, STREAM, list(range(1, len(STREAM)))) == EVENTS


def test_events_cut_at_random_places(modules: Reader) -> None:
    chance = random.Random(7)
    for _ in range(30):
        cuts = sorted(chance.sample(range(len(STREAM)), chance.randint(1, 20)))
        assert modules.module("sse.js", PARSE, STREAM, cuts) == EVENTS, cuts


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_every_way_to_end_a_line(modules: Reader, end: str) -> None:
    text = f"event: a{end}data: 1{end}{end}data: 2{end}data{end}{end}"
    for cut in range(len(text) + 1):
        assert modules.module("sse.js", PARSE, text, [cut]) == [["a", "1"], ["message", "2\n"]], cut


def test_an_event_without_end_is_refused(modules: Reader) -> None:
    script = """
    (module) => {
      const parser = new module.EventParser(() => undefined);
      const piece = "x".repeat(1 << 20);
      try { for (let i = 0; i < 9; i += 1) parser.push(piece); } catch (problem) { return problem.name; }
      return "no error";
    }
    """
    assert modules.module("sse.js", script) == "RangeError"


def blocks(frames: np.ndarray[Any, np.dtype[np.float32]], dtype: Any, frames_max: int = 3) -> bytes:  # noqa: ANN401
    writer = BlockWriter(frames.shape[1], dtype, frames_max)
    return b"".join(writer.pieces(frames)) + writer.end()


BLOCKS = """
(module, bytes, size) => {
  const values = [];
  let bins = 0;
  const parser = new module.BlockParser((found, count) => { values.push(...found); bins = count; });
  const data = Uint8Array.from(bytes);
  try {
    for (let start = 0; start < data.length; start += size) parser.push(data.subarray(start, start + size));
  } catch (problem) { return problem.message; }
  return { values, bins, frameCount: parser.frameCount, hasEnded: parser.hasEnded };
}
"""


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
@pytest.mark.parametrize(("dtype", "within"), [("float32", 0.0), ("float16", 4e-3)])
def test_blocks_of_features(modules: Reader, size: int, dtype: str, within: float) -> None:
    frames = np.random.default_rng(3).uniform(-10, 2, (7, 80)).astype(np.float32)
    frames[0, :3] = 0.0, 6e-8, -2.0
    found = modules.module("mel-blocks.js", BLOCKS, list(blocks(frames, dtype)), size)
    assert (found["bins"], found["frameCount"], found["hasEnded"]) == (80, 7, True)
    assert np.abs(np.array(found["values"]).reshape(7, 80) - frames).max() <= within


def test_half_precision_is_numpys(modules: Reader) -> None:
    every = np.arange(0, 65536, 257, dtype=np.uint16)
    finite = every[np.isfinite(every.view(np.float16))]
    wide = np.pad(finite, (0, -len(finite) % 80))
    data = struct.pack("<4sBBHII", b"MEL1", 1, 0, 80, 0, len(wide) // 80) + wide.astype("<u2").tobytes()
    found = modules.module("mel-blocks.js", BLOCKS, list(data), 4096)
    assert found["values"] == wide.view(np.float16).astype(float).tolist()


def test_blocks_that_are_none(modules: Reader) -> None:
    frames = np.zeros((2, 80), np.float32)
    assert "binary blocks" in modules.module("mel-blocks.js", BLOCKS, list(b"data: {}\n\ndata: {}\n\n"), 5)
    assert "follows the end" in modules.module("mel-blocks.js", BLOCKS, list(blocks(frames, "float32") * 2), 64)
    missing = struct.pack("<4sBBHII", b"MEL1", 0, 0, 80, 5, 0)
    assert "frame 5 came where frame 0" in modules.module("mel-blocks.js", BLOCKS, list(missing), 64)
    writer = BlockWriter(80, "float32", 3)
    assert modules.module("mel-blocks.js", BLOCKS, list(writer.error(400, "grüße")), 64) == "400 grüße"
    cut = blocks(frames, "float32")[:-16]
    assert modules.module("mel-blocks.js", BLOCKS, list(cut), 64)["hasEnded"] is False


def wav(before: bytes = b"", size: int | None = None) -> bytes:
    head = struct.pack("<HHIIHH", 1, 2, SAMPLE_RATE_HZ, 64_000, 4, 16)
    data = bytes(8000)
    declared = len(data) if size is None else size
    return (
        b"RIFF\0\0\0\0WAVE"
        + before
        + b"fmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", declared)
        + data
    )


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (wav(), 0.125),
        (wav(b"LIST\x03\0\0\0abc\0"), 0.125),
        (wav(size=0xFFFFFFFF), 0.125),
        (wav(size=4000), 0.0625),
        (b"fLaC" + bytes(100), None),
        (wav()[:30], None),
        (b"", None),
    ],
)
def test_how_long_a_wav_is(modules: Reader, data: bytes, seconds: float | None) -> None:
    script = "async (module, bytes) => (await module.lookAtWav(new Blob([Uint8Array.from(bytes)])))?.seconds ?? null"
    assert modules.module("wav.js", script, list(data)) == seconds


METRICS = r"""# HELP a_total Something "quoted".
# TYPE a_total counter
a_total{reason="one",text="say \"hello\" \\ {x=\"y\"},\nthen"} 3.0
a_total{reason="two"} 4
b 1.5e+03 1700000000
c_bucket{le="0.1"} 1
c_bucket{le="+Inf"} 2
not a sample
"""


def test_metrics_are_parsed(modules: Reader) -> None:
    script = "(module, text) => [...module.parseMetrics(text)]"
    found = dict(modules.module("metrics.js", script, METRICS))
    assert found["a_total"][0] == {
        "labels": {"reason": "one", "text": 'say "hello" \\ {x="y"},\nthen'},
        "value": 3,
    }
    assert found["b"] == [{"labels": {}, "value": 1500}]
    assert sorted(found) == ["a_total", "b", "c_bucket"]
    totals = "(module, text) => ['a_total', 'z'].map((name) => module.total(module.parseMetrics(text), name))"
    assert modules.module("metrics.js", totals, METRICS) == [7, None]  # JSON has no NaN


def test_quantiles_of_the_daemons_buckets(modules: Reader) -> None:
    counts = [0] * 40
    counts[14], counts[20] = 90, 10  # 8.2 to 16.4 ms, 0.5 to 1.05 s
    lines = [f'h_bucket{{le="{bound}"}} {count}' for bound, count in cumulative_buckets(counts)]
    script = """
    (module, text) => {
      const found = module.buckets(module.parseMetrics(text), "h");
      const empty = found.map(([bound]) => [bound, 0]);
      const since = module.bucketsSince(empty, found);
      const restarted = module.bucketsSince(found.map(([bound, count]) => [bound, count + 1]), found);
      return [0.5, 0.99].map((part) => module.quantile(part, since)).concat(
        module.quantile(0.5, restarted), String(module.quantile(0.5, empty)));
    }
    """
    half, most, after_restart, nothing = modules.module("metrics.js", script, "\n".join(lines))
    assert 0.008192 < half < 0.016384
    assert 0.524288 < most < 1.048576
    assert after_restart == half
    assert nothing == "NaN"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("count(1234567)", "1,234,567"),
        ("count(1.25)", "1.3"),
        ("count(NaN)", NOTHING),
        ("duration(0.25)", "250 µs"),
        ("duration(9.96)", "10 ms"),
        ("duration(31.4)", "31 ms"),
        ("duration(1500)", "1.50 s"),
        ("duration(59999)", "60 s"),
        ("duration(119700)", "2 min 0 s"),
        ("rate(120000)", "120,000/s"),
        ("bytes(1536)", "1.5 KiB"),
        ("plural(1, 'frame')", "1 frame"),
    ],
)
def test_numbers_as_people_read_them(modules: Reader, call: str, text: str) -> None:
    assert modules.module("format.js", f"(module) => module.{call}") == text


def test_the_colour_map_rises_evenly_from_dark_to_bright(modules: Reader) -> None:
    colours = np.array(modules.module("colours.js", "(module) => [...module.COLOURS]")).reshape(256, 4)
    assert (colours[:, 3] == 255).all()
    linear = np.where(colours <= 10.31, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)[:, :3]
    # CIE 1976 lightness: another measure than the one the table is made with.
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    assert (np.diff(lightness) > -0.2).all()
    assert lightness[0] < 5
    assert lightness[-1] > 90
    quarters = lightness[[0, 64, 128, 192, 255]]
    assert np.ptp(np.diff(quarters)) < 12, quarters


@pytest.mark.parametrize(("seconds", "ticks", "step"), [(2, 10, 0.2), (12, 8, 2), (40, 10, 5), (7200, 8, 1200)])
def test_marks_on_the_time_axis(modules: Reader, seconds: float, ticks: int, step: float) -> None:
    assert modules.module("spectrogram.js", f"(module) => module.tickStep({seconds}, {ticks})") == step


def test_the_mel_scale_is_the_specifications(modules: Reader) -> None:
    for hz in (0.0, 500.0, 1000.0, 2000.0, 8000.0):
        found = modules.module("spectrogram.js", f"(module) => module.melOf({hz})")
        assert found == pytest.approx(hz_to_mel(hz))
