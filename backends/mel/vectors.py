"""Vectors in compiled code: one lane for each of several frames, so that nothing is ever summed across lanes.

Numba has no type for a vector, and whether LLVM makes vectors of a loop over frames hangs on what it can prove of the
arrays. So nothing is left to be found out: `backends.mel.transform` is run with a `Vector` for each number while the
caller is compiled, and each operation writes the one LLVM instruction that does it in all lanes.
LLVM allots the registers, several for a vector where they are narrower. `backends.mel.batch` uses this.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from config.compilation import intrinsic, ir, types, vector_bits
from config.library import MEL, level_of

if TYPE_CHECKING:
    from collections.abc import Callable

# One register of 512 bits or of 256: 8 lanes in pairs of the latter are 10 % slower, since too few registers are left.
# Of narrower ones (NEON's) two. LANES must divide the 160 samples of a hop and the 80 bins of a frame.
LANES = 8 if vector_bits(512 if level_of(MEL) == "v4" else 256) == 512 else 4

_INT16 = ir.IntType(16)
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_INT16S = ir.VectorType(_INT16, LANES)
_INT32S = ir.VectorType(_INT32, LANES)
_FLOAT32S = ir.VectorType(ir.FloatType(), LANES)
_FLOAT64S = ir.VectorType(ir.DoubleType(), LANES)
_MULTIPLY_ADD = {_FLOAT32S: f"llvm.fmuladd.v{LANES}f32", _FLOAT64S: f"llvm.fmuladd.v{LANES}f64"}
_SQRT_HALF_BITS = 0x3F3504F3  # of a float32
_FRACTION_BITS = 23


class Vector:
    """LANES numbers, all float64 or all float32, of a function that is being compiled."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.value, other.value))

    def __neg__(self) -> Vector:
        return Vector(self.builder, self.builder.fneg(self.value))

    def __mul__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.value, self._in_all_lanes(other)))

    def times_plus(self, factor: Vector | float, summand: Vector | float) -> Vector:
        """The value * factor + summand, rounded once where the processor can: that hangs on it alone, for all lanes."""
        kind = self.value.type
        name, module = _MULTIPLY_ADD[kind], self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind] * 3), name)
        arguments = [self.value, self._in_all_lanes(factor), self._in_all_lanes(summand)]
        return Vector(self.builder, self.builder.call(function, arguments))

    def at_least(self, least: float) -> Vector:
        """The larger one, of values that are no NaN."""
        bound = self._in_all_lanes(least)
        above = self.builder.fcmp_ordered(">", self.value, bound)
        return Vector(self.builder, self.builder.select(above, self.value, bound))

    def narrowed(self) -> Vector:
        """The nearest float32 of each float64."""
        return Vector(self.builder, self.builder.fptrunc(self.value, _FLOAT32S))

    def widened(self) -> Vector:
        """The float64 of each float32."""
        return Vector(self.builder, self.builder.fpext(self.value, _FLOAT64S))

    def exponent_and_fraction(self) -> tuple[Vector, Vector]:
        """(e, f) with value = 2 ** e * (1 + f) and 1 + f in [sqrt(1/2), sqrt(2)), of normal float32 above 0."""
        builder = self.builder
        bits = builder.bitcast(self.value, _INT32S)
        above = builder.sub(bits, ir.Constant(_INT32S, [_SQRT_HALF_BITS] * LANES))
        exponent = builder.ashr(above, ir.Constant(_INT32S, [_FRACTION_BITS] * LANES))
        scale = builder.shl(exponent, ir.Constant(_INT32S, [_FRACTION_BITS] * LANES))
        scaled = builder.bitcast(builder.sub(bits, scale), _FLOAT32S)
        fraction = builder.fsub(scaled, self._in_all_lanes(1.0))
        return Vector(builder, builder.sitofp(exponent, _FLOAT32S)), Vector(builder, fraction)

    def _in_all_lanes(self, number: Vector | float) -> Any:
        return number.value if isinstance(number, Vector) else ir.Constant(self.value.type, [float(number)] * LANES)


class Index:
    """An int64 of a function that is being compiled: which element of a `Memory`, or what leads to it."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    def __add__(self, other: Index | int) -> Index:
        return Index(self.builder, self.builder.add(self.value, _integer(other)))

    def __mul__(self, factor: int) -> Index:
        return Index(self.builder, self.builder.mul(self.value, _integer(factor)))

    def remainder_and_quotient(self, power: int) -> tuple[Index, Index]:
        """What dividing by 2 ** power leaves, and gives, of an index that is not negative."""
        remainder = self.builder.and_(self.value, _integer(2**power - 1))
        return Index(self.builder, remainder), Index(self.builder, self.builder.lshr(self.value, _integer(power)))


class Memory:
    """The elements of a contiguous array that compiled code was given. Indexes count elements, and are not checked."""

    __slots__ = ("builder", "pointer")

    def __init__(self, builder: Any, pointer: Any) -> None:
        self.builder = builder
        self.pointer = pointer

    def load(self, index: Index | int) -> Vector:
        """LANES neighbours of a float64 array."""
        return Vector(self.builder, self.builder.load(self._at(index, _FLOAT64S), align=8))

    def load_samples(self, index: Index | int) -> Vector:
        """LANES neighbours of a float32 or int16 array, as float32."""
        if self.pointer.type.pointee != _INT16:
            return Vector(self.builder, self.builder.load(self._at(index, _FLOAT32S), align=4))
        integers = self.builder.load(self._at(index, _INT16S), align=2)
        return Vector(self.builder, self.builder.sitofp(integers, _FLOAT32S))

    def load_same(self, index: Index | int) -> Vector:
        """One element of a float64 array, in all lanes."""
        undefined = ir.Constant(_FLOAT64S, ir.Undefined)
        element = self.builder.load(self._at(index, _FLOAT64S.element))
        first = self.builder.insert_element(undefined, element, ir.Constant(_INT32, 0))
        return Vector(self.builder, self.builder.shuffle_vector(first, undefined, ir.Constant(_INT32S, [0] * LANES)))

    def load_index(self, index: Index | int) -> Index:
        """One element of an int64 array."""
        return Index(self.builder, self.builder.load(self._at(index, _INT64)))

    def store(self, index: Index | int, vector: Vector) -> None:
        """Overwrite LANES neighbours of an array of the vector's type."""
        align = 8 if vector.value.type == _FLOAT64S else 4
        self.builder.store(vector.value, self._at(index, vector.value.type), align=align)

    def _at(self, index: Index | int, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.pointer, [_integer(index)]), kind.as_pointer())


