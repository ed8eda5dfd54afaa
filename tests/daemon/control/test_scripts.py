"""Scripts in the plane's memory: what the plane finds there renders to what the script says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.interface import Mark, Script
from backends.mock import CONTENT_TOKENS, MESSAGES, OPENAI_TOKENS
from config.settings import Server, Settings
from daemon.control.answers import STANDARD_HEAD
from daemon.control.scripts import ScriptBook, ScriptError
from daemon.plane.paced import INDEX, LITERAL
from daemon.plane.table import SCRIPT_COUNT_MAX, SCRIPT_MESSAGES_MAX, SCRIPT_PARTS_MAX, TEMPLATE_BYTES_MAX, allocate

if TYPE_CHECKING:
    from daemon.plane.table import Plane


@pytest.fixture
def plane() -> Plane:
    return allocate(Settings(server=Server(max_connections=1)))


def rendered(plane: Plane, number: int, index: int, text: bytes) -> bytes:
    """A message put together from the plane's memory, as the plane does it."""
    script = plane.scripts[number]
    message = plane.script_messages[script.first_message + index % int(script.message_count)]
    pieces = b""
    for part in plane.script_parts[message.first_part : message.first_part + message.part_count]:
        if part.kind == LITERAL:
            pieces += plane.templates[part.offset : part.offset + part.length].tobytes()
        else:
            pieces += b"%d" % index if part.kind == INDEX else text
    assert len(pieces) <= message.bytes_max
    return pieces


def test_the_standard_head_comes_first(plane: Plane) -> None:
    ScriptBook(plane, ())
    size = int(plane.globals[0].head_bytes)
    assert plane.templates[:size].tobytes() == STANDARD_HEAD


def test_scripts_render_to_what_they_say(plane: Plane) -> None:
    book = ScriptBook(plane, (MESSAGES, CONTENT_TOKENS, OPENAI_TOKENS, MESSAGES))
    numbers = [book.number(script) for script in (MESSAGES, CONTENT_TOKENS, OPENAI_TOKENS)]
    assert numbers == [0, 1, 2]
    for script in (MESSAGES, CONTENT_TOKENS, OPENAI_TOKENS):
        number = book.number(script)
        assert number is not None
        for index in (0, 1, 9, 10, 16, 17, 10**19):
            assert rendered(plane, number, index, b"t" * 64) == script.render(index, b"t" * 64)
        record = plane.scripts[number]
        assert plane.templates[record.end_offset : record.end_offset + record.end_bytes].tobytes() == script.end


def test_scripts_that_were_not_announced_have_no_number(plane: Plane) -> None:
    book = ScriptBook(plane, (MESSAGES,))
    assert book.number(Script(MESSAGES.messages, MESSAGES.end)) is None


@pytest.mark.parametrize(
    ("scripts", "word"),
    [
        ([Script(((b"x",),)) for _ in range(SCRIPT_COUNT_MAX + 1)], "scripts"),
        ([Script(((b"x",),) * (SCRIPT_MESSAGES_MAX + 1))], "messages"),
        ([Script(((Mark.INDEX,) * 128,) * (SCRIPT_PARTS_MAX // 128 + 1))], "parts"),
        ([Script(((b"x" * 4097,),))], "4096"),
        ([Script(((b"x",),), end=bytes(TEMPLATE_BYTES_MAX))], "bytes"),
    ],
)
def test_too_much_is_an_error_that_says_what(plane: Plane, scripts: list[Script], word: str) -> None:
    with pytest.raises(ScriptError, match=word):
        ScriptBook(plane, scripts)
