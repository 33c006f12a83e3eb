"""Refusal of arguments that a kernel does not take: one sentence each, the same from all."""

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