def written(write: Callable[..., None]) -> Callable[..., None]:
    """Make a function for compiled code out of one that writes its instructions.

    Where compiled code passes an array, `write` is given its `Memory`, and an `Index` where it passes an integer.
    """

    def define(typing_context: Any, *kinds: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given: list[Memory | Index] = []
            for kind, argument in zip(signature.args, arguments, strict=True):
                if isinstance(kind, types.Array):
                    given.append(Memory(builder, context.make_array(kind)(context, builder, argument).data))
                else:
                    given.append(Index(builder, argument))
            write(*given)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    # Numba looks for the names of the parameters, the context's before them.
    parameters = inspect.signature(write).parameters.values()
    context = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    define.__name__ = write.__name__
    define.__doc__ = write.__doc__
    return intrinsic(define)


def array_accessor(element: Any) -> Callable[[int, int], Any]:
    """For compiled code: a function from an address and a count to the array of such elements that lies there."""

    @intrinsic
    def array_at(_context: Any, address: Any, count: Any) -> Any:
        kind = types.Array(element, 1, "C")

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            array = context.make_array(kind)(context, builder)
            one = ir.Constant(ir.ArrayType(_INT64, 1), ir.Undefined)
            size = ir.Constant(_INT64, element.bitwidth // 8)
            array.meminfo, array.parent = (ir.Constant(part.type, None) for part in (array.meminfo, array.parent))
            array.nitems, array.itemsize = arguments[1], size
            array.data = builder.inttoptr(arguments[0], array.data.type)
            array.shape = builder.insert_value(one, arguments[1], 0)
            array.strides = builder.insert_value(one, size, 0)
            return array._getvalue()

        return kind(types.int64, types.int64), generate

    return array_at


def transposed(vectors: list[Vector]) -> list[Vector]:
    """Lane i of vector k becomes lane k of vector i, for LANES vectors.

    Pairs of vectors exchange halves, then quarters, and so on down to single lanes: LANES * log2(LANES) shuffles.
    """
    assert len(vectors) == LANES, f"{len(vectors)} vectors"
    builder = vectors[0].builder
    values = [vector.value for vector in vectors]
    width = LANES // 2
    while width > 0:
        low = [lane + LANES - width if lane & width else lane for lane in range(LANES)]
        high = [lane + LANES if lane & width else lane + width for lane in range(LANES)]
        for index in range(LANES):
            if not index & width:
                pair = values[index], values[index + width]
                values[index] = builder.shuffle_vector(*pair, ir.Constant(_INT32S, low))
                values[index + width] = builder.shuffle_vector(*pair, ir.Constant(_INT32S, high))
        width //= 2
    return [Vector(builder, value) for value in values]


def weighted_sum(values: Memory, first: Index, weights: Memory, weight_first: Index, count: Index) -> Vector:
    """The sum of `count` >= 1 vectors, LANES elements apart from `first` on, each times its weight; in this order.

    This writes a loop; what is written next stands behind it.
    """
    builder = values.builder
    begun = values.load(first) * weights.load_same(weight_first)
    before, loop, behind = builder.block, builder.append_basic_block("sum"), builder.append_basic_block("summed")
    builder.cbranch(builder.icmp_signed(">", count.value, _integer(1)), loop, behind)
    builder.position_at_end(loop)
    step, sum_before = Index(builder, builder.phi(_INT64)), Vector(builder, builder.phi(_FLOAT64S))
    term = values.load(step * LANES + first)
    sum_behind, step_next = term.times_plus(weights.load_same(step + weight_first), sum_before), step + 1
    step.value.add_incoming(_integer(1), before)
    step.value.add_incoming(step_next.value, loop)
    sum_before.value.add_incoming(begun.value, before)
    sum_before.value.add_incoming(sum_behind.value, loop)
    builder.cbranch(builder.icmp_signed("<", step_next.value, count.value), loop, behind)
    builder.position_at_end(behind)
    total = builder.phi(_FLOAT64S)
    total.add_incoming(begun.value, before)
    total.add_incoming(sum_behind.value, loop)
    return Vector(builder, total)


def _integer(number: Index | int) -> Any:
    return number.value if isinstance(number, Index) else ir.Constant(_INT64, number)
