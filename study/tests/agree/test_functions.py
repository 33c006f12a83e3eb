"""Functions of CUDA's library: every value of 16 bits, and some of all of float32."""

import pytest
import torch

from implementations import TORCH_DEVICE
from implementations.common import registry
from implementations.common.check import dtype_name
from study.agree import agreement
from study.tests import chosen

SIXTEEN_BITS = (torch.float16, torch.bfloat16)
STEP = 65_537  # a prime: of float32 every so many bits


def every_value(dtype):
    return torch.arange(2**16, dtype=torch.int32, device=TORCH_DEVICE).to(torch.int16).view(dtype)


def spread():
    """float32 of all exponents, both signs, NaN and infinities, and where functions change."""
    bits = torch.arange(0, 2**32, STEP, device=TORCH_DEVICE).to(torch.int32)
    line = torch.linspace(-15, 7, 20_011, device=TORCH_DEVICE)
    special = torch.tensor([0.0, 1.0, float("inf"), float("nan"), 2**-149, 2**-126, 3e38])
    around = torch.stack([line.nextafter(line * 2), line, -line / 15])
    return torch.cat((bits.view(torch.float32), around.flatten(), special, -special))


@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.parametrize("kernel", chosen.functions())
@pytest.mark.parametrize("dtype", (torch.float32, *SIXTEEN_BITS), ids=dtype_name)
def test_is_right_everywhere(kernel, backend, dtype):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    x = spread() if dtype == torch.float32 else every_value(dtype)
    y = registry.load(kernel, backend)(x)
    assert agreement.judge(registry.spec(kernel), {}, (x,), y).error == ""


@pytest.mark.parametrize("kernel", chosen.functions())
def test_any_shape(kernel):
    x = spread()[: 3 * 5 * 7]
    for backend in registry.BACKENDS:
        if not registry.missing(backend):
            host = registry.load(kernel, backend)
            flat = host(x)
            for shape in ((3, 5, 7), (15, 7), (105, 1, 1)):
                assert host(x.view(shape)).equal(flat.view(shape)) or flat.isnan().any()
            assert host(x[1].clone()).equal(flat[1]) and host(x[:0]).shape == (0,)
            assert host(x.new_empty(3, 0, 2)).shape == (3, 0, 2)
