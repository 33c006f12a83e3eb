"""Triton's interpreter, mended where it is wrong or missing.

It holds bfloat16 as integers, and then calculates with these and truncates where a GPU rounds; a
TF32 `tl.dot` keeps all bits of float32; functions of libdevice give None; autotune asks for a
driver.
"""

from functools import partial, wraps

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice as stubs
from triton.language.extra.cuda import libdevice as symbols
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, interpreter_semantic

from implementations.common.cpu import libdevice

TF32_BITS = np.uint32(0xFFFFE000)  # tensor cores ignore the last 13 bits of a float32
IN_FLOAT32 = ("binary_op", "unary_op", "create_fma")  # on bfloat16, and then rounded


def _is_bfloat16(x) -> bool:
    return isinstance(x, TensorHandle) and x.dtype.scalar == tl.bfloat16


def _from_bfloat16(x):
    """A handle of bfloat16 as one of float32; anything else as it is."""
    if not _is_bfloat16(x):
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _to_bfloat16(x: TensorHandle) -> TensorHandle:
    """A handle of float32 rounded to bfloat16, to nearest, ties to even."""
    bits = np.ascontiguousarray(x.data, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    rounded = np.where(np.isnan(x.data), 0x7FFF, rounded).astype(np.uint16)
    return TensorHandle(rounded.reshape(np.shape(x.data)), tl.bfloat16)


def _in_float32(method):
    """A method of the builder that computes on bfloat16 as a GPU does."""

    @wraps(method)
    def on_values(self, *args):
        result = method(self, *map(_from_bfloat16, args))
        if any(map(_is_bfloat16, args)) and result.data.dtype == np.float32:
            return _to_bfloat16(result)
        return result

    return on_values


def _cast(method):
    """A conversion of the builder, `method(self, x, dtype, ...)`, from and to bfloat16 as well."""

    @wraps(method)
    def cast(self, x, dtype, *rest):
        if tl.bfloat16 not in (x.dtype.scalar, dtype.scalar):
            return method(self, x, dtype, *rest)
        value, wanted = _from_bfloat16(x), dtype.scalar
        target = tl.float32 if wanted == tl.bfloat16 else wanted
        if value.dtype.scalar != target:
            value = self.cast_impl(value, target)
        return _to_bfloat16(value) if wanted == tl.bfloat16 else value

    return cast


def _dot_operand(x, input_precision):
    """The values of an operand of `tl.dot`, as the tensor cores take them."""
    dtype = x.dtype.scalar
    if dtype not in (tl.float32, tl.float16, tl.bfloat16):
        raise NotImplementedError(f"tl.dot of {dtype} has no meaning on the CPU tier")
    if dtype == tl.float32 and str(input_precision).endswith("TF32"):
        return (np.ascontiguousarray(x.data).view(np.uint32) & TF32_BITS).view(np.float32)
    return _from_bfloat16(x).data


def _dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    a, b = (_dot_operand(x, input_precision) for x in (a, b))
    return TensorHandle(np.matmul(a, b, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def _extern_elementwise(self, lib_name, lib_path, symbol, args, ret_type, is_pure):
    values = libdevice.meaning(symbol.removeprefix("__nv_"))(*(arg.data for arg in args))
    return TensorHandle(values, ret_type.scalar)


def _run_once(call, quantiles=(0.5,)):
    """Instead of a benchmark: every configuration runs once, and the first is kept."""
    call()
    return [1.0] * len(quantiles)


def install() -> None:
    """Mend the interpreter. Before the first kernel is launched, and once."""
    for name in IN_FLOAT32:
        setattr(InterpreterBuilder, name, _in_float32(getattr(InterpreterBuilder, name)))
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(InterpreterBuilder, name, _cast(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = _dot
    InterpreterBuilder.create_extern_elementwise = _extern_elementwise
    Autotuner.do_bench = staticmethod(_run_once)
    for name, function in vars(symbols).items():
        if hasattr(stubs, name) and callable(function):
            setattr(stubs, name, partial(function, _semantic=interpreter_semantic))
