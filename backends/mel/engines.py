"""The engines of the backend: one for each number of bins, made when first asked for. Any thread."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from backends.interface import OptionError
from backends.mel.cpu import CpuEngine
from backends.mel.cuda.loads import Loads
from backends.mel.spec import MEL_BINS

if TYPE_CHECKING:
    from collections.abc import Generator

    from backends.mel.cuda.engine import CudaEngine
    from backends.mel.engine import MelEngine

logger = logging.getLogger(__name__)


class Engines:
    """What computes frames: GPUs where they are wanted and there, otherwise the CPU."""

    def __init__(self, device: str, bins: int) -> None:
        """`device` is auto, cpu or cuda; an engine for `bins` is made now. OptionError for cuda without a GPU."""
        # One for each number of bins: opening a GPU takes seconds where a kernel must be compiled, and streams of the
        # other bins do not wait for it.
        self._locks = {count: threading.Lock() for count in MEL_BINS}
        self._loads = Loads()
        self._is_gpu_wanted = device != "cpu"
        self._cpu: dict[int, CpuEngine] = {}
        self._cuda: dict[int, CudaEngine] = {}
        self._make(bins)
        if device == "cuda" and not self._cuda:
            raise OptionError('backend.mel.device = "cuda": no GPU can be used; "auto" would compute on the CPU')
        logger.info("mel frames are computed on %s", self.description)

    @property
    def description(self) -> str:
        """What computes, for people."""
        names = [worker.name for engine in self._cuda.values() for worker in engine.workers]
        return ", ".join(names) or "the CPU"

    @contextlib.contextmanager
    def place(self, bins: int) -> Generator[MelEngine]:
        """An engine for one stream, which stays on one device as long as that works."""
        with self._locks[bins]:
            if bins not in self._cpu:
                self._make(bins)
            cpu, cuda = self._cpu[bins], self._cuda.get(bins)
        if cuda is None:
            yield cpu
            return
        place = cuda.place()
        try:
            yield place
        finally:
            place.close()

    def close(self) -> None:
        """Give the devices back."""
        for cuda in self._cuda.values():
            cuda.close()
        for cpu in self._cpu.values():
            cpu.close()

    def _make(self, bins: int) -> None:
        cpu = self._cpu[bins] = CpuEngine(bins)
        if not self._is_gpu_wanted:
            return
        from backends.mel.cuda.engine import open_cuda_engine  # noqa: PLC0415  (only where a GPU is wanted)

        cuda = open_cuda_engine(cpu, loads=self._loads)
        if cuda.workers:
            self._cuda[bins] = cuda
        else:
            cuda.close()
            self._is_gpu_wanted = False  # it has been said in the log, once
