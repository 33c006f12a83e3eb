"""Triton's interpreter, mended where it is wrong or missing.

It holds bfloat16 as integers, and then calculates with these and truncates where a GPU rounds; a
TF32 `tl.dot` keeps all bits of float32; functions of libdevice give None; autotune asks for a
driver. It also takes any address, and gives zeros where a mask leaves open what is loaded: here an
address must lie in a tensor of the launch, what is left open is NaN, and a `tl.multiple_of` is one.
"""

from collections.abc import Iterator
from functools import partial, wraps

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice as stubs
from triton.language.extra.cuda import libdevice as symbols
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import (
    GridExecutor,
    InterpretedFunction,
    InterpreterBuilder,
    ReduceOps,
    TensorHandle,
    interpreter_semantic,
)

from implementations.tiers.cpu import ONE_AT_A_TIME, bfloat16, libdevice, pointed_at

TF32_BITS = np.uint32(0xFFFFE000)  # tensor cores ignore the last 13 bits of a float32
tensors: list[tuple[int, int]] = []  # of the launch under way: first address, first beyond

IN_FLOAT32 = ("binary_op", "unary_op", "create_fma")  # on bfloat16, and then rounded


def _is_bfloat16(x) -> bool:
    return isinstance(x, TensorHandle) and x.dtype.scalar == tl.bfloat16


def _from_bfloat16(x):
    """A handle of bfloat16 as one of float32; anything else as it is."""
    if not _is_bfloat16(x):
        return x
    return TensorHandle(bfloat16.decode(x.data), tl.float32)


def _to_bfloat16(x: TensorHandle) -> TensorHandle:
    """A handle of float32 rounded to bfloat16, to nearest, ties to even."""
    return TensorHandle(bfloat16.encode(x.data).reshape(np.shape(x.data)), tl.bfloat16)


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


def _kept(set_attr):
    """TensorHandle.set_attr, which refuses a `tl.multiple_of` that is none: a number, or an address
    in bytes. What is said of a block's elements is taken as said."""

    @wraps(set_attr)
    def keep(self, key, values):
        if key == "tt.divisibility" and self.data.size == 1 and self.data.item() % values[0]:
            raise ValueError(f"{self.data.item()} must be a multiple of {values[0]}, as promised")
        return set_attr(self, key, values)

    return keep


def _extern_elementwise(self, lib_name, lib_path, symbol, args, ret_type, is_pure):
    values = libdevice.meaning(symbol.removeprefix("__nv_"))(*(arg.data for arg in args))
    return TensorHandle(values, ret_type.scalar)


def _extents(args) -> Iterator[tuple[int, int]]:
    """The first address of each tensor among a launch's arguments, and the first beyond it."""
    for arg in args:
        if isinstance(arg, tuple):
            yield from _extents(arg)
        elif hasattr(arg, "base"):  # a tensor descriptor
            yield from _extents((arg.base,))
        elif hasattr(arg, "data_ptr"):
            sides = zip(arg.shape, arg.stride(), strict=True)
            last = sum((n - 1) * stride for n, stride in sides)
            size = (last + 1) * arg.element_size() if arg.numel() else 0
            yield arg.data_ptr(), arg.data_ptr() + size


def _remembered(init_args):
    """`GridExecutor._init_args_hst`, which also notes where the tensors of this launch lie."""

    @wraps(init_args)
    def init(self, args, kwargs):
        targets = pointed_at(args)
        args, kwargs = init_args(self, args, kwargs)
        tensors[:] = _extents((*args, *kwargs.values(), *targets))
        return args, kwargs

    return init


def _inside(addresses: np.ndarray) -> np.ndarray:
    """Whether each address lies in a tensor of the launch under way."""
    first, beyond = np.array([(0, 0), *sorted(tensors)], np.uint64).T
    at = np.searchsorted(first, addresses, side="right") - 1
    return addresses < np.maximum.accumulate(beyond)[at]  # a tensor may lie within another


def _checked(access, mask: int):
    """A masked load or store of the builder, its mask the argument of that number."""

    @wraps(access)
    def call(self, ptrs, *rest):
        outside = rest[mask].data.astype(bool) & ~_inside(ptrs.data)
        if outside.any():
            raise RuntimeError(
                f"{int(outside.sum())} address(es) of {access.__name__} lie in no tensor"
            )
        return access(self, ptrs, *rest)

    return call


def _poisoned(load):
    """A masked load of the builder; what it leaves open is NaN, -1 in integers."""

    @wraps(load)
    def call(self, ptrs, mask, other, *rest):
        loaded = load(self, ptrs, mask, other, *rest)
        if other is None:
            data = np.array(loaded.data)
            open_ = np.frombuffer(b"\xff" * data.itemsize, data.dtype)[0]
            loaded = TensorHandle(np.where(mask.data, data, open_), loaded.dtype.scalar)
        return loaded

    return call


def _reduce_pairs(self, input):
    """`tl.reduce` by a function of the kernel's own: neighbours are combined all at once, and not
    element by element, which takes seconds."""
    parts, axis = self.unravel(input, self.axis)
    while (length := parts[0].handle.data.shape[axis]) > 1:  # a power of two
        sides = (
            self.to_tensor(np.take(part.handle.data, range(i, length, 2), axis), part.dtype)
            for i in (0, 1)
            for part in parts
        )
        combined = self.combine_fn.fn(*sides)
        parts = combined if isinstance(combined, tuple) else (combined,)
    results = (part.handle.data for part in parts)
    if not self.keep_dims:
        results = (data.squeeze(axis) for data in results)
    elif self.axis is None:
        results = (data.reshape((1,) * input[0].handle.data.ndim) for data in results)
    return [self.to_tensor(data, x.dtype) for data, x in zip(results, input, strict=True)]


def _run_once(call, quantiles=(0.5,)):
    """Instead of a benchmark: every configuration runs once, and the first is kept."""
    call()
    return [1.0] * len(quantiles)


def _one_at_a_time(run):
    """`InterpretedFunction.run` under the lock of the tier; x / 0 is infinite, as on a GPU."""

    @wraps(run)
    def locked(*args, **kwargs):
        with ONE_AT_A_TIME, np.errstate(all="ignore"):
            return run(*args, **kwargs)

    return locked


def install() -> None:
    """Mend the interpreter. Before the first kernel is launched, and once."""
    for name in IN_FLOAT32:
        setattr(InterpreterBuilder, name, _in_float32(getattr(InterpreterBuilder, name)))
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(InterpreterBuilder, name, _cast(getattr(InterpreterBuilder, name)))
    for name, mask in (("create_masked_load", 0), ("create_masked_store", 1)):
        setattr(InterpreterBuilder, name, _checked(getattr(InterpreterBuilder, name), mask))
    InterpreterBuilder.create_masked_load = _poisoned(InterpreterBuilder.create_masked_load)
    InterpretedFunction.run = _one_at_a_time(InterpretedFunction.run)
    GridExecutor._init_args_hst = _remembered(GridExecutor._init_args_hst)
    InterpreterBuilder.create_dot = _dot
    TensorHandle.set_attr = _kept(TensorHandle.set_attr)
    ReduceOps.generic_reduce = _reduce_pairs
    InterpreterBuilder.create_extern_elementwise = _extern_elementwise
    Autotuner.do_bench = staticmethod(_run_once)
    for name, function in vars(symbols).items():
        if hasattr(stubs, name) and callable(function):
            setattr(stubs, name, partial(function, _semantic=interpreter_semantic))
