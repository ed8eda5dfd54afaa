"""Builds machine code ahead of time: the plane and the CPU's mel frames as shared libraries.

Part of a source checkout and of no wheel; what it makes is loaded by `config.library`. `python -m compiler` builds what
is missing or stale for this machine. Numba and llvmlite are imported here and nowhere else in what runs.
"""
