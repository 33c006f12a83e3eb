"""A tensor as the tensor memory accelerator sees it: copied by boxes, from compute capability 9.0.

In CUDA C++ a kernel takes it as `const __grid_constant__ TensorMap`, in Numba as the array of its
bytes in global memory.
"""

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

BYTES, ALIGNMENT = 128, 64
KINDS = {  # CUtensorMapDataType
    torch.uint8: 0,
    torch.int32: 4,
    torch.float16: 6,
    torch.float32: 7,
    torch.bfloat16: 9,
}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}  # bytes → CUtensorMapSwizzle


@dataclass(frozen=True)
class TensorMap:
    """Boxes of a tensor of up to five dimensions, whose last is contiguous.

    box: the shape of one copy. swizzle: bytes of a box's row within which chunks of 16 bytes change
    places in shared memory: 0, 32, 64 or 128. Elements beyond the tensor are zeros.
    Raises TypeError for another dtype, ValueError for what the hardware does not take.
    """

    tensor: torch.Tensor
    box: tuple[int, ...]
    swizzle: int = 0

    def __post_init__(self):
        x, size = self.tensor, self.tensor.element_size()
        if x.dtype not in KINDS:
            raise TypeError(f"a TensorMap must be of {', '.join(map(str, KINDS))}, got {x.dtype}")
        if not 1 <= x.ndim <= 5 or len(self.box) != x.ndim:
            raise ValueError(f"a box must have the 1 to 5 dimensions of {tuple(x.shape)}")
        if x.stride(-1) != 1 or any(size * s % 16 for s in x.stride()[:-1]):
            raise ValueError(
                f"rows must be contiguous and start at multiples of 16 bytes, got {x.stride()}"
            )
        if not all(1 <= side <= 256 for side in self.box) or self.box[-1] * size % 16:
            raise ValueError(
                f"a box must have sides of 1 to 256, its rows multiples of 16 bytes: {self.box}"
            )
        if self.swizzle not in SWIZZLES or self.swizzle and self.box[-1] * size > self.swizzle:
            raise ValueError(
                f"swizzle must be {', '.join(map(str, SWIZZLES))} and hold a box's row of "
                f"{self.box[-1] * size} bytes, got {self.swizzle}"
            )

    def encoded(self) -> np.ndarray:
        """The 128 bytes that the driver makes of it, as one NumPy element."""
        x = self.tensor
        key = x.data_ptr(), x.dtype, tuple(x.shape), x.stride(), self.box, self.swizzle
        return _encoded(*key)

    def on_device(self) -> torch.Tensor:
        """The same in the memory of the tensor's device."""
        x = self.tensor
        key = x.data_ptr(), x.dtype, tuple(x.shape), x.stride(), self.box, self.swizzle
        return _on_device(x.device, *key)


@lru_cache(1024)
def _on_device(device: torch.device, *key) -> torch.Tensor:
    return torch.from_numpy(_encoded(*key).view(np.uint8).copy()).to(device)


@lru_cache(1024)
def _encoded(data_ptr, dtype, shape, strides, box, swizzle) -> np.ndarray:
    buffer = np.zeros(BYTES + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    aligned = buffer[start : start + BYTES]
    rank, itemsize = len(shape), dtype.itemsize
    steps = [itemsize * stride for stride in strides[:-1]]
    ones = (1,) * rank
    error = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned.ctypes.data),
        KINDS[dtype],
        rank,
        ctypes.c_void_p(data_ptr),
        (ctypes.c_uint64 * rank)(*reversed(shape)),  # the innermost dimension first
        (ctypes.c_uint64 * rank)(*reversed(steps)),
        (ctypes.c_uint32 * rank)(*reversed(box)),
        (ctypes.c_uint32 * rank)(*ones),
        0,  # not interleaved
        SWIZZLES[swizzle],
        2,  # the L2 is filled by 128 bytes
        0,  # zeros beyond the tensor
    )
    if error:
        raise ValueError(f"the driver must encode the box {box} of {shape}, it says error {error}")
    return aligned.view("V128")
