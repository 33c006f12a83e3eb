"""Addresses and numbers of many tensors in device memory, for a kernel that is given a list."""

import struct
from functools import cache

import torch

from implementations.common.driver import Function

WORDS = 500  # of a launch, whose parameters may take 4 KB; before them stands where they go
PTX = f"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry table_kernel(.param .align 8 .b8 words[{8 * (1 + WORDS)}])
{{
    .reg .u32 i;
    .reg .u64 offset, from, to, word;
    mov.u32 i, %tid.x;
    mul.wide.u32 offset, i, 8;
    mov.u64 from, words;
    add.u64 from, from, offset;
    ld.param.u64 word, [from + 8];
    ld.param.u64 to, [words];
    add.u64 to, to, offset;
    st.global.u64 [to], word;
    ret;
}}
"""


def device_table(rows: list[tuple], device: torch.device) -> torch.Tensor:
    """Rows of tensors and ints as an int64 tensor on `device`, of a tensor its address.

    Its words travel as parameters of a small kernel, which a CUDA graph keeps: a copy from the
    host's memory would read that anew at each replay, when it may hold something else.
    """
    table = torch.empty((len(rows), len(rows[0])), dtype=torch.int64, device=device)
    values = [x for row in rows for x in row]
    words = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in values]
    if table.is_cuda:
        for i in range(0, len(words), WORDS):
            part = words[i : i + WORDS]
            packed = struct.pack(f"{1 + len(part)}q", table.data_ptr() + 8 * i, *part)
            _loaded(table.get_device()).launch((1,), (len(part),), [packed], 0, table.get_device())
    else:
        table.copy_(torch.tensor(words, device=device).view_as(table))
        # the tiers without a GPU know by it which addresses a kernel may go to
        table.points_to = [x for x in values if isinstance(x, torch.Tensor)]
    return table


@cache
def _loaded(device: int) -> Function:
    """The kernel on a GPU, a thread a word."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        error, module = driver.cuModuleLoadData(PTX.encode() + b"\0")
        if not error:
            error, function = driver.cuModuleGetFunction(module, b"table_kernel")
    if error:
        raise RuntimeError(f"the driver must load table_kernel, it says {error.name}")
    return Function(int(function), [f"{8 * (1 + WORDS)}s"])
