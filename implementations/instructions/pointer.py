"""Memory that a kernel finds by its address. In CUDA C++ that is a pointer of the language."""

import ctypes

import numpy as np
from llvmlite import ir
from numba.cuda import types

from implementations.instructions.ptx import cpu, i64, on_gpu


def _array_at(address, count):
    def code(context, builder, signature, args):
        from numba.cuda.np import arrayobj

        array = context.make_array(signature.return_type)(context, builder)
        data = builder.inttoptr(args[0], ir.IntType(16).as_pointer())
        size = ir.Constant(ir.IntType(64), 2)  # bytes of an element
        arrayobj.populate_array(array, data, [args[1]], [size], size, meminfo=None)
        return array._getvalue()

    return types.Array(types.int16, 1, "C")(i64, i64), code


@on_gpu(_array_at)
def array_at(address, count):
    """`count` words of 16 bits from a global address on, as a one-dimensional int16 array."""
    if not count:
        return np.empty(0, np.int16)
    memory = (ctypes.c_int16 * count).from_address(int(address))
    return np.ctypeslib.as_array(memory).view(cpu.Argument)
