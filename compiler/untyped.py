"""Untyped access to Numba and llvmlite, whose type information does not cover replaced or private parts."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import llvmlite.ir
import numba as numba_package
from numba import extending as numba_extending
from numba.core import cgutils as numba_cgutils
from numba.core import codegen as numba_codegen
from numba.core import cpu, dispatcher, event, ir, pythonapi, registry, targetconfig
from numba.core.types import npytypes
from numba.core.typing import npydecl
from numba.np import numpy_support

numba: Any = numba_package
types: Any = numba_package.types
extending: Any = numba_extending
llvm_ir: Any = llvmlite.ir
llvm: Any = llvmlite.binding

cgutils: Any = numba_cgutils
codegen: Any = numba_codegen
events: Any = event
cpu_target: Any = registry.cpu_target
Context: Any = cpu.CPUContext
Dispatcher: Any = dispatcher.Dispatcher
PythonApi: Any = pythonapi.PythonAPI
Record: Any = npytypes.Record
Variable: Any = ir.Var
Instruction: Any = ir.Inst
Flags: Any = targetconfig.TargetConfig
modules_with_ufunc_loops: tuple[Any, ...] = numpy_support, npydecl
