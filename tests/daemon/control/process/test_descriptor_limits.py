"""The process's share of descriptors."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from daemon.control.process.descriptor_limits import (
    DESCRIPTOR_RESERVE,
    connections_that_fit,
    raise_descriptor_limit,
    streams_that_fit,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def descriptor_limit() -> Iterator[int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_descriptor_limit_is_raised_to_the_hard_one(descriptor_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, descriptor_limit))
    assert raise_descriptor_limit() == descriptor_limit
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (descriptor_limit, descriptor_limit)


def test_more_streams_than_descriptors_are_capped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert streams_that_fit(20_000, 10_000) == 10_000
    assert not caplog.text
    assert streams_that_fit(20_000, 50_000) == 20_000 - DESCRIPTOR_RESERVE
    assert "room for 19800 streams" in caplog.text
    assert streams_that_fit(100, 50_000) == 1


def test_connections_of_the_front_leave_descriptors_for_streams(caplog: pytest.LogCaptureFixture) -> None:
    assert connections_that_fit(20_000, 1024) == 1024
    assert not caplog.text
    assert connections_that_fit(DESCRIPTOR_RESERVE + 400, 1024) == 100
    assert "room for 100 beside streams" in caplog.text
    assert connections_that_fit(100, 1024) == 1
