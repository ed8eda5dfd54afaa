"""One Apache and one daemon for all end-to-end tests; a test that needs a daemon of its own starts it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apache import environment
from tests.apache.environment import Apache


@pytest.fixture(scope="session")
def apache() -> Iterator[Apache]:
    environment.require_packages()
    # Not pytest's tmp_path: that is closed to Apache's user, and often longer than a Unix socket's path may be.
    root = Path(tempfile.mkdtemp(prefix="streaming-daemon-apache-"))
    try:
        with environment.running_apache(root) as running:
            yield running
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def site(apache: Apache) -> Iterator[Apache]:
    """The example site, complete: Apache with a daemon behind it."""
    with environment.running_daemon(apache.default_socket):
        yield apache
