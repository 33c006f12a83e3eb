"""What is mended in Triton's interpreter, against torch."""

import pytest
import torch

from implementations import DEVICE
from implementations.common import registry

if DEVICE != "cpu" or registry.missing("triton"):
    pytest.skip("needs Triton on the CPU tier", allow_module_level=True)

import triton
import triton.language as tl
from triton.language.extra import libdevice

N = 1024


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    x, y = tl.load(x_ptr + offs), tl.load(y_ptr + offs)
    tl.store(out_ptr + offs, x + y)
    tl.store(out_ptr + N + offs, x * y - x)
    tl.store(out_ptr + 2 * N + offs, tl.where(x < y, -x, tl.maximum(x, y)))
    tl.store(out_ptr + 3 * N + offs, tl.fma(x.to(tl.float32), y.to(tl.float32), 0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_arithmetic_rounds_to_the_dtype(dtype):
    x, y = torch.randn(2, N, generator=torch.manual_seed(0)).to(dtype)
    out = torch.empty(4, N, dtype=dtype)
    arithmetic_kernel[(1,)](x, y, out, N)
    tenth = torch.tensor(0.1, dtype=torch.float64)
    assert torch.equal(out[0], x + y)
    assert torch.equal(out[1], x * y - x)
    assert torch.equal(out[2], torch.where(x < y, -x, torch.maximum(x, y)))
    fused = (x.double() * y.double() + tenth).to(dtype)
    assert (out[3] - fused).abs().max() <= torch.finfo(dtype).eps * fused.abs().max()


@triton.jit
def convert_kernel(x_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.int32], ids=str)
def test_conversion_to_bfloat16_and_back(source):
    x = (1000 * torch.randn(N, generator=torch.manual_seed(0))).to(source)
    if source.is_floating_point:
        x[:6] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1 + 2**-8, 6e-8])
    half, back = torch.empty(N, dtype=torch.bfloat16), torch.empty(N, dtype=source)
    convert_kernel[(1,)](x, half, N)
    torch.testing.assert_close(half, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    convert_kernel[(1,)](half, back, N)
    torch.testing.assert_close(back, half.to(source), rtol=0, atol=0, equal_nan=True)


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    offs = tl.arange(0, N)
    offs = offs[:, None] * N + offs[None, :]
    a, b = tl.load(a_ptr + offs), tl.load(b_ptr + offs)
    tl.store(out_ptr + offs, tl.dot(a, b, input_precision=PRECISION))


@pytest.mark.parametrize(
    ("dtype", "precision", "least", "most"),
    [
        (torch.float16, "ieee", 0, 1e-5),
        (torch.bfloat16, "ieee", 0, 1e-5),
        (torch.float32, "ieee", 0, 1e-5),
        (torch.float32, "tf32", 1e-4, 1e-1),  # far from exact, as on a GPU
        (torch.float32, "tf32x3", 0, 1e-5),
    ],
)
def test_dot(dtype, precision, least, most):
    a, b = torch.randn(2, 32, 32, generator=torch.manual_seed(0)).to(dtype)
    out = torch.empty(32, 32)
    dot_kernel[(1,)](a, b, out, 32, precision)
    error = (out - a.double() @ b.double()).abs().max()
    assert least <= error <= most


@triton.jit
def extern_kernel(x_ptr, out_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, libdevice.asin(x))
    tl.store(out_ptr + N + offs, libdevice.erf(x))
    tl.store(out_ptr + 2 * N + offs, libdevice.fma(x, x, x))


def test_libdevice():
    x = torch.linspace(-1, 1, N)
    out = torch.empty(3, N)
    extern_kernel[(1,)](x, out, N)
    exact = torch.stack([x.double().asin(), x.double().erf(), x.double() ** 2 + x.double()])
    torch.testing.assert_close(out, exact.float(), rtol=2e-7, atol=1e-9)


@triton.jit
def unknown_kernel(x_ptr):
    tl.store(x_ptr, libdevice.j0(tl.load(x_ptr)))


def test_what_is_missing_is_named():
    with pytest.raises(Exception, match="libdevice function j0f has no meaning on the CPU tier"):
        unknown_kernel[(1,)](torch.ones(1))


@triton.jit
def promising_kernel(x_ptr, n, ADDRESS: tl.constexpr):
    x_ptr, n = tl.multiple_of(x_ptr, ADDRESS), tl.multiple_of(n, 8)
    tl.store(x_ptr, n)


def test_what_is_promised_to_be_a_multiple_is_one():
    x = torch.zeros(8)
    promising_kernel[(1,)](x, 24, 16)
    assert x[0] == 24
    with pytest.raises(Exception, match="28 must be a multiple of 8, as promised"):
        promising_kernel[(1,)](x, 28, 16)
    with pytest.raises(Exception, match=f"{x[1:].data_ptr()} must be a multiple of 16"):
        promising_kernel[(1,)](x[1:], 24, 16)
    promising_kernel[(1,)](x[1:], 24, 4)


tried = []


@triton.autotune([triton.Config({"BLOCK": block}) for block in (16, 64)], key=["n"])
@triton.jit
def tuned_kernel(x_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs, mask=offs < n) + 1, mask=offs < n)


def test_autotune_runs_every_configuration():
    x = torch.zeros(100)

    def grid(meta):
        tried.append(meta["BLOCK"])
        return (triton.cdiv(100, meta["BLOCK"]),)

    tuned_kernel[grid](x, 100)
    assert tried == [16, 64, 16]
    assert (x == 3).all()
