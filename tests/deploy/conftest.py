from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders are often longer than a Unix socket's path may be.
    with tempfile.TemporaryDirectory(prefix="streaming-daemon-deploy-") as name:
        yield Path(name)
