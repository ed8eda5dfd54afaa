"""Set up a ring: python-liburing's C library makes and maps it, registers restrictions, and enables it.

The ring is made on the thread that uses it (SINGLE_ISSUER): any other would get EEXIST. It is created disabled, its
operations are restricted to those in use, then it is enabled. Features later than Linux 6.1 are tried and done without.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from daemon.plane.entries import BUFFER_SELECT, OPCODES, SEND_ZC

SETUP_SQPOLL = 1 << 1
SETUP_CQSIZE = 1 << 3
SETUP_R_DISABLED = 1 << 6
SETUP_SUBMIT_ALL = 1 << 7
SETUP_SINGLE_ISSUER = 1 << 12
SETUP_DEFER_TASKRUN = 1 << 13
SETUP_NO_SQARRAY = 1 << 16
FEATURE_EXT_ARG = 1 << 8
RESTRICTION_SQE_OP = 1
KERNEL_MIN = (6, 1)


class KernelError(Exception):
    """A kernel interface that cannot be used, and why."""


class _Offsets(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 8), ("user_address", ctypes.c_uint64)]


class _Parameters(ctypes.Structure):
    """struct io_uring_params."""

    _fields_ = [
        ("sq_entries", ctypes.c_uint32),
        ("cq_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("sq_thread_cpu", ctypes.c_uint32),
        ("sq_thread_idle", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("wq_fd", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 3),
        ("sq_off", _Offsets),
        ("cq_off", _Offsets),
    ]


class _SubmissionQueue(ctypes.Structure):
    """struct io_uring_sq of liburing 2."""

    _fields_ = [
        ("head", ctypes.c_void_p),
        ("tail", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("entries", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("dropped", ctypes.c_void_p),
        ("array", ctypes.c_void_p),
        ("sqes", ctypes.c_void_p),
        ("sqe_head", ctypes.c_uint32),
        ("sqe_tail", ctypes.c_uint32),
        ("ring_bytes", ctypes.c_size_t),
        ("ring_address", ctypes.c_void_p),
        ("ring_mask", ctypes.c_uint32),
        ("ring_entries", ctypes.c_uint32),
        ("padding", ctypes.c_uint32 * 2),
    ]


class _CompletionQueue(ctypes.Structure):
    """struct io_uring_cq of liburing 2."""

    _fields_ = [
        ("head", ctypes.c_void_p),
        ("tail", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("entries", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("overflow", ctypes.c_void_p),
        ("cqes", ctypes.c_void_p),
        ("ring_bytes", ctypes.c_size_t),
        ("ring_address", ctypes.c_void_p),
        ("ring_mask", ctypes.c_uint32),
        ("ring_entries", ctypes.c_uint32),
        ("padding", ctypes.c_uint32 * 2),
    ]


class _Ring(ctypes.Structure):
    """struct io_uring of liburing 2."""

    _fields_ = [
        ("sq", _SubmissionQueue),
        ("cq", _CompletionQueue),
        ("flags", ctypes.c_uint32),
        ("ring_fd", ctypes.c_int),
        ("features", ctypes.c_uint32),
        ("enter_ring_fd", ctypes.c_int),
        ("padding", ctypes.c_uint32 * 2),
    ]


class _Restriction(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint16),
        ("operation", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
        ("more", ctypes.c_uint32 * 3),
    ]


class _Probe(ctypes.Structure):
    """struct io_uring_probe with its operations."""

    class Operation(ctypes.Structure):
        _fields_ = [
            ("operation", ctypes.c_uint8),
            ("reserved", ctypes.c_uint8),
            ("flags", ctypes.c_uint16),
            ("more", ctypes.c_uint32),
        ]

    _fields_ = [
        ("last", ctypes.c_uint8),
        ("length", ctypes.c_uint8),
        ("reserved", ctypes.c_uint16),
        ("more", ctypes.c_uint32 * 3),
        ("operations", Operation * 256),
    ]


class _BufferRing(ctypes.Structure):
    """struct io_uring_buf_reg."""

    _fields_ = [
        ("ring_address", ctypes.c_uint64),
        ("ring_entries", ctypes.c_uint32),
        ("group", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("reserved", ctypes.c_uint64 * 3),
    ]


@dataclass(frozen=True)
class Buffers:
    """Memory of a ring of provided buffers, page-aligned; group 0."""

    address: int
    entry_count: int


@dataclass
class Ring:
    """A mapped, enabled ring. Addresses are of the kernel's own words."""

    fd: int
    structure: _Ring
    submission_entries: int
    completion_entries: int
    features: dict[str, bool] = field(default_factory=dict[str, bool])


def liburing() -> ctypes.CDLL:
    """The C library inside python-liburing's extension module."""
    specification = importlib.util.find_spec("liburing")
    if specification is None or specification.origin is None:
        message = "python-liburing is not installed"
        raise KernelError(message)
    return ctypes.CDLL(str(Path(specification.origin).parent / "liburing.so"), use_errno=True)


