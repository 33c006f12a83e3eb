"""What the functions of CUDA's libdevice compute, on NumPy scalars and arrays."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np

FLOATING = {
    **{
        name: getattr(np, name)
        for name in (
            *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt", "hypot"),
            *("sin", "cos", "tan", "sinh", "cosh", "tanh", "fabs", "fmax", "fmin", "fmod"),
            *("floor", "ceil", "trunc", "rint", "copysign"),
        )
    },
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("sin", "cos", "tan", "tan2")},
    **{f"a{name}": getattr(np, f"arc{name}") for name in ("sinh", "cosh", "tanh")},
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "erfc": np.vectorize(math.erfc, otypes=[np.float64]),
    "normcdf": np.vectorize(lambda x: math.erfc(-x * math.sqrt(0.5)) / 2, otypes=[np.float64]),
    "exp10": lambda x: np.power(10.0, x),
    "fdivide": np.divide,
    "fma": lambda x, y, z: x * y + z,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
BITS = {
    "double_as_longlong": lambda x: np.float64(x).view(np.int64),
    "longlong_as_double": lambda x: np.int64(x).view(np.float64),
    "float_as_int": lambda x: np.float32(x).view(np.int32),
    "float_as_uint": lambda x: np.float32(x).view(np.uint32),
    "int_as_float": lambda x: np.int32(x).view(np.float32),
    "uint_as_float": lambda x: np.uint32(x).view(np.float32),
    "mulhi": lambda x, y: np.int32(np.int64(x) * np.int64(y) >> 32),
    "umulhi": lambda x, y: np.uint32(np.uint64(x) * np.uint64(y) >> np.uint64(32)),
}


@cache
def meaning(name: str) -> Callable:
    """The function of libdevice `name`, without its prefix `__nv_`: float64 ("exp"), float32
    ("expf"), its fast form ("fast_expf", here as accurate) or one on bits.

    float32 is computed in float64 and rounded once, so `fmaf` is fused. Raises NotImplementedError
    for a name that is not in the tables.
    """
    if name in BITS:
        return BITS[name]
    double = FLOATING.get(name)
    single = FLOATING.get(name.removeprefix("fast_").removesuffix("f"))
    if not double and not single:
        raise NotImplementedError(f"libdevice function {name} has no meaning on the CPU tier")

    def function(*args):
        with np.errstate(all="ignore"):  # infinities and NaN, as on a GPU
            y = (double or single)(*map(np.float64, args))
        return np.float64(y) if double else np.float32(y)

    return function


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


QUICK = {  # on Python's floats, for which NumPy takes several times as long
    "fmax": lambda x, y: x if x > y or math.isnan(y) else y,
    "fmin": lambda x, y: x if x < y or math.isnan(y) else y,
    "exp": _exp,
}


@cache
def of_numbers(name: str) -> Callable:
    """`meaning` for a thread, which calls it with numbers and ignores NumPy's warnings."""
    quick = QUICK.get(name.removeprefix("fast_").removesuffix("f"))
    if name in FLOATING or not quick:
        return meaning(name)
    return lambda *args: np.float32(quick(*map(float, args)))
