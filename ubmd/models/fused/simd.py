"""Vectors of eight numbers as a type of Numba: what a kernel does, it does to eight numbers at a time.

The compiler finds such vectors in ordinary loops only now and then. Arrays are flat here: an index counts numbers from
the start of a contiguous array of whatever shape.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = ["WIDTH", "add", "fma", "load", "multiply", "spread", "store", "total"]

WIDTH = 8
"""Numbers of a vector: a register of AVX2 in float32."""


class Vector(types.Type):
    """Eight numbers of a type."""

    def __init__(self, dtype: Any):
        self.dtype = dtype
        super().__init__(f"vector({dtype}, {WIDTH})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector):
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), WIDTH))


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Pointer to a vector in an array."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_value_type(array_type.dtype), WIDTH)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(typingctx, array, index):
    """The eight numbers of an array from an index on."""

    def codegen(context, builder, signature, args):
        vector = builder.load(_place(context, builder, signature.args[0], *args))
        vector.align = array.dtype.bitwidth // 8
        return vector

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, vector):
    """Writes eight numbers to an array from an index on."""

    def codegen(context, builder, signature, args):
        written = builder.store(args[2], _place(context, builder, signature.args[0], *args[:2]))
        written.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def spread(typingctx, number):
    """Eight times the same number."""

    def codegen(context, builder, signature, args):
        vector = context.get_value_type(signature.return_type)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))

    return Vector(number)(number), codegen


@intrinsic
def multiply(typingctx, a, b):
    """A b."""

    def codegen(context, builder, signature, args):
        return builder.fmul(*args)

    return a(a, b), codegen


@intrinsic
def add(typingctx, a, b):
    """A + b."""

    def codegen(context, builder, signature, args):
        return builder.fadd(*args)

    return a(a, b), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """A b + c, rounded once."""

    def codegen(context, builder, signature, args):
        vector = context.get_value_type(signature.return_type)
        name = f"llvm.fma.v{WIDTH}f{a.dtype.bitwidth}"
        kind = ir.FunctionType(vector, [vector] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return a(a, b, c), codegen


@intrinsic
def total(typingctx, a):
    """Sum of the eight numbers, half by half."""

    def codegen(context, builder, signature, args):
        index = ir.IntType(32)
        (vector,), width = args, WIDTH
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    vector, vector, ir.Constant(ir.VectorType(index, width), list(range(at, at + width)))
                )
                for at in (0, width)
            ]
            vector = builder.fadd(*halves)
        return builder.extract_element(vector, index(0))

    return a.dtype(a), codegen
