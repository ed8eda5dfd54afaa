"""A library is loaded only where it matches its description, its sources, its compiler and this machine."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from config import library
from config.library import MEL, PLANE, Description, LibraryError, Source, check, cpu_level, describe, level_of, load

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, description: Description) -> None:
    path.with_suffix(".json").write_bytes(msgspec.json.encode(description))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The plane's library of this machine, copied."""
    load(PLANE)
    original = library.path_of(PLANE)
    path = tmp_path / original.name
    for suffix in (".so", ".json"):
        shutil.copy(original.with_suffix(suffix), path.with_suffix(suffix))
    return path


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no package `compiler`."""
    monkeypatch.setattr(library, "is_checkout", lambda: False)
    monkeypatch.setattr(library, "_loaded", {})


def test_the_library_of_this_machine_is_current() -> None:
    assert load(PLANE).description == check(PLANE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machine": "vax"}, r"is for vax, but this machine is \w+"),
        ({"version": "0.0.9"}, r"is of version 0\.0\.9, but this is \d"),
        ({"sources": "0" * 24}, "was built from sources that have changed"),
        ({"compiler": "0" * 24}, "was built by another version of the compiler package"),
        ({"sha256": "0" * 64}, "is damaged, or from another build than its description"),
    ],
)
def test_what_does_not_match_is_not_used(copied: Path, changes: dict[str, str], reason: str) -> None:
    write(copied, msgspec.structs.replace(describe(copied), **changes))
    with pytest.raises(LibraryError, match=reason) as raised:
        check(PLANE, copied)
    assert str(copied) in str(raised.value)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4096, -1])
def test_a_truncated_library_is_not_used(copied: Path, size: int) -> None:
    content = copied.read_bytes()
    copied.write_bytes(content[:size])
    with pytest.raises(LibraryError, match="is damaged"):
        check(PLANE, copied)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}'])
def test_a_damaged_description_is_not_used(copied: Path, content: bytes) -> None:
    copied.with_suffix(".json").write_bytes(content)
    with pytest.raises(LibraryError, match=r"\.json is damaged"):
        check(PLANE, copied)


@pytest.mark.parametrize("suffix", [".so", ".json"])
def test_what_is_missing_is_named(copied: Path, suffix: str) -> None:
    copied.with_suffix(suffix).unlink()
    with pytest.raises(LibraryError, match=rf"{copied.stem}\{suffix} is missing"):
        check(PLANE, copied)


@pytest.mark.parametrize("suffix", [".so", ".json"])
def test_what_cannot_be_read_is_named(copied: Path, suffix: str) -> None:
    copied.with_suffix(suffix).unlink()
    copied.with_suffix(suffix).mkdir()
    with pytest.raises(LibraryError, match=rf"{copied.stem}\{suffix} cannot be read: Is a directory"):
        check(PLANE, copied)


def test_a_file_that_is_no_library_is_an_error_and_no_crash(copied: Path) -> None:
    copied.write_bytes(b"\x7fELF" + bytes(200))
    with pytest.raises(LibraryError, match="cannot be loaded"):
        library.Library(copied, describe_again(copied))


def describe_again(path: Path) -> Description:
    """The description beside a file, made to match whatever the file is."""
    old = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Description)
    return msgspec.structs.replace(old, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.usefixtures("wheel")
def test_a_changed_source_is_refused_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(_source: Source) -> str:
        return "0" * 24

    monkeypatch.setattr(Source, "digest", changed)
    with pytest.raises(LibraryError, match="from sources that have changed: install the wheel"):
        load(PLANE)


def test_the_digest_covers_what_compiled_code_takes_in() -> None:
    covered = {path.relative_to(ROOT).as_posix() for source in (PLANE, MEL) for path in source.files()}
    for package in ("daemon", "backends"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            is_compiled = re.search(r"^@(compiled|inlined)\b", text, re.MULTILINE)
            if (
                not is_compiled or "from config.compilation import" not in text
            ):  # CUDA kernels have digests of their own
                continue
            assert path.relative_to(ROOT).as_posix() in covered
            for module in re.findall(r"^from ((?:daemon|backends)[\w.]*) import", text, re.MULTILINE):
                name = module.replace(".", "/") + ".py"
                assert name in covered or (ROOT / module.replace(".", "/")).is_dir(), (
                    f"{path} is compiled, and imports {module}, which the digest leaves out"
                )


def test_admission_and_metrics_are_left_out() -> None:
    covered = {path.name for path in PLANE.files()}
    assert not {"admission.py", "metrics.py", "service.py", "data_plane.py"} & covered


def test_the_level_is_one_that_the_processor_has() -> None:
    assert cpu_level() in {"", "v2", "v3", "v4"}
    assert level_of(PLANE) in {"", *PLANE.levels}
    assert level_of(PLANE) <= cpu_level()


@pytest.mark.parametrize(("level", "plane", "mel"), [("v2", "v2", "v2"), ("v3", "v3", "v3"), ("v4", "v3", "v4")])
def test_a_level_can_be_chosen(monkeypatch: pytest.MonkeyPatch, level: str, plane: str, mel: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(library.LEVEL_VARIABLE, level)
    cpu_level.cache_clear()
    try:
        assert (level_of(PLANE), level_of(MEL)) == (plane, mel)
    finally:
        cpu_level.cache_clear()


FORBIDDEN = ("numba", "llvmlite", "compiler")


@pytest.mark.parametrize(
    "module", ["daemon.service", "daemon.control.http.wiring", "backends.mel.backend", "backends.mel.cuda.engine"]
)
def test_nothing_that_runs_imports_the_compiler(module: str) -> None:
    program = f"import {module}, sys; print(*sorted(name for name in {FORBIDDEN!r} if name in sys.modules))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
