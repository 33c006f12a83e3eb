"""Values that are not finite, or all equal, come out as torch has them: in every backend."""

import pytest
import torch

from implementations import TORCH_DEVICE
from implementations.common import registry

INF, NAN = torch.inf, torch.nan
VALUES = {
    "all equal": lambda row: row.fill_(1.5),
    "one NaN": lambda row: row[40:41].fill_(NAN),
    "one inf": lambda row: row[-1:].fill_(INF),
    "one -inf": lambda row: row[:1].fill_(-INF),
    "inf and -inf": lambda row: row[:2].copy_(torch.tensor([INF, -INF])),
    "all -inf": lambda row: row.fill_(-INF),
    "all NaN": lambda row: row.fill_(NAN),
    "as drawn": lambda row: row,
}
ROWS = ("row_sum", "softmax_naive", "softmax_safe", "softmax_fused", "softmax_online")
N = {"softmax_online": (300, 33_000)}  # the long rows of a cluster or a loop too


def _agree(kernel, backend, x):
    wanted = registry.spec(kernel).reference(x)
    found = registry.load(kernel, backend)(x)
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=2e-2, atol=1e-3)


def _run(kernel, backend, dtype, n):
    x = torch.randn(len(VALUES), n, generator=torch.Generator().manual_seed(0)).to(dtype)
    for row, change in zip(x, VALUES.values(), strict=True):
        change(row)
    x = x.to(TORCH_DEVICE)
    if kernel in ROWS:
        _agree(kernel, backend, x)
    elif kernel == "column_sum":
        _agree(kernel, backend, x.T.contiguous())
    else:
        for row in x:
            _agree(kernel, backend, row.clone())


@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize("kernel", [*ROWS, "column_sum", "vector_sum", "vector_max"])
def test_as_torch_has_them(kernel, backend):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    for n in N.get(kernel, (300,)):
        for dtype in (torch.float32, torch.float16):
            _run(kernel, backend, dtype, n)
