"""Refusal of arguments that a kernel does not take: one sentence each, the same from all."""

import math
from functools import cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

from implementations import TORCH_DEVICE

PLAIN = (torch.Tensor, torch.nn.Parameter)  # other kinds may have no memory

# What a grid has at most: blocks along x, and along y or z.
MAX_GRID_X, MAX_GRID_YZ = 2**31 - 1, 65_535
# Of a tensor: a block along x then has 32 to itself. In 16 bits they take 137 GB.
MAX_ELEMENTS = 32 * MAX_GRID_X
# Of a side whose indices are 32 bits wide and reach beyond it by some tiles.
MAX_SIDE = 2**31 - 1024
MAX_ROW_STRIDE = 2**23  # of a view, whose tiles have up to 128 rows
MAX_SCALE = 2.0**100  # of scores; exp(x) is taken as 2^(x log2 e), which is still finite


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float16` → "float16"."""
    return str(dtype).removeprefix("torch.")


def check_tensor(
    name: str, x, ndim: int | None, dtypes: tuple[torch.dtype, ...], strided: bool = False
) -> None:
    """Require a contiguous tensor of `ndim` dimensions (None: any) and one of `dtypes`.

    It must have memory of its own, lie on the study's device, start at a multiple of 16 bytes,
    require no gradient, and have at most `MAX_ELEMENTS`. strided: it may start at any element, and
    have any strides.
    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, device or stride.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(x).__name__}")
    if not _is_plain(x) and (what := _without_memory(x)):  # before anything else is asked of it
        raise TypeError(f"{name} must be a dense tensor with memory of its own, got {what}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must be detached, or the call made under torch.no_grad(), as the kernel has "
            "no gradient, got requires_grad=True"
        )
    if x.dtype not in dtypes:
        wanted = " or ".join(dtype_name(d) for d in dtypes)
        raise TypeError(f"{name} must have dtype {wanted}, got {dtype_name(x.dtype)}")
    if x.device.type != TORCH_DEVICE:
        raise ValueError(f"{name} must be on device {TORCH_DEVICE}, got {x.device}")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(x.shape)}")
    check_at_most(name, "elements", x.numel(), MAX_ELEMENTS)
    if strided:
        return
    if x.data_ptr() % 16:
        raise ValueError(
            f"{name} must start at a multiple of 16 bytes, got {x.data_ptr() % 16} beyond one"
        )
    if not x.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {x.stride()} for shape {tuple(x.shape)}"
        )


def _without_memory(x: torch.Tensor) -> str:
    """What kind of tensor this is, if its elements do not lie in memory as they are; "" if they do.

    Of some the address is said to be 0, or that of other bits than their values have.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or torch._is_functional_tensor(x):
        return "one that a transform of torch.func wraps"
    if x.layout != torch.strided or x.is_nested:
        return "a nested one" if x.is_nested else f"a sparse one ({x.layout})"
    if type(x) not in PLAIN:
        return f"a {type(x).__name__}"
    if x._is_zerotensor():
        return "a zero that was never stored"
    if x.is_neg() or x.is_conj():
        return "a view that is negated or conjugated lazily (resolve it)"
    return ""


def _is_plain(x: torch.Tensor) -> bool:
    """Whether torch has no special handling for a tensor: one question, where there are seven."""
    return torch._C._dispatch_keys(x).raw_repr() in _plain_keys(x.device)


@cache
def _plain_keys(device: torch.device) -> tuple[int, ...]:
    """The sets of dispatch keys of plain tensors, without and with inference mode."""
    with _disable_current_modes(), torch.inference_mode(False):
        plain = torch.empty(0, device=device)
        with torch.inference_mode():
            inference = torch.empty(0, device=device)
    return tuple(torch._C._dispatch_keys(x).raw_repr() for x in (plain, inference))


def check_same(names: tuple[str, str], x: torch.Tensor, y: torch.Tensor, *properties: str) -> None:
    """Require that `x` and `y` agree in each of `properties`, of "shape", "dtype" and "device"."""
    for p in properties:
        a, b = getattr(x, p), getattr(y, p)
        if a != b:
            a, b = (
                dtype_name(v) if p == "dtype" else tuple(v) if p == "shape" else v for v in (a, b)
            )
            error = TypeError if p == "dtype" else ValueError
            raise error(f"{names[0]} and {names[1]} must have the same {p}, got {a} and {b}")


def check_at_most(name: str, things: str, count: int, limit: int, hint: str = "") -> None:
    """Require that `name` has at most `limit` of some things, such as "rows", and not `count`.

    hint: what the refusal ends with. Raises ValueError.
    """
    if count > limit:
        hint = hint and f": {hint}"
        raise ValueError(f"{name} must have at most {limit} {things}, got {count}{hint}")


def check_inner(names: tuple[str, str], a: torch.Tensor, b: torch.Tensor) -> None:
    """Require that matrices can be multiplied, a @ b. Raises ValueError."""
    if a.shape[1] != b.shape[0]:
        raise ValueError(
            f"{names[0]}'s columns must equal {names[1]}'s rows, "
            f"got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )


def check_product(a, b, dtypes: tuple[torch.dtype, ...], M: int, N: int, K: int) -> None:
    """Require matrices `a`, of at most (M, K), and `b`, of at most (K, N), that can be multiplied.

    They must be as `check_tensor` has it, of one dtype and on one device.
    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, device or stride.
    """
    check_tensor("a", a, ndim=2, dtypes=dtypes)
    check_tensor("b", b, ndim=2, dtypes=dtypes)
    check_same(("a", "b"), a, b, "dtype", "device")
    check_inner(("a", "b"), a, b)
    check_at_most("a", "rows", a.shape[0], M)
    check_at_most("a", "columns", a.shape[1], K)
    check_at_most("b", "columns", b.shape[1], N)


def check_attention(
    q, k, v, causal, sm_scale, dtypes: tuple[torch.dtype, ...], head_dims: tuple[int, ...]
) -> float:
    """Require queries `q` (B, H, M, D), keys and values `k` and `v` (B, H, N, D), a bool, a number.

    The tensors must be as `check_tensor` has it, of one dtype and on one device, D one of
    `head_dims`, and `sm_scale` a finite float32. Returns `sm_scale`, rounded to that.
    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, device or stride, or a
    number that is not finite.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, x, ndim=4, dtypes=dtypes)
        check_same(("q", name), q, x, "dtype", "device")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "q and k must have the same batches, heads and last dimension, "
            f"got shapes {tuple(q.shape)} and {tuple(k.shape)}"
        )
    return _check_heads(q, k, v, causal, sm_scale, head_dims)


def check_grouped_attention(
    q, k, v, causal, sm_scale, dtypes: tuple[torch.dtype, ...], head_dims: tuple[int, ...]
) -> float:
    """As `check_attention`, but k and v may have fewer heads, each for as many of q, and all may be
    views, as `check_rows` has it; the scale must be positive. Returns it, rounded to float32."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, x, ndim=4, dtypes=dtypes, strided=True)
        check_rows(name, x)
        check_same(("q", name), q, x, "dtype", "device")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "q and k must have the same batches and last dimension, "
            f"got shapes {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]:
        raise ValueError(
            f"q's heads must be a multiple of k's, got {q.shape[1]} and {k.shape[1]} heads"
        )
    scale = _check_heads(q, k, v, causal, sm_scale, head_dims)
    if not 0 < scale <= MAX_SCALE:
        raise ValueError(f"sm_scale must be positive and at most {MAX_SCALE:g}, got {scale}")
    return scale


def check_rows(name: str, x: torch.Tensor) -> None:
    """Require rows, along the last dimension, of neighbours, each from a multiple of 16 bytes on,
    and each near enough to the next for an index within a tile to be 32 bits. Raises ValueError."""
    unit = 16 // x.element_size()
    steps = [x.stride(d) for d in range(x.ndim - 1) if x.shape[d] > 1]
    if x.shape[-1] > 1 and x.stride(-1) != 1 or any(step % unit for step in steps):
        raise ValueError(
            f"{name} must have rows without gaps, and other strides that are multiples of {unit}, "
            f"got strides {x.stride()} for shape {tuple(x.shape)}"
        )
    if x.data_ptr() % 16:
        raise ValueError(
            f"{name} must start at a multiple of 16 bytes, got {x.data_ptr() % 16} beyond one"
        )
    check_at_most(name, "elements from a row to the next", x.stride(-2), MAX_ROW_STRIDE)


def _check_heads(q, k, v, causal, sm_scale, head_dims: tuple[int, ...]) -> float:
    """What remains of both, once q and k fit each other."""
    check_same(("k", "v"), k, v, "shape")
    if q.shape[3] not in head_dims:
        wanted = " or ".join(map(str, head_dims))
        raise ValueError(f"q must have a last dimension of {wanted}, got {q.shape[3]}")
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be a bool, got {type(causal).__name__}")
    scale = check_number("sm_scale", sm_scale, torch.float32)
    if not math.isfinite(scale):
        raise ValueError(f"sm_scale must be finite, got {scale}")
    return scale


def check_block_size(block_size) -> None:
    """Require a power of two from 1 to 1024, as many as the threads of a block at most.

    Raises TypeError for what is no int, ValueError for another number.
    """
    check_int("block_size", block_size)
    if not 1 <= block_size <= 1024 or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two up to 1024, got {shown(block_size)}")


def check_int(name: str, value) -> None:
    """Require a Python int. Raises TypeError for another type."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def check_number(name: str, value, dtype: torch.dtype) -> float:
    """Require a Python int or float within the range of `dtype`; an infinity or NaN is.

    Returns it rounded once to `dtype`, to nearest, ties to even: all backends store the same.
    Raises TypeError for another type, ValueError for a finite number beyond the range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int or a float, got {type(value).__name__}")
    info = torch.finfo(dtype)
    if info.max < abs(value) < math.inf:
        raise ValueError(
            f"{name} must be at most {info.max:g} in magnitude for {dtype_name(dtype)}, "
            f"got {shown(value)}"
        )
    if isinstance(value, float) and not math.isfinite(value) or value == 0:
        return float(value)
    # torch would go through float32 to 16 bits; this is exact, as float64 holds the quotient
    _, exponent = math.frexp(value)
    unit = max(math.ldexp(info.eps, exponent - 1), info.smallest_normal * info.eps)
    return math.copysign(round(value / unit) * unit, value)


def shown(value) -> str:
    """A number as a refusal names it; of an int that has too many digits, how many bits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an int of {value.bit_length()} bits"
    return str(value)
