"""The backend on fake GPUs: where its streams go, and what they notice of a GPU that fails."""

from __future__ import annotations

import logging
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.interface import Fields, OptionError, Request
from backends.mel.backend import Mel
from backends.mel.engines import Engines
from backends.mel.reference import features
from tests.backends.mel.cuda.fake_device import FakeDevice
from tests.backends.mel.signals import speech
from tests.backends.mel.test_backend import of_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PCM = (speech() * 32_767).astype(np.int16)
PIECE = 3_000


class Machine:
    """GPUs as `pycuda_device` has them."""

    def __init__(self) -> None:
        self.faults: list[dict[str, int]] = []
        self.opened: list[FakeDevice] = []
        self.may_open = threading.Event()
        self.may_open.set()

    def open_device(self, ordinal: int) -> FakeDevice:
        assert self.may_open.wait(20)
        self.opened.append(FakeDevice(ordinal, self.faults[ordinal]))
        return self.opened[-1]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    module: Any = ModuleType("pycuda_device")
    module.device_count, module.open_device = lambda: len(made.faults), made.open_device
    monkeypatch.setitem(sys.modules, "backends.mel.cuda.pycuda_device", module)
    monkeypatch.setattr(sys.modules["backends.mel.cuda"], "pycuda_device", module, raising=False)
    return made


def upload(bins: int) -> Request:
    made = Request(Fields(), b'{"options": {"bins": %d}}' % bins, {"content-type": "audio/pcm"})
    data = PCM.tobytes()
    made.body = iter([data[at : at + PIECE] for at in range(0, len(data), PIECE)])
    return made


def assert_right(pieces: Iterator[bytes], bins: int) -> None:
    expected = features(PCM, bins, "none")
    compared = expected >= expected.max() - 6
    assert np.abs(of_events(b"".join(pieces)) - expected)[compared].max() < 1e-4


def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu(machine: Machine) -> None:
    assert machine.faults == []
    with pytest.raises(OptionError, match="no GPU can be used"):
        Engines("cuda", 80)
    engines = Engines("auto", 80)
    assert engines.description == "the CPU"
    engines.close()


def test_streams_of_80_and_of_128_bins_are_spread_over_the_same_gpus(machine: Machine, tmp_path: Path) -> None:
    machine.faults = [{}, {}]
    mel = Mel({"data_dir": str(tmp_path), "device": "cuda"})
    streams: list[tuple[Any, bytes, int]] = []
    for bins in (80, 128, 128, 80):
        pieces: Any = mel.chunks(upload(bins))
        streams.append((pieces, next(pieces), bins))
    launched = [[len(device.launches) for device in machine.opened if device.name[-1] == number] for number in "01"]
    assert [sum(map(bool, counts)) for counts in launched] == [2, 2]
    for pieces, first, bins in streams:
        assert_right(iter([first, *pieces]), bins)
    mel.close()
    assert all(device.closed for device in machine.opened)


@pytest.mark.parametrize("fault", ["enter", "copy_in", "wait"])
def test_streams_outlive_one_gpu_and_then_the_other(
    machine: Machine, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine.faults = [{fault: 7}, {fault: 20}]
    mel = Mel({"data_dir": str(tmp_path), "device": "cuda"})
    for _ in range(4):
        assert_right(mel.chunks(upload(80)), 80)
    mel.close()
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert [error.split(" failed (")[0] for error in errors] == ["fake GPU 0", "fake GPU 1"]
    assert errors[0].endswith("to 1 other GPUs")
    assert errors[1].endswith("to the CPU")


@pytest.mark.timeout(60)
def test_nobody_waits_for_gpus_that_are_opened_for_other_bins(machine: Machine) -> None:
    machine.faults = [{}]
    engines = Engines("cuda", 80)
    machine.may_open.clear()
    placed = threading.Event()

    def open_for_128() -> None:
        with engines.place(128):
            placed.set()

    thread = threading.Thread(target=open_for_128)
    thread.start()
    other = threading.Thread(target=lambda: engines.place(80).__enter__())
    other.start()
    other.join(10)
    was_alive = other.is_alive()
    machine.may_open.set()
    thread.join()
    other.join()
    assert not was_alive
    assert placed.is_set()
    engines.close()
