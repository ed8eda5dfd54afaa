"""Runs a program under the container's seccomp profile, without a container engine.

    python -m tests.deploy.seccomp PROFILE PROGRAM [ARGUMENT ...]

Understands the part of Docker's format that our profile uses, and refuses what it does not know.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

# From seccomp.h; libseccomp's values are part of its ABI.
ACT_ALLOW = 0x7FFF0000
ACT_ERRNO = 0x00050000
COMPARISONS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
NOT_A_CALL = -1


class ArgumentComparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("index", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def action_of(entry: dict[str, Any], *, name_key: str = "action", errno_key: str = "errnoRet") -> int:
    if entry[name_key] == "SCMP_ACT_ALLOW":
        return ACT_ALLOW
    if entry[name_key] == "SCMP_ACT_ERRNO":
        return ACT_ERRNO | int(entry[errno_key])
    raise ValueError(f"unknown action {entry[name_key]!r}")


def comparison_of(argument: dict[str, Any]) -> ArgumentComparison:
    return ArgumentComparison(
        argument["index"], COMPARISONS[argument["op"]], argument["value"], argument.get("valueTwo", 0)
    )


def load_profile(profile: dict[str, Any]) -> None:
    """Put the calling thread, and all that it starts, under the profile. There is no way back."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(ArgumentComparison),
    )
    library.seccomp_load.argtypes = (ctypes.c_void_p,)

    default_action = action_of(profile, name_key="defaultAction", errno_key="defaultErrnoRet")
    context = library.seccomp_init(default_action)
    for entry in profile["syscalls"]:
        unknown_keys = set(entry) - {"comment", "names", "action", "errnoRet", "args"}
        if unknown_keys:
            raise ValueError(f"unknown keys {unknown_keys}")
        action = action_of(entry)
        # A rule that says what happens anyway is an error to libseccomp.
        if action == default_action:
            continue
        comparisons = [comparison_of(argument) for argument in entry.get("args", [])]
        array = (ArgumentComparison * len(comparisons))(*comparisons)
        for name in entry["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            # A name that this libseccomp or architecture has no number for: engines pass over it as well.
            if number == NOT_A_CALL:
                continue
            result = library.seccomp_rule_add_array(context, action, number, len(comparisons), array)
            if result != 0:
                raise OSError(-result, f"rule for {name}: {os.strerror(-result)}")
    result = library.seccomp_load(context)
    if result != 0:
        raise OSError(-result, f"the profile was not taken: {os.strerror(-result)}")


def main() -> None:
    load_profile(json.loads(Path(sys.argv[1]).read_text()))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
