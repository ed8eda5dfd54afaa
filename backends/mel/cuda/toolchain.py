"""What the CUDA kernels need of the compiler, without its types: the untyped edge of this folder.

Apart from `kernels`, so that Numba's cache of the daemon's compiled code does not depend on the CUDA kernels.
"""

from __future__ import annotations

from typing import Any

from config import compilation

cuda: Any = compilation.cuda()
float32: Any = compilation.types.float32


def inlined(function: Any) -> Any:
    """A device function that is part of its callers: its arrays must become registers there."""
    return compilation.cuda_function(function)
