"""What the tests of transfers share: an upstream, and a plane that takes what comes from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.daemon.control.channels import Channels
from tests.daemon.control.transfer_plane import Plane
from tests.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="upstream")
def _upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(name="plane")
def _plane() -> Iterator[Plane]:
    plane = Plane(Channels())
    yield plane
    plane.close()
