"""Our features beside those of the libraries that models are trained and run with: librosa and transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from backends.mel.cpu import CpuEngine
from backends.mel.spec import MEL_BINS
from backends.mel.stream import MelStream
from tests.backends.mel.signals import SOUNDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.mel.engine import Frames
    from backends.mel.spec import Normalisation

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    """What `tests.backends.mel.libraries` wrote. Where they are not installed this is an error, and never a skip."""
    path = tmp_path_factory.mktemp("libraries") / "features.npz"
    # Compiled code of theirs does not belong into the cache of ours.
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    command = [sys.executable, "-m", "tests.backends.mel.libraries", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, f"librosa and transformers are installed by `make test`\n{done.stderr}"
    with np.load(path) as found:
        return dict(found)


def _ours(name: str, bin_count: int, normalisation: Normalisation) -> Frames:
    stream = MelStream(CpuEngine(bin_count), normalisation, np.float32)
    sound = SOUNDS[name]()
    return np.concatenate([stream.push(sound[:777]), stream.push(sound[777:]), stream.finish()])


@pytest.mark.parametrize("bin_count", MEL_BINS)
@pytest.mark.parametrize("name", SOUNDS)
def test_features_are_those_of_transformers(libraries: Mapping[str, np.ndarray], name: str, bin_count: int) -> None:
    theirs = libraries[f"transformers {name} {bin_count}"]
    np.testing.assert_allclose(_ours(name, bin_count, "whisper"), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bin_count", MEL_BINS)
@pytest.mark.parametrize("name", SOUNDS)
def test_raw_features_are_those_of_librosa(libraries: Mapping[str, np.ndarray], name: str, bin_count: int) -> None:
    theirs = libraries[f"librosa {name} {bin_count}"]
    np.testing.assert_allclose(_ours(name, bin_count, "none"), theirs, rtol=0, atol=TOLERANCE)
