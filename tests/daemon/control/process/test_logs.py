"""Log lines: one each, whatever is in them."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from daemon.control.process import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("daemon.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_text_lines_carry_time_level_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    logger.info("READY %s", "now", extra={"kernel": "epoll", "streams_max": 7})
    logger.debug("unseen")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Z INFO daemon.test: READY now kernel=epoll streams_max=7")


def test_a_message_cannot_begin_a_line_or_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    logger.info("user %s", "eve\n2026 INFO forged\r\x1b[2J\x9b", extra={"prompt": "a\nb"})
    (line,) = capsys.readouterr().err.splitlines()
    assert r"user eve\n2026 INFO forged\r\x1b[2J\x9b prompt=a\nb" in line


def test_json_lines_are_objects(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    logger.warning("odd\n%s", "\udcff", extra={"streams": 3, "path": logs})
    fields = json.loads(capsys.readouterr().err)
    assert fields["level"] == "warning"
    assert fields["message"] == "odd\n\udcff"
    assert fields["streams"] == 3
    assert "module" in fields["path"]


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_tracebacks_are_kept(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    logs.configure("info", log_format)
    try:
        int("broken")
    except ValueError:
        logger.exception("it failed")
    written = capsys.readouterr().err
    assert "ValueError: invalid literal" in written
    if log_format == "json":
        assert "test_logs.py" in json.loads(written)["traceback"]


def test_an_exception_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    error = ValueError("unknown model x\n2026-01-01T00:00:00.000Z INFO daemon: forged\r\x1b[2J")
    logger.error("it failed", exc_info=error)
    first, *others = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert "it failed" in first
    assert all(line.startswith("  ") for line in others)
    assert others[-1].endswith(r"INFO daemon: forged\r\x1b[2J")


def test_the_level_can_change_and_lines_are_not_doubled(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("error", "text")
    logger.info("unseen")
    logs.configure("debug", "text")
    logger.debug("seen")
    logs.flush()
    (line,) = capsys.readouterr().err.splitlines()
    assert "seen" in line
    assert not logging.getLogger("asyncio").isEnabledFor(logging.DEBUG)
