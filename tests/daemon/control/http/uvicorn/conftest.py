"""The API on a real server, with a front whose streams are scripted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.daemon.control.http.uvicorn.fakes import FakeFront, served

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeFront, str]]:
    front = FakeFront()
    with served(front) as base:
        yield front, base


@pytest.fixture
def front(server: tuple[FakeFront, str]) -> FakeFront:
    server[0].reset()
    return server[0]
