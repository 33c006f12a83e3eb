"""Refusal of arguments that a kernel does not take: one sentence each, the same from all."""

import math

import torch

from implementations import TORCH_DEVICE


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float16` → "float16"."""
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, x, ndim: int | None, dtypes: tuple[torch.dtype, ...]) -> None:
    """Require a contiguous tensor of `ndim` dimensions (None: any) and one of `dtypes`.

    It must lie on the study's device and start at a multiple of 16 bytes.
    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, device or stride.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(x).__name__}")
    if x.dtype not in dtypes:
        wanted = " or ".join(dtype_name(d) for d in dtypes)
        raise TypeError(f"{name} must have dtype {wanted}, got {dtype_name(x.dtype)}")
    if x.device.type != TORCH_DEVICE:
        raise ValueError(f"{name} must be on device {TORCH_DEVICE}, got {x.device}")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(x.shape)}")
    if x.data_ptr() % 16:
        raise ValueError(
            f"{name} must start at a multiple of 16 bytes, got {x.data_ptr() % 16} beyond one"
        )
    if not x.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {x.stride()} for shape {tuple(x.shape)}"
        )


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


def check_block_size(block_size) -> None:
    """Require a power of two from 1 to 1024, as many as the threads of a block at most.

    Raises TypeError for what is no int, ValueError for another number.
    """
    if not isinstance(block_size, int) or isinstance(block_size, bool):
        raise TypeError(f"block_size must be an int, got {type(block_size).__name__}")
    if not 1 <= block_size <= 1024 or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two up to 1024, got {block_size}")


def check_number(name: str, value, dtype: torch.dtype) -> float:
    """Require a Python int or float within the range of `dtype`; an infinity or NaN is.

    Returns it rounded to `dtype`, so that all backends store the same.
    Raises TypeError for another type, ValueError for a finite number beyond the range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int or a float, got {type(value).__name__}")
    largest = torch.finfo(dtype).max
    if largest < abs(value) < math.inf:
        raise ValueError(
            f"{name} must be at most {largest:g} in magnitude for {dtype_name(dtype)}, got {value}"
        )
    return torch.tensor(float(value), dtype=dtype).item()
