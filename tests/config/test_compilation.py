"""The cache of compiled code is renewed when, and only when, what it was made of has changed."""

from __future__ import annotations

import re
from pathlib import Path

from config.compilation import _compiled_sources  # pyright: ignore[reportPrivateUsage]

ROOT = Path(__file__).resolve().parents[2]


def test_the_digest_covers_everything_that_is_compiled() -> None:
    covered = {path.relative_to(ROOT).as_posix() for path in _compiled_sources()}
    for path in ROOT.joinpath("daemon").rglob("*.py"):
        if re.search(r"^@(compiled|inlined)\b", path.read_text(), re.MULTILINE):
            assert path.relative_to(ROOT).as_posix() in covered
    assert {"config/compilation.py", "daemon/plane/messages.py", "daemon/loop.py"} <= covered


def test_compiled_code_takes_nothing_from_files_outside_the_digest() -> None:
    covered = {path.relative_to(ROOT).as_posix() for path in _compiled_sources()}
    for name in covered - {"config/compilation.py"}:
        text = ROOT.joinpath(name).read_text()
        if not re.search(r"^@(compiled|inlined)\b", text, re.MULTILINE):
            continue
        for module in re.findall(r"^from ((?:daemon|backends)[\w.]*) import", text, re.MULTILINE):
            path = module.replace(".", "/") + ".py"
            known = path in covered or ROOT.joinpath(module.replace(".", "/")).is_dir()
            assert known or name == "daemon/loop.py", (
                f"{name} compiles, and imports {module}, which the digest leaves out"
            )


def test_admission_and_metrics_are_left_out() -> None:
    covered = {path.relative_to(ROOT).as_posix() for path in _compiled_sources()}
    assert (
        not {"daemon/control/admission/admission.py", "daemon/control/telemetry/metrics.py", "daemon/service.py"}
        & covered
    )