def kernel_version() -> tuple[int, int]:
    """(major, minor) of the running Linux."""
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _check_kernel() -> None:
    if kernel_version() < KERNEL_MIN:
        message = f"Linux {platform.release()} is older than {KERNEL_MIN[0]}.{KERNEL_MIN[1]}"
        raise KernelError(message)
    disabled = Path("/proc/sys/kernel/io_uring_disabled")
    if disabled.exists() and disabled.read_text().strip() == "2":
        message = "sysctl kernel.io_uring_disabled is 2"
        raise KernelError(message)


def _explain(code: int) -> str:
    reasons = {
        errno.EPERM: "io_uring_setup is forbidden (by seccomp, as in Docker, or kernel.io_uring_disabled)",
        errno.ENOSYS: "this kernel has no io_uring",
        errno.EINVAL: "this kernel lacks a required feature (SINGLE_ISSUER, DEFER_TASKRUN: Linux 6.1)",
        errno.ENOMEM: "no memory for the ring (RLIMIT_MEMLOCK?)",
        errno.EMFILE: "no descriptor for the ring (RLIMIT_NOFILE)",
    }
    return reasons.get(code, f"io_uring_setup: {os.strerror(code)}")


def open_ring(
    entries: int,
    *,
    sqpoll: bool = False,
    no_sqarray: bool = True,
    restrict: bool = True,
    buffers: Buffers | None = None,
) -> Ring:
    """Make, restrict and enable a ring of `entries` submissions and four times as many completions, on this thread."""
    _check_kernel()
    library = liburing()
    ring = _Ring()
    base = SETUP_CQSIZE | SETUP_R_DISABLED | SETUP_SUBMIT_ALL | SETUP_SINGLE_ISSUER
    base |= SETUP_SQPOLL if sqpoll else SETUP_DEFER_TASKRUN
    without_array = no_sqarray
    code = _initialise(library, ring, entries, base | (SETUP_NO_SQARRAY if without_array else 0))
    if code == -errno.EINVAL and without_array:
        without_array = False
        code = _initialise(library, ring, entries, base)
    if code < 0:
        raise KernelError(_explain(-code))
    opened = Ring(ring.ring_fd, ring, entries, 4 * entries)
    if not ring.features & FEATURE_EXT_ARG:
        close_ring(opened)
        message = "this kernel lacks timeouts in io_uring_enter (EXT_ARG)"
        raise KernelError(message)
    supported = _probe(library, ring)
    missing = [str(opcode) for opcode in OPCODES if opcode != SEND_ZC and opcode not in supported]
    if missing:
        close_ring(opened)
        message = f"this kernel's io_uring lacks operations {', '.join(missing)}"
        raise KernelError(message)
    opened.features = {"no_sqarray": without_array, "send_zero_copy": SEND_ZC in supported, "sqpoll": sqpoll}
    if buffers is not None:
        _provide(library, opened, buffers)
    opened.features["restrictions"] = restrict and _restrict(library, ring, supported)
    code = library.io_uring_enable_rings(ctypes.byref(ring))
    if code < 0:
        close_ring(opened)
        message = f"io_uring_enable_rings: {os.strerror(-code)}"
        raise KernelError(message)
    return opened


def _initialise(library: ctypes.CDLL, ring: _Ring, entries: int, flags: int) -> int:
    parameters = _Parameters(flags=flags, cq_entries=4 * entries, sq_thread_idle=50)
    return int(library.io_uring_queue_init_params(entries, ctypes.byref(ring), ctypes.byref(parameters)))


def _probe(library: ctypes.CDLL, ring: _Ring) -> set[int]:
    """Operations this kernel knows."""
    probe = _Probe()
    code = library.io_uring_register_probe(ctypes.byref(ring), ctypes.byref(probe), 256)
    if code < 0:
        return set()
    return {operation.operation for operation in probe.operations[: probe.length] if operation.flags & 1}


def _provide(library: ctypes.CDLL, opened: Ring, buffers: Buffers) -> None:
    """Register the ring of buffers to receive into; before the restrictions, which forbid all registering."""
    registration = _BufferRing(ring_address=buffers.address, ring_entries=buffers.entry_count, group=0)
    code = library.io_uring_register_buf_ring(ctypes.byref(opened.structure), ctypes.byref(registration), 0)
    if code < 0:
        close_ring(opened)
        message = f"io_uring_register_buf_ring: {os.strerror(-code)}"
        raise KernelError(message)


def _restrict(library: ctypes.CDLL, ring: _Ring, supported: set[int]) -> bool:
    """Permit only the operations in use. False where the kernel knows no restrictions."""
    allowed = [opcode for opcode in OPCODES if opcode in supported]
    restrictions = (_Restriction * (len(allowed) + 1))()
    for entry, opcode in zip(restrictions, allowed, strict=False):
        entry.kind = RESTRICTION_SQE_OP
        entry.operation = opcode
    restrictions[len(allowed)].kind = 2  # RESTRICTION_SQE_FLAGS_ALLOWED
    restrictions[len(allowed)].operation = BUFFER_SELECT
    return int(library.io_uring_register_restrictions(ctypes.byref(ring), restrictions, len(restrictions))) >= 0


def close_ring(ring: Ring) -> None:
    """Unmap and close; every operation in flight is cancelled by the kernel."""
    liburing().io_uring_queue_exit(ctypes.byref(ring.structure))
