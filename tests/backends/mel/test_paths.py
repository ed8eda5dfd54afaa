"""Files that a request names: nothing outside one directory, and nothing but regular files."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from backends.interface import BackendError
from backends.mel.paths import open_beneath

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside = tmp_path / "data"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a.wav").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "near").symlink_to("sub/a.wav")
    (inside / "linked").symlink_to("sub")
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(inside / "socket"))
    return inside


@pytest.mark.parametrize("path", ["sub/a.wav", "./sub//a.wav", "{root}/sub/a.wav"])
def test_what_lies_below_is_opened(root: Path, path: str) -> None:
    descriptor = open_beneath(str(root), path.format(root=root))
    assert os.read(descriptor, 10) == b"inside"
    os.close(descriptor)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("link", 403), ("near", 403), ("linked/a.wav", 403), ("fifo", 403), ("socket", 403), ("sub", 403)),
        *(("../secret", 403), ("sub/../../secret", 403), ("sub/../sub/a.wav", 403), ("/etc/passwd", 403)),
        *(("{root}", 403), ("{root}2/a", 403), (".", 403), ("a/" * 200, 403)),
        *(("none", 404), ("none/a.wav", 404), ("sub/a.wav/b", 404), ("n" * 300, 404), ("\ud800", 404)),
        *(("", 400), ("a\0b", 400), ("a" * 5000, 400)),
    ],
)
def test_what_does_not_is_refused_and_nothing_is_left_open(root: Path, path: str, status: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError) as raised:
        open_beneath(str(root), path.format(root=root))
    assert raised.value.status == status
    assert len(os.listdir("/proc/self/fd")) == before
