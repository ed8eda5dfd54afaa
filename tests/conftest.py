"""What all tests share: which cases run, reports that survive the way between processes, time for slow machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests import native_plane, pairwise

if TYPE_CHECKING:
    from collections.abc import Generator


native_plane.install()

# How long an example takes says how busy the machine is, not whether what it tests is right.
settings.register_profile("streaming-daemon", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("streaming-daemon")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what chooses between all cases and those that suffice."""
    parser.addoption("--every-case", action="store_true", help="run all cases of the tests marked `pairwise`")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the marker `pairwise` says need not run; tests that have failed are all run again."""
    if config.getoption("every_case") or config.getoption("lf", default=False):
        return
    left_out = pairwise.surplus(items)
    config.hook.pytest_deselected(items=sorted(left_out, key=lambda item: item.nodeid))
    items[:] = [item for item in items if item not in left_out]


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
