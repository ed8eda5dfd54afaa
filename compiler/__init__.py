"""Builds machine code ahead of time: the plane and the CPU's mel frames as shared libraries.

Part of a source checkout, not of a wheel; `config.library` loads its output. `python -m compiler` builds what is
missing or stale for this machine. Nothing else that runs imports Numba or llvmlite.
"""
