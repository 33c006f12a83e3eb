"""Inputs that hold NaN and infinities: what a kernel makes of them, the oracle says.

So a wrong neutral element shows, a NaN that a maximum drops, and a zero beyond an edge that meets
an infinity. A few rows of a matrix get a pattern each, spread from its first to its last; a vector
gets one, each check size of a kernel another.
"""

import inspect

import torch
from torch.utils._pytree import tree_map_only

from implementations.common import registry
from study.bench.cells import Cell

NAN, INF = float("nan"), float("inf")
WHOLE_ROW = (-INF, -INF, -INF)
PATTERNS = (  # what stands first in a row, in its middle and last; None: what was drawn
    (None, NAN, None),
    (None, None, INF),
    WHOLE_ROW,
    (-INF, None, None),
    (INF, None, -INF),
)


def planted(cell: Cell, inputs: tuple) -> tuple:
    """Copies of the inputs of one of its kernel's check sizes, with values that are not finite in
    every floating-point tensor, of those parameters that the spec says."""
    spec = registry.spec(cell.kernel)
    start = spec.check_sizes.index(cell.sizes)
    parameters = inspect.signature(spec.reference).parameters
    taken = spec.not_finite(**cell.sizes) if spec.not_finite else parameters
    planted = [
        tree_map_only(torch.Tensor, lambda x: _plant(x, start), given) if name in taken else given
        for name, given in zip(parameters, inputs, strict=False)
    ]
    return (*planted, *inputs[len(planted) :])


def _plant(x: torch.Tensor, start: int) -> torch.Tensor:
    if x.numel() == 0 or x.ndim == 0 or not x.dtype.is_floating_point:
        return x
    planted = x.contiguous().clone()
    rows = planted.view(-1, x.shape[-1])
    count = min(len(PATTERNS), len(rows))
    for i in range(count):
        row = rows[i * (len(rows) - 1) // max(count - 1, 1)]
        pattern = PATTERNS[(start + i) % len(PATTERNS)]
        if i == count - 1 > 0:
            pattern = WHOLE_ROW  # at every size of several rows: a softmax has no sum then
        if pattern == WHOLE_ROW:
            row.fill_(-INF)
        first, middle, last = pattern
        for at, value in ((0, first), (len(row) // 2, middle), (-1, last)):
            if value is not None:
                row[at] = value
    return torch.empty_like(x).copy_(planted)  # with the strides of x
