"""Scripts in the plane's memory: what the plane finds there renders to what the script says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.interface import Mark, Script
from backends.mock import CONTENT_TOKENS, MESSAGES, OPENAI_TOKENS
from config.settings import Server, Settings
from daemon.control.channel.responses import STANDARD_HEAD
from daemon.control.channel.scripts import ScriptBook, ScriptError
from daemon.plane.paced import CLOSING, INDEX, LITERAL, TEXT
from daemon.plane.table import SCRIPT_COUNT_MAX, SCRIPT_MESSAGES_MAX, SCRIPT_PARTS_MAX, TEMPLATE_BYTES_MAX, allocate

if TYPE_CHECKING:
    from daemon.plane.table import Plane


@pytest.fixture
def plane() -> Plane:
    return allocate(Settings(server=Server(max_connections=1)))


USAGE = Script(
    ((b"<", Mark.TEXT, Mark.INDEX, b">"),),
    (b"last ", Mark.INDEX, b" of ", Mark.TEXT, b": ", Mark.CLOSING, b"."),
    end_counts=True,
)
SILENT = Script(((b"<", Mark.CLOSING, b">"),), b"")
CLOSING_TEXT = b"c" * 63


def rendered(plane: Plane, number: int, index: int, text: bytes) -> bytes:
    """A message put together from the plane's memory, as the plane does it."""
    script = plane.scripts[number]
    return rendered_message(plane, script.first_message + index % int(script.message_count), index, text)


def rendered_message(plane: Plane, which: int, index: int, text: bytes) -> bytes:
    message = plane.script_messages[which]
    marks = {INDEX: b"%d" % index, TEXT: text, CLOSING: CLOSING_TEXT}
    pieces = b""
    for part in plane.script_parts[message.first_part : message.first_part + message.part_count]:
        if part.kind == LITERAL:
            pieces += plane.templates[part.offset : part.offset + part.length].tobytes()
        else:
            pieces += marks[int(part.kind)]
    assert len(pieces) <= message.bytes_max
    return pieces


def test_the_standard_head_comes_first(plane: Plane) -> None:
    ScriptBook(plane, ())
    size = int(plane.globals[0].head_bytes)
    assert plane.templates[:size].tobytes() == STANDARD_HEAD


def test_scripts_render_to_what_they_say(plane: Plane) -> None:
    scripts = (MESSAGES, CONTENT_TOKENS, OPENAI_TOKENS, USAGE, SILENT)
    book = ScriptBook(plane, (*scripts, MESSAGES))
    assert [book.number(script) for script in scripts] == list(range(len(scripts)))
    for script in scripts:
        number = book.number(script)
        assert number is not None
        for index in (0, 1, 9, 10, 16, 17, 10**19):
            assert rendered(plane, number, index, b"t" * 64) == script.render(index, b"t" * 64, CLOSING_TEXT)
            end = rendered_message(plane, plane.scripts[number].end_message, index, b"t" * 64)
            assert end == script.render_end(index, b"t" * 64, CLOSING_TEXT)
        assert bool(plane.scripts[number].end_counts) == (script is USAGE)


def test_scripts_that_were_not_announced_have_no_number(plane: Plane) -> None:
    book = ScriptBook(plane, (MESSAGES,))
    assert book.number(Script(MESSAGES.messages, MESSAGES.end)) is None


@pytest.mark.parametrize(
    ("scripts", "word"),
    [
        ([Script(((b"x",),)) for _ in range(SCRIPT_COUNT_MAX + 1)], "scripts"),
        ([Script(((b"x",),) * SCRIPT_MESSAGES_MAX)], "messages"),
        ([Script(((Mark.INDEX,) * 128,) * (SCRIPT_PARTS_MAX // 128 + 1))], "parts"),
        ([Script(((b"x" * 4097,),))], "4096"),
        ([Script(((b"x",),), end=b"x" * 4097)], "4096"),
        (
            [Script(tuple((b"%4096d" % number,) for number in range(TEMPLATE_BYTES_MAX // 4096)))],
            f"{TEMPLATE_BYTES_MAX}",
        ),
    ],
)
def test_too_much_is_an_error_that_says_what(plane: Plane, scripts: list[Script], word: str) -> None:
    with pytest.raises(ScriptError, match=word):
        ScriptBook(plane, scripts)
