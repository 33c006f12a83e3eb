"""A launch by the driver itself: parameters packed as in C, on torch's current stream."""

import ctypes
import struct

import torch
from cuda.bindings.driver import CUfunction, cuLaunchKernel

POINTER, SIZE = 1, 2  # CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE; 0 ends
EXTRA = ctypes.c_void_p * 5


class Function:
    """A loaded kernel. handle: the driver's. formats: how `struct` packs each parameter; such as
    "128s" are aligned to 64 bytes."""

    def __init__(self, handle: int, formats: list[str]):
        self.handle = CUfunction(handle)
        layout = "="
        for format in formats:
            alignment = 64 if format.endswith("s") else struct.calcsize(format)
            layout += f"{-struct.calcsize(layout) % alignment}x{format}"
        self.pack = struct.Struct(layout).pack_into
        self.buffer = ctypes.c_char * struct.calcsize(layout)
        self.size = ctypes.c_size_t(struct.calcsize(layout))

    def launch(self, grid: tuple, block: tuple, values: list, shared_bytes: int, device: int):
        """Queue it on the current stream of a device, whichever device is current.

        Raises struct.error for values that do not fit, RuntimeError where the driver refuses.
        """
        if device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self.launch(grid, block, values, shared_bytes, device)
        buffer = self.buffer()
        self.pack(buffer, 0, *values)
        extra = EXTRA(POINTER, ctypes.addressof(buffer), SIZE, ctypes.addressof(self.size))
        x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
        u, v, w = block if len(block) == 3 else (*block, 1, 1)[:3]
        stream = torch._C._cuda_getCurrentRawStream(device)
        (error,) = cuLaunchKernel(
            self.handle, x, y, z, u, v, w, shared_bytes, stream, 0, ctypes.addressof(extra)
        )
        if error:
            raise RuntimeError(f"the driver must take the launch, it says {error.name}")


def device_of(args: tuple) -> int:
    """The index of the device of a launch's tensors; without any, of the current device."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.get_device()
    return torch.cuda.current_device()
