"""Records that C code reads and writes too have C's layouts; our own are aligned and do not overlap."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from daemon.plane import entries, messages, table
from daemon.plane.command_records import COMMAND_LAYOUTS
from daemon.plane.event_records import EVENT_LAYOUTS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

SUBMISSION = {
    "opcode": "opcode",
    "flags": "flags",
    "priority": "ioprio",
    "fd": "fd",
    "offset": "off",
    "address": "addr",
    "length": "len",
    "operation_flags": "msg_flags",
    "tag": "user_data",
    "buffer_index": "buf_index",
    "personality": "personality",
    "splice_fd": "splice_fd_in",
}
COMPLETION = {"tag": "user_data", "result": "res", "flags": "flags"}
HEADER = {
    "name": "msg_name",
    "name_bytes": "msg_namelen",
    "vector": "msg_iov",
    "vector_count": "msg_iovlen",
    "control": "msg_control",
    "control_bytes": "msg_controllen",
    "flags": "msg_flags",
}
VECTOR = {"address": "iov_base", "length": "iov_len"}
ANCILLARY = {"length": "cmsg_len", "level": "cmsg_level", "type": "cmsg_type"}
STRUCTURES: list[tuple[np.dtype[np.void], str, dict[str, str], bool]] = [
    (entries.SUBMISSION, "struct io_uring_sqe", SUBMISSION, True),
    (entries.COMPLETION, "struct io_uring_cqe", COMPLETION, True),
    (table.HEADER, "struct msghdr", HEADER, True),
    (table.VECTOR, "struct iovec", VECTOR, True),
    (table.ANCILLARY, "struct cmsghdr", ANCILLARY, False),
]


def fields(dtype: np.dtype[np.void]) -> dict[str, tuple[np.dtype[np.generic], int]]:
    """Type and offset of each field."""
    return {name: (field[0], field[1]) for name, field in (dtype.fields or {}).items()}


@pytest.fixture(scope="module")
def offsets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """`structure.member` and `structure`: what the C compiler says."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder: Path = tmp_path_factory.mktemp("layouts")
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <sys/socket.h>", "#include <sys/uio.h>"]
    lines += ["#include <linux/io_uring.h>", "int main(void) {"]
    for _, structure, members, _ in STRUCTURES:
        lines.append(f'printf("{structure}=%zu\\n", sizeof({structure}));')
        lines += [f'printf("{structure}.{m}=%zu\\n", offsetof({structure}, {m}));' for m in members.values()]
    (folder / "layouts.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([compiler, "-o", folder / "layouts", folder / "layouts.c"], check=True)
    output = subprocess.run([folder / "layouts"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split("=") for line in output.splitlines())}


@pytest.mark.parametrize(("dtype", "structure", "members", "whole"), STRUCTURES, ids=[s[1] for s in STRUCTURES])
def test_layouts_are_those_of_the_c_headers(
    offsets: dict[str, int], dtype: np.dtype[np.void], structure: str, members: dict[str, str], *, whole: bool
) -> None:
    assert {ours: fields(dtype)[ours][1] for ours in members} == {
        ours: offsets[f"{structure}.{theirs}"] for ours, theirs in members.items()
    }
    if whole:
        assert dtype.itemsize == offsets[structure]


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (table.STREAM, 384),
        (table.CHANNEL, 64),
        (table.GLOBALS, 1024),
        *((layout.dtype, messages.EVENT_BYTES) for layout in EVENT_LAYOUTS.values()),
        *((layout.dtype, messages.COMMAND_BYTES) for layout in COMMAND_LAYOUTS.values()),
    ],
    ids=[
        *("stream", "channel", "globals"),
        *(layout.record.__name__ for layout in EVENT_LAYOUTS.values()),
        *(layout.record.__name__ for layout in COMMAND_LAYOUTS.values()),
    ],
)
def test_records_are_aligned_and_do_not_overlap(dtype: np.dtype[np.void], size: int) -> None:
    assert dtype.itemsize == size
    end = 0
    for kind, offset in sorted(((kind, offset) for kind, offset in fields(dtype).values()), key=lambda f: f[1]):
        assert offset >= end
        assert offset % kind.alignment == 0
        end = offset + kind.itemsize
    assert end <= size


def test_an_adopts_own_fields_lie_behind_those_of_its_open() -> None:
    names = [field.name for layout in (messages.OPEN, messages.ADOPT) for field in COMMAND_LAYOUTS[layout].fields]
    assert len(set(names)) == len(names)
    assert COMMAND_LAYOUTS[messages.ADOPT].fields[0].offset >= COMMAND_LAYOUTS[messages.OPEN].fields[-1].end


@pytest.mark.parametrize(("payload", "total"), [(0, 128), (1, 192), (64, 192), (65, 256), (3968, 4096)])
def test_commands_are_padded_to_lines(payload: int, total: int) -> None:
    assert messages.padded(payload) == total
