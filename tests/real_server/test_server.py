"""The real server itself, asked directly: if this fails, it is not the daemon's doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real_server.environment import MODEL

if TYPE_CHECKING:
    from tests.real_server.environment import RealServer

pytestmark = pytest.mark.external


def test_it_answers_the_same_to_the_same(server: RealServer) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40, "temperature": 0}
    first, second = server.complete(asked), server.complete(asked)
    text = first["choices"][0]["message"]["content"]
    assert text == second["choices"][0]["message"]["content"]
    assert first["usage"]["completion_tokens"] == 40
    assert len(text) > 40
    assert any(ord(character) > 127 for character in text), "the model is there to say such things"
