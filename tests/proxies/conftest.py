"""An upstream of ours and the proxies before it, for a module's tests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.bench import proxies, upstreams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.bench.proxies import Proxy
    from scripts.bench.upstreams import Upstream

TOKENS = 30
INTERVAL_MS = 20.0


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """Speaks plain HTTP/1.1, and knows when it was asked and when a connection closed."""
    with (
        tempfile.TemporaryDirectory(prefix="streaming-daemon-upstream-") as folder,
        upstreams.running(Path(folder), TOKENS, INTERVAL_MS) as running,
    ):
        yield running


@pytest.fixture(scope="module", params=sorted(proxies.PROGRAMS))
def proxy(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[Proxy]:
    """Each proxy in turn, before the upstream."""
    with proxies.running(str(request.param), upstream.address) as running:
        yield running
