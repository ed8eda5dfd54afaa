"""Tests of a real GPU are left out where there is none: they import what only the extra `gpu` installs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) and find_spec("pycuda") is not None
collect_ignore_glob = [] if _has_gpu else ["test_gpu_*.py"]
