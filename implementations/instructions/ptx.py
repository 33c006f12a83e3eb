"""What makes a Numba device function of PTX: the decorators of the wrappers beside this file.

A wrapper is written once: the decorator holds what runs on a GPU, the function below it is its
meaning on the CPU tier, for which `cpu` has what a thread knows there.
"""

import inspect

from llvmlite import ir
from numba.cuda import types

from implementations import DEVICE
from implementations.common import numba_cuda  # noqa: F401  (configures Numba first)

if DEVICE == "cpu":
    from implementations.tiers.cpu import numba_fibers as cpu
else:
    cpu = None
    from numba.cuda.extending import intrinsic

i32, i64, f32 = types.int32, types.int64, types.float32
i2, i4, f4 = types.UniTuple(i32, 2), types.UniTuple(i32, 4), types.UniTuple(f32, 4)


def kind(name: str):
    """Say what a wrapper is, here and in CUDA C++: a "barrier", which includes waits and fences, a
    "product" of matrices, or a "copy". The study reads it from the source."""
    return lambda wrapper: wrapper


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
    """The PTX `text` of one instruction as `on_gpu`: $0, $1, ... are the result's registers, then
    the arguments'. memory: whether it touches memory, so that the compiler leaves it in its place.
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
