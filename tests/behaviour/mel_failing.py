"""The backend `mel` on engines that fail, named in a configuration as a user's own backend would be."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from backends.mel.backend import Mel
from backends.mel.cpu import CpuEngine
from backends.mel.cuda.engine import CudaEngine
from backends.mel.engine import EngineError
from tests.backends.mel.cuda.fake_device import FakeDevice

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from backends.mel.engine import Frames, MelEngine, Samples

CALLS = 3  # how often it works


class FailingEngine(CpuEngine):
    """The CPU's, until it has computed so often."""

    def __init__(self, calls: int) -> None:
        super().__init__(80)
        self.left = calls

    def compute(self, samples: Samples, frames: Frames) -> None:
        if self.left == 0:
            raise EngineError("the device has gone")
        self.left -= 1
        super().compute(samples, frames)


class FailingEngines:
    """A new engine for each stream, and nothing behind it."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    @contextlib.contextmanager
    def place(self, bins: int) -> Generator[MelEngine]:
        assert bins == 80
        yield FailingEngine(self.calls)

    def close(self) -> None:
        pass


class LostGpu:
    """For each stream a GPU that fails in its midst, and the CPU behind it."""

    @contextlib.contextmanager
    def place(self, bins: int) -> Generator[MelEngine]:
        engine = CudaEngine([lambda: FakeDevice(faults={"launch": CALLS})], CpuEngine(bins))
        place = engine.place()
        try:
            yield place
        finally:
            place.close()
            engine.close()
            assert engine.counters.devices_lost == 1, "it did not fail"

    def close(self) -> None:
        pass


class FailsAtOnce(Mel):
    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._engines: Any = FailingEngines(0)


class Fails(Mel):
    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._engines: Any = FailingEngines(CALLS)


class Moves(Mel):
    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._engines: Any = LostGpu()
