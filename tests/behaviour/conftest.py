"""Fixtures: a daemon for a module's ordinary tests, and a factory for tests that need one of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KERNELS = ("io_uring", "epoll")


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    """Every test that uses this runs on both kernels."""
    return str(request.param)


@pytest.fixture(scope="module")
def daemon(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with short delays, shared by a module's tests."""
    running = Daemon(tmp_path_factory.mktemp("daemon"), kernel, ["--delay", "5"]).start()
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "Traceback" not in running.log, running.log[-4000:]


@pytest.fixture
def start(kernel: str, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons with a configuration of the test's own; they are stopped at its end."""
    running: list[Daemon] = []

    def begin(configuration: str = "", *arguments: str, **options: object) -> Daemon:
        directory = tmp_path / str(len(running))
        directory.mkdir()
        options.setdefault("kernel", kernel)
        process = Daemon(directory, arguments=list(arguments), configuration=configuration, **options)  # type: ignore[arg-type]
        running.append(process)
        return process.start()

    yield begin
    for process in running:
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait()
