"""PTX instructions and 16-byte accesses as Numba device functions: the twin of ptx.cuh.

Each wrapper is written once: the decorator holds the PTX that runs on a GPU, the function below it is
its meaning on the CPU tier. A fragment is the tuple of one thread's registers. Layouts of the fragments
over a warp's lanes: PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix".
"""

import inspect

import numpy as np
from numba.cuda import types

from implementations import DEVICE
from implementations.common import numba_cuda  # noqa: F401  (configures Numba first)

if DEVICE == "cpu":
    from implementations.common.cpu.numba_fibers import exchange, lane, thread_state
else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

i32, i64, f32 = types.int32, types.int64, types.float32
i2, i4, f4 = types.UniTuple(i32, 2), types.UniTuple(i32, 4), types.UniTuple(f32, 4)


def on_gpu(codegen):
    """Replace the decorated CPU meaning by an intrinsic of the same parameters.

    codegen: argument types → (signature, code(context, builder, signature, args)).
    """

    def replace(meaning):
        if DEVICE == "cpu":
            return meaning

        def typing(typingctx, *argtypes):
            return codegen(*argtypes)

        context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(meaning).parameters.values()
        typing.__signature__ = inspect.Signature([context, *parameters])
        typing.__name__ = meaning.__name__
        return intrinsic(typing)

    return replace


def ptx(text, signature, memory=False):
    """The PTX `text` of one instruction as `on_gpu`: $0, $1, ... are the result's registers, then the
    arguments'. memory: whether it reads or writes memory, so that the compiler leaves it in its place.
    """

    def registers(kind):
        return [kind.dtype] * kind.count if isinstance(kind, types.UniTuple) else [kind]

    def code(context, builder, signature, args):
        results = [] if signature.return_type == types.void else registers(signature.return_type)
        constraints = ["=" + letter[kind] for kind in results]
        operands = []
        for kind, arg in zip(signature.args, args, strict=True):
            constraints += [letter[k] for k in registers(kind)]
            if isinstance(kind, types.UniTuple):
                operands += [builder.extract_value(arg, j) for j in range(kind.count)]
            else:
                operands.append(arg)
        if memory:
            constraints.append("~{memory}")
        values = [context.get_value_type(kind) for kind in results]
        if len(values) > 1:
            out = ir.LiteralStructType(values)
        else:
            out = values[0] if values else ir.VoidType()
        function = ir.FunctionType(out, [o.type for o in operands])
        called = builder.call(
            ir.InlineAsm(function, text, ",".join(constraints), side_effect=memory), operands
        )
        if len(values) < 2:
            return called if values else context.get_dummy_value()
        fragment = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for j in range(len(values)):
            fragment = builder.insert_value(fragment, builder.extract_value(called, j), j)
        return fragment

    letter = {f32: "f", i32: "r", i64: "l"}
    return on_gpu(lambda *argtypes: (signature, code))


# --- addresses ---------------------------------------------------------------------------------------


def _address(array, index):
    def code(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        return builder.ptrtoint(builder.gep(data, [args[1]]), ir.IntType(64))

    return i64(array, i64), code


@on_gpu(_address)
def address(array, index):
    """&array[index] of a one-dimensional array, for the wrappers below."""
    return array[index:]


# --- 16-byte accesses: Numba never joins scalar ones ---------------------------------------------------


def _words(context, builder, array, data, index):
    """&data[index] as a pointer to 16 bytes, and the LLVM type of the elements held there."""
    size = 16 // (array.dtype.bitwidth // 8)
    element = {16: ir.HalfType(), 32: ir.FloatType()}[array.dtype.bitwidth]
    vector = ir.VectorType(element, size)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer()), vector


def _load_pack(array, index, values, first):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        data = context.make_array(kind)(context, builder, value=args[0]).data
        local = context.make_array(signature.args[2])(context, builder, value=args[2]).data
        pointer, vector = _words(context, builder, kind, data, args[1])
        pack = builder.load(pointer, align=16)
        for j in range(vector.count):
            value = builder.extract_element(pack, ir.Constant(ir.IntType(32), j))
            if kind.dtype.bitwidth == 16:
                value = builder.fpext(value, ir.FloatType())
            at = builder.add(args[3], ir.Constant(ir.IntType(64), j))
            builder.store(value, builder.gep(local, [at]))
        return context.get_dummy_value()

    return types.void(array, i64, values, i64), code


@on_gpu(_load_pack)
def load_pack(array, index, values, first):
    """The 16 bytes from array[index], float32 or float16, as fp32 into values[first:]; one LDG.128."""
    size = 16 // array.itemsize
    values[first : first + size] = array[index : index + size]


def _store_pack(array, index, values, first):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        data = context.make_array(kind)(context, builder, value=args[0]).data
        local = context.make_array(signature.args[2])(context, builder, value=args[2]).data
        pointer, vector = _words(context, builder, kind, data, args[1])
        pack = ir.Constant(vector, ir.Undefined)
        for j in range(vector.count):
            at = builder.add(args[3], ir.Constant(ir.IntType(64), j))
            value = builder.load(builder.gep(local, [at]))
            if kind.dtype.bitwidth == 16:
                value = builder.fptrunc(value, ir.HalfType())
            pack = builder.insert_element(pack, value, ir.Constant(ir.IntType(32), j))
        builder.store(pack, pointer, align=16)
        return context.get_dummy_value()

    return types.void(array, i64, values, i64), code


@on_gpu(_store_pack)
def store_pack(array, index, values, first):
    """values[first:] rounded to the array's dtype into the 16 bytes from array[index]; one STG.128."""
    size = 16 // array.itemsize
    array[index : index + size] = values[first : first + size]
