"""What all tests share: reports that survive the way from one process to another, and time for slow machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests import native_plane

if TYPE_CHECKING:
    from collections.abc import Generator


native_plane.install()

# How long an example takes says how busy the machine is, not whether what it tests is right.
settings.register_profile("streaming-daemon", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("streaming-daemon")


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what cannot be encoded in a report.

    Tests log lone surrogates on purpose. pytest keeps what was logged, and pytest-xdist cannot send that to its master:
    the worker ended in the midst of its tests.
    """
    report = yield
    report.sections = [(_encodable(name), _encodable(text)) for name, text in report.sections]
    return report
