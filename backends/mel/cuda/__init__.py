"""Mel frames on NVIDIA GPUs. Read `layout` first (what a launch is told), then `kernels`, `device`, `engine`.

Nothing is imported here: `kernels` needs Numba's CUDA target and `pycuda_device` the extra `gpu`, and only a process
that uses a GPU imports them.
"""
