"""The ledger: what stands in the file, that it is bounded, and that a disk or a reader in trouble costs only rows."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from backends.openai import ledger as module
from backends.openai.ledger import LINE_BYTES_MAX, Ledger, LedgerRow, line_of

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS = [
    "time",
    "request_id",
    "user",
    "upstream",
    "model_asked",
    "model_answered",
    "prompt_tokens",
    "completion_tokens",
    "estimated",
    "first_token_ms",
    "duration_ms",
    "bytes",
    "retries",
    "end_reason",
    "status",
    "error",
]
TIMEOUT_S = 10.0


def row(**changes: object) -> LedgerRow:
    made = LedgerRow(
        time="2026-11-21T07:30:00.123Z",
        request_id="r-1",
        user=7,
        upstream="vllm-a",
        model_asked="llama",
        model_answered="llama-3.1-8b",
        prompt_tokens=12,
        completion_tokens=100,
        estimated=False,
        first_token_ms=31.5,
        duration_ms=2031.0,
        bytes=6400,
        retries=0,
        end_reason="complete",
        status=200,
        error="",
    )
    return msgspec.structs.replace(made, **changes)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "did not come to pass"
        time.sleep(0.002)


def test_a_row_has_exactly_the_documented_fields() -> None:
    assert list(LedgerRow.__struct_fields__) == FIELDS
    assert list(json.loads(line_of(row()))) == FIELDS


def test_the_manual_describes_every_field_and_its_example_is_a_row() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = manual.partition("## The ledger")[2].partition("\n## ")[0]
    described = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert described == FIELDS
    example = section.partition("    {")[2].partition("\n")[0]
    assert msgspec.json.decode("{" + example, type=LedgerRow).end_reason
    assert list(json.loads("{" + example)) == FIELDS


def test_rows_are_written_in_order_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(str(path), 0, 1)
    for index in range(500):
        ledger.write(row(request_id=f"r-{index}", user="Zoë\n", first_token_ms=None))
    assert ledger.close()
    found = rows_in(path)
    assert [line["request_id"] for line in found] == [f"r-{index}" for index in range(500)]
    assert found[0]["user"] == "Zoë\n"
    assert found[0]["first_token_ms"] is None
    assert ledger.dropped_count == 0


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for _ in range(2):
        ledger = Ledger(str(path), 1 << 20, 1)
        ledger.write(row())
        assert ledger.close()
    assert len(rows_in(path)) == 2


def test_without_a_path_there_is_no_file_and_no_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    ledger = Ledger("", 1 << 20, 3)
    ledger.write(row())
    assert threading.active_count() == threads
    assert ledger.close()
    assert ledger.dropped_count == 0
    assert not list(tmp_path.iterdir())


def test_the_file_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    before = os.umask(0)
    try:
        ledger = Ledger(str(path), len(line_of(row())), 1)
        for _ in range(2):
            ledger.write(row())
        assert ledger.close()
    finally:
        os.umask(before)
    for file in (path, tmp_path / "ledger.jsonl.1"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    path = tmp_path / "ledger.jsonl"
    path.symlink_to(target)
    with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is looked at)
        Ledger(str(path), 0, 1)
    assert caught.value.errno == errno.ELOOP
    assert target.read_text() == "precious"


def test_a_link_that_takes_its_place_later_costs_rows_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(str(path), 0, 1)
    path.unlink()
    path.symlink_to(target)
    ledger.write(row())
    wait_for(lambda: ledger.dropped_count == 1)
    path.unlink()
    ledger.write(row())
    assert ledger.close()
    assert target.read_text() == "precious"
    assert len(rows_in(path)) == 1


@pytest.mark.parametrize("bytes_max", [0, 1 << 20])
def test_a_directory_that_is_missing_fails_the_start(tmp_path: Path, bytes_max: int) -> None:
    with pytest.raises(OSError):  # noqa: PT011
        Ledger(str(tmp_path / "missing" / "ledger.jsonl"), bytes_max, 1)


# ------------------------------------------------------------------------------------------------------------- rotation


def test_files_rotate_by_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    line_bytes = len(line_of(row(request_id="r-00")))
    ledger = Ledger(str(path), 3 * line_bytes, 2)
    for index in range(20):
        ledger.write(row(request_id=f"r-{index:02}"))
    assert ledger.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.jsonl.1", "ledger.jsonl.2"]
    kept = [line["request_id"] for name in (".2", ".1", "") for line in rows_in(path.with_name(f"ledger.jsonl{name}"))]
    assert kept == [f"r-{index:02}" for index in range(12, 20)]
    assert all(file.stat().st_size <= 3 * line_bytes for file in tmp_path.iterdir())
    assert ledger.dropped_count == 0


def test_a_file_that_was_moved_away_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(str(path), 1 << 20, 1)
    ledger.write(row(request_id="before"))
    wait_for(lambda: path.stat().st_size > 0)
    path.rename(tmp_path / "moved")
    ledger.write(row(request_id="after"))
    assert ledger.close()
    assert [line["request_id"] for line in rows_in(tmp_path / "moved")] == ["before"]
    assert [line["request_id"] for line in rows_in(path)] == ["after"]


def test_rotation_that_is_refused_costs_rows_until_it_works(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    obstacle = tmp_path / "ledger.jsonl.1"
    (obstacle / "inside").mkdir(parents=True)  # no file can be renamed over it
    ledger = Ledger(str(path), len(line_of(row())), 1)
    for _ in range(3):
        ledger.write(row())
    wait_for(lambda: ledger.dropped_count == 2)
    (obstacle / "inside").rmdir()
    obstacle.rmdir()
    ledger.write(row())
    assert ledger.close()
    assert len(rows_in(path)) == len(rows_in(obstacle)) == 1


# ------------------------------------------------------------------------------------------------------------- trouble


def test_a_full_disk_costs_rows_that_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger("/dev/full", 0, 1)
    for _ in range(50):
        ledger.write(row())
    assert ledger.close()
    assert ledger.dropped_count == 50
    said = [record for record in caplog.records if record.name == module.__name__]
    assert "No space left on device" in said[0].getMessage()
    assert len(said) <= 2  # the first, and at the end how many more there were
    assert sum(int(vars(record)["count"]) for record in said) == 50
    assert all(record.levelno == logging.WARNING for record in said)


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(str(path), 0, 1)
    ledger.write(row(request_id="first"))
    wait_for(lambda: path.stat().st_size > 0)
    write, is_full = os.write, threading.Event()

    def write_a_little(descriptor: int, data: bytes) -> int:
        if is_full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        is_full.set()
        return write(descriptor, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_a_little)
        ledger.write(row(request_id="lost"))
        wait_for(lambda: ledger.dropped_count == 1)
    ledger.write(row(request_id="last"))
    assert ledger.close()
    assert [line["request_id"] for line in rows_in(path)] == ["first", "last"]


@pytest.mark.parametrize(("written", "kept"), [(1000, 10), (4, 4)])
def test_a_writer_that_hangs_neither_blocks_nor_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, kept: int
) -> None:
    monkeypatch.setattr(module, "QUEUE_ROWS_MAX", 10)
    hanging, released = threading.Event(), threading.Event()
    write = os.write

    def write_late(descriptor: int, data: bytes) -> int:
        hanging.set()
        released.wait(TIMEOUT_S)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_late)
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(str(path), 0, 1)
    ledger.write(row())
    assert hanging.wait(TIMEOUT_S)
    started_s = time.monotonic()
    for _ in range(written):
        ledger.write(row())
    assert time.monotonic() - started_s < 2.0
    assert ledger.dropped_count == written - kept
    started_s = time.monotonic()
    assert not ledger.close(0.1)
    assert time.monotonic() - started_s < 2.0
    assert ledger.dropped_count == written
    released.set()
    wait_for(lambda: len(rows_in(path)) == 1)


def test_a_fifo_without_a_reader_does_not_hold_the_start(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    os.mkfifo(path)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        Ledger(str(path), 0, 1)
    assert caught.value.errno == errno.ENXIO


def test_after_its_end_rows_are_lost_and_counted(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.jsonl"), 0, 1)
    assert ledger.close()
    ledger.write(row())
    assert ledger.close()
    assert ledger.dropped_count == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"user": "\ud800"},
        {"user": 1 << 80},
        {"error": "x" * 100_000},
        {"user": "\0" * 100_000, "model_asked": "\ud800" * 100_000, "request_id": "é" * 5000},
    ],
)
def test_whatever_a_client_sends_is_one_bounded_line(changes: dict[str, object]) -> None:
    line = line_of(row(**changes))
    assert len(line) <= 2 * LINE_BYTES_MAX
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert list(json.loads(line)) == FIELDS
