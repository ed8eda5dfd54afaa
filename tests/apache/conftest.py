"""One Apache and one daemon for all end-to-end tests; a test that needs a daemon of its own starts it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.apache import environment
from tests.apache.environment import Site


@pytest.fixture(scope="session")
def apache() -> Iterator[Site]:
    with environment.running_site() as running:
        yield running


@pytest.fixture(scope="session")
def site(apache: Site) -> Iterator[Site]:
    """The example site, complete: Apache with a daemon behind it."""
    with environment.running_daemon(apache.default_socket):
        yield apache
